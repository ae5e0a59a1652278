"""Columns of published data whose names are none of the usual: told by known pairs, by the words of names, by two languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from undertow.core.errors import UserError
from undertow.data.rows.files import file_source, read
from undertow.data.rows.forms import Reader

ASK = "how do I sort a list without a loop"
MORE = "I have a list of numbers, and the loop that I wrote is slow."
TELL = "use the function that sorts with a key"


def first(row: dict[str, Any]) -> tuple[str, str, str]:
    part = Reader().parts(row, "here")[0]
    return part.question, part.context, part.response


@pytest.mark.parametrize(
    ("ask", "tell"),
    [
        ("source", "target"),
        ("src", "tgt"),
        ("nl", "cmd"),
        ("docstring", "code"),
        ("prompt", "canonical_solution"),
        ("post", "reply"),
        ("dialogue", "summary"),
        ("original", "corrected"),
        ("en", "fr"),
        ("English", "German"),
        ("en_XX", "de_DE"),
        ("user_prompt", "assistant_response"),
        ("userPrompt", "modelResponse"),
        ("Prompt Text", "Gold Answer"),
        ("question", "golden_answers"),
        ("prompt", "text"),
        ("context", "response"),
        ("title", "answer"),
    ],
)
def test_a_pair_of_unusual_names_is_a_question_and_its_answer(ask: str, tell: str) -> None:
    assert first({"id": 3, ask: ASK, tell: TELL}) == (ASK, "", TELL)


@pytest.mark.parametrize(
    ("title", "body"), [("title", "body"), ("question_title", "question_body"), ("Title", "selftext"), ("subject", "body")]
)
def test_the_title_of_a_post_is_asked_and_its_body_is_context(title: str, body: str) -> None:
    assert first({title: ASK, body: MORE, "answer": TELL}) == (ASK, MORE, TELL)
    assert first({title: "", body: MORE, "answer": TELL}) == (MORE, "", TELL)


def test_a_prompt_that_is_named_keeps_its_place_before_a_title() -> None:
    part = Reader({"prompt": "text", "answer": "answer"}).parts({"title": MORE, "text": ASK, "answer": TELL}, "here")[0]
    assert (part.question, part.context, part.response) == (ASK, "", TELL)


def test_answers_with_scores_are_several_answers() -> None:
    row = {"title": ASK, "selftext": MORE, "answers": {"text": [TELL, "another one"], "score": [7, 1], "a_id": ["x", "y"]}}
    part, other = Reader().parts(row, "here")
    assert (part.answers, other.response) == ((TELL, "another one"), "another one")


JUDGED = [{"role": "system", "content": "You rate."}, {"role": "user", "content": "Which of the two is better?"}]


@pytest.mark.parametrize("judge", ["labelling_prompt", "judge_messages", "ratingPrompt", "prompt_for_annotator"])
@pytest.mark.parametrize(
    "row", [{"input": ASK, "chosen": TELL}, {"query": ASK, "output": TELL}, {"user_prompt": ASK, "final_response": TELL}]
)
@pytest.mark.parametrize("said", [JUDGED, "Which of the two is better?"])
def test_what_a_judge_is_asked_is_no_question(judge: str, row: dict[str, Any], said: Any) -> None:
    reader = Reader()
    more = {"labelling_model": "gpt", judge.replace("prompt", "response"): "the first one"}
    part, *others = reader.parts({**more, judge: said, **row}, "here")
    assert (part.question, part.response, part.system) == (ASK, TELL, "")
    assert any("Which of the two is better?" in other.response + other.question for other in others)
    assert not reader.account.unread
    assert "labelling_model" in reader.account.left_out


def test_a_judge_may_learn_from_what_it_is_asked() -> None:
    assert first({"judge_prompt": ASK, "judge_response": TELL}) == (ASK, "", TELL)


@pytest.mark.parametrize("inputs", ["input", "inputs"])
def test_the_definition_of_a_task_is_asked_about_its_input(inputs: str) -> None:
    assert first({"definition": [ASK], inputs: MORE, "targets": [TELL]}) == (ASK, MORE, TELL)
    assert first({"definition": MORE, "question": ASK, "answer": TELL}) == (ASK, "", TELL)


def test_a_conversation_as_context_is_asked_where_several_answer() -> None:
    talk = [{"role": "user", "content": MORE}, {"role": "assistant", "content": "Which one?"}, {"role": "user", "content": ASK}]
    earlier, part, other = Reader().parts({"context": talk, "response1": TELL, "response2": "No."}, "here")
    assert (part.question, part.history, part.response) == (ASK, ((MORE, "Which one?"),), TELL)
    assert (earlier.response, earlier.why, other.response) == ("Which one?", "answer within the prompt", "No.")


@pytest.mark.parametrize(
    ("ask", "tell", "key", "more"),
    [
        ("instruction", "completions", "response", {"model": "x", "overall_score": 8.0, "critique": "Rather short."}),
        ("question", "answers", "text", {"answer_id": 1, "author": "J", "pm_score": 5, "selected": True}),
        ("prompt", "answers", "answer", {"model": "x", "rank": 1.0}),
        ("query", "responses", "content", {"model": "x"}),
        ("user_prompt", "model_responses", "output", {"generator": "x"}),
    ],
)
def test_a_list_of_answers_with_what_is_known_of_each_is_several_answers(
    ask: str, tell: str, key: str, more: dict[str, Any]
) -> None:
    reader = Reader()
    part, *others = reader.parts({ask: ASK, tell: [{key: TELL, **more}, {**more, key: MORE}]}, "here")
    assert (part.question, part.answers) == (ASK, (TELL, MORE))
    critique = [("Rather short.", f"{tell}.critique")] * 2 if "critique" in more else []
    assert [(other.response, other.pool) for other in others] == [(MORE, "(other accepted answers)"), *critique]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("answers", [{"name": "send", "arguments": {"text": "hi"}}]),
        ("output", [{"text": "Oslo", "label": "place"}]),
        ("outputs", [{"problem": "1 + 1", "solution": "2"}]),
        ("answers", [{"text": "a", "label": "b"}, {"name": "send"}]),
    ],
)
def test_a_list_of_records_stays_one_answer(column: str, value: Any) -> None:
    (part,) = Reader().parts({"instruction": ASK, column: value}, "here")
    assert part.answers == (json.dumps(value),)


@pytest.mark.parametrize(
    ("text", "label"),
    [("sms", "label"), ("headline", "is_sarcastic"), ("review", "stars"), ("claim", "verdict"), ("text", "category")],
)
def test_a_text_and_a_class_of_unusual_names(text: str, label: str) -> None:
    assert first({text: ASK, label: 1}) == (ASK, "", "1")
    assert first({text: ASK, label: "spam"}) == (ASK, "", "spam")


def test_two_texts_and_whether_they_are_alike() -> None:
    assert first({"question1": ASK, "question2": MORE, "is_duplicate": 0}) == (ASK, MORE, "0")


def test_a_pair_of_languages_within_a_column() -> None:
    assert first({"translation": {"en": ASK, "de": TELL}}) == (ASK, "", TELL)


def test_the_passage_of_a_question_is_its_context() -> None:
    assert first({"passage": MORE, "question": ASK, "answer": True}) == (ASK, MORE, "true")


def test_usual_names_and_what_a_template_rendered_come_first() -> None:
    assert (
        first(
            {
                "source": "web crawl",
                "target": "x",
                "messages": [{"role": "user", "content": ASK}, {"role": "assistant", "content": TELL}],
            }
        )[2]
        == TELL
    )
    assert first({"source": "web", "instruction": ASK, "output": TELL, "category": "qa"}) == (ASK, "", TELL)
    assert first({"text": f"### Human: {ASK}### Assistant: {TELL}", "category": "qa"}) == (ASK, "", TELL)
    whole = first({"prompt": ASK, "text": f"{ASK} {TELL}"})  # the row once more, and no answer
    assert whole[0] != ASK


@pytest.mark.parametrize(
    "row", [{"words": ASK, "letters": TELL}, {"num_prompt": 3, "answer_id": 4}, {"user_id": "a", "reply_url": "b"}]
)
def test_names_that_say_nothing_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no known form"):
        first(row)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("nl,cmd\nlist all files,ls\nshow the date,date\n", "csv"),
        ("en\tfr\nlist all files\tls\nshow the date\tdate\n", "tsv"),
        ('{"source": ["a b", "c d"], "target": ["e f", "g h"]}', "list"),
        ('{"nl": "a b", "cmd": "c d"}\n{"nl": "e f", "cmd": "g h"}\n', "lines"),
        ('{"translation": {"en": "a b", "de": "c d"}}\n{"translation": {"en": "e f", "de": "g h"}}\n', "lines"),
    ],
)
def test_files_of_such_columns(content: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text(content)
    rows = read(file_source(path))
    found = [Reader().parts(record.row, record.place) for record in rows if record.broken is None]
    assert rows.kind == kind
    assert sum(map(len, found)) == 2


def test_a_sentence_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("the user may ask a question here,and the answer is said there\na,b\n")
    with pytest.raises(UserError, match="neither JSON nor a header"):
        list(read(file_source(path)))
