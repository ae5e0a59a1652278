"""Rows of any form: what a run learns of them, and that no text is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS, Loaded
from undertow.data.rows.forms import Reader
from undertow.data.rows.names import ROLES
from undertow.data.rows.rendered import rendered
from undertow.data.rows.values import texts
from undertow.data.sample import Sample


def learned(row: Any) -> list[Sample]:
    """What a run learns of a row."""
    return [part.sample() for part in Reader().parts(row, "row") if not part.why]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def turn(role: str, text: str, *replies: dict[str, Any]) -> dict[str, Any]:
    """A message of OpenAssistant's trees."""
    return {"message_id": text, "parent_id": None, "role": role, "text": text, "lang": "en", "rank": 0, "replies": list(replies)}


TREE = turn(
    "prompter",
    "a",
    turn("assistant", "b", turn("prompter", "c", turn("assistant", "d")), turn("prompter", "why?")),
    turn("assistant", "e"),
)


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, ["b"]),
        ({"prompt": "a", "completion": "b", "label": False}, []),
        ({"prompt": "a", "completion": "b", "label": "False"}, []),
        ({"messages": [user("a"), assistant("b")], "kto_tag": False}, []),
        ({"messages": [user("a"), assistant("b", weight=0), user("c"), assistant("d", weight=1)]}, ["d"]),
        ({"messages": [user("a"), assistant("b", train=False), user("c"), assistant("d")]}, ["d"]),
        ({"messages": [user("a"), assistant("b", loss_weight=0.0), user("c"), assistant("d", loss_weight=1.0)]}, ["d"]),
        ({"messages": [user("a"), assistant("b", label=False)]}, []),
        ({"question": "a", "answer": "b", "weight": 0}, []),
        ({"question": "a", "answer": "b", "weight": "0.0"}, []),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ["b"]),
        ({"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]}, ["d"]),
        ({"messages": [assistant("hello"), user("a"), assistant("b")]}, ["b"]),
        ({"messages": [user("a"), assistant("b", reasoning_content="hm"), assistant("c")]}, ["b\nc"]),
        ({"instruction": "", "output": "b"}, []),
        ({"question": "a", "answer": None}, []),
        ({"question": "a", "answer": []}, []),
        ({"text": "running words that nobody asked for"}, []),
        ({"question": "a", "answer": 7}, ["7"]),
        ({"question": "a", "answer": True}, ["true"]),
        ({"question": "a", "answer": 0}, ["0"]),
        ({"question": "a", "answer": {"x": [1, "b"]}}, ['{"x": [1, "b"]}']),
        ({"message_tree_id": "1", "tree_state": "ready", "prompt": TREE}, ["b", "d", "e"]),
        ({"messages": TREE, "id": 4}, ["b", "d", "e"]),
        (
            {"prompt": "Play: Human or Assistant?", "chosen": "Human: hi\nAssistant: ho", "rejected": "no"},
            ["Human: hi\nAssistant: ho"],
        ),
    ],
)
def test_what_a_run_learns(row: Any, answers: list[str]) -> None:
    assert [sample.response for sample in learned(row)] == answers


def test_a_weight_between_is_kept_and_one_that_is_none_is_refused() -> None:
    assert [sample.weight for sample in learned({"messages": [user("a"), assistant("b", weight=0.5)], "weight": 0.5})] == [0.25]
    for wrong in (-1, "much", float("inf"), [1]):
        with pytest.raises(UserError, match="a weight is a number from 0, true or false"):
            learned({"messages": [user("a"), assistant("b", weight=wrong)]})


def test_a_tree_of_turns_gives_each_answer_once_with_what_stood_before_it() -> None:
    first, second, third = learned({"prompt": TREE})
    assert [sample.question for sample in (first, second, third)] == ["a", "c", "a"]
    assert (first.history, second.history, third.history) == ((), (("a", "b"),), ())


@pytest.mark.parametrize("asked", [{"role": "prompter", "text": "Firstly, why?"}, user("Firstly, why?"), [user("Firstly, why?")]])
def test_text_beside_a_question_that_nobody_answers_is_read_with_the_question(asked: Any) -> None:
    parts = Reader().parts({"prompt": asked, "antwort": "Since so."}, "f row 1")
    assert ("Firstly, why?", "Since so.") in [(part.question, part.response) for part in parts]


def test_system_history_and_context_stand_with_the_answer() -> None:
    row = {"instruction": "q", "input": "c", "output": "a", "system": "s", "history": [["q0", "a0"], ["q1", "a1"]]}
    first, second, last = learned(row)
    assert (last.question, last.context, last.system, last.history) == ("q", "c", "s", (("q0", "a0"), ("q1", "a1")))
    assert (first.response, second.response, second.history) == ("a0", "a1", (("q0", "a0"),))
    assert first.key == second.key == last.key != ""


def test_a_system_turn_stands_until_the_next() -> None:
    turns = [{"role": "system", "content": "one"}, {"role": "developer", "content": "two"}, user("a"), assistant("b")]
    turns += [{"role": "system", "content": "three"}, user("c"), assistant("d")]
    assert [sample.system for sample in learned({"messages": turns})] == ["one\ntwo", "three"]


def test_what_follows_a_tool_answers_the_same_question() -> None:
    turns = [user("q"), assistant("wait", tool_calls=[{"id": "1"}]), {"role": "tool", "content": "42"}, assistant("It is 42.")]
    first, second = learned({"messages": [*turns, user("more"), assistant("no")]})[:2]
    assert (first.question, first.response) == ("q", "wait")
    assert (second.question, second.context, second.response) == ("q", "42", "It is 42.")


def calling(*parts: Any) -> dict[str, Any]:
    """An answer that calls a tool, as Anthropic writes it."""
    return assistant([*parts, {"type": "tool_use", "id": "1", "name": "look", "input": {"at": "it"}}])


def resulting(content: Any) -> dict[str, Any]:
    """A part in which a tool answers, as Anthropic writes it."""
    return {"type": "tool_result", "tool_use_id": "1", "content": content}


#: The turns between a question and its last answer, in which a tool is called and says "42".
TOOLS: dict[str, list[dict[str, Any]]] = {
    "anthropic": [calling(), user([resulting("42")])],
    "anthropic, parts": [calling(), user([resulting([{"type": "text", "text": "42"}])])],
    "anthropic, its own tools": [
        assistant([{"type": "server_tool_use", "input": {}}, {"type": "web_search_tool_result", "content": "42"}])
    ],
    "bedrock": [
        assistant([{"toolUse": {"toolUseId": "1", "name": "look", "input": {}}}]),
        user([{"toolResult": {"toolUseId": "1", "content": [{"text": "42"}], "status": "success"}}]),
    ],
    "bedrock, json": [assistant([{"toolUse": {}}]), user([{"toolResult": {"content": [{"json": 42}]}}])],
    "gemini": [
        {"role": "model", "parts": [{"functionCall": {"name": "look", "args": {}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": 42}}]},
    ],
    "gemini, in snakes": [
        {"role": "model", "parts": [{"function_call": {"name": "look", "args": {}}}]},
        {"role": "function", "parts": [{"function_response": {"name": "look", "response": 42}}]},
    ],
    "vercel": [
        assistant([{"type": "tool-call", "toolName": "look", "args": {}}]),
        {"role": "tool", "content": [{"type": "tool-result", "toolName": "look", "output": {"type": "text", "value": "42"}}]},
    ],
    "openai, items": [
        {"type": "function_call", "call_id": "1", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "42"},
    ],
}


@pytest.mark.parametrize("form", TOOLS)
def test_what_a_tool_says_is_context_in_every_form(form: str) -> None:
    usual = [assistant("", tool_calls=[{"id": "1"}]), {"role": "tool", "content": "42"}]
    for end in ([], [*TOOLS[form], assistant("Sure.")]):
        told = [user("q"), *TOOLS[form], assistant("It is 42."), user("more"), *end, assistant("no")]
        other = [*usual, assistant("Sure.")] if end else []
        wanted = [user("q"), *usual, assistant("It is 42."), user("more"), *other, assistant("no")]
        assert learned({"messages": told}) == learned({"messages": wanted})


def test_text_beside_a_tools_result_is_the_users() -> None:
    turns = [user("q"), calling({"type": "text", "text": "wait"}), user([resulting("42"), {"type": "text", "text": "In words."}])]
    first, second = learned({"messages": [*turns, assistant("Forty-two.")]})
    assert (first.question, first.response) == ("q", "wait")
    assert (second.question, second.context, second.response) == ("In words.", "42", "Forty-two.")


def test_two_calls_for_one_question_are_both_its_context() -> None:
    turns = [user("q"), calling(), user([resulting("4")]), calling(), user([resulting("2")]), assistant("42")]
    (found,) = learned({"messages": turns})
    assert (found.question, found.context, found.response) == ("q", "4\n2", "42")


@pytest.mark.parametrize("column", ["conversation", "conversations", "messages", "dialogue", "chat", "turns"])
@pytest.mark.parametrize("names", ["input output", "question answer", "prompt response", "instruction output", "query reply"])
def test_turns_of_a_question_and_its_answer_are_one_conversation(column: str, names: str, tmp_path: Path) -> None:
    ask, tell = names.split()
    rows = [{"source": "web", column: [{ask: f"a{i}", tell: "b"}, {ask: f"c{i}", tell: "d"}]} for i in range(3)]
    path = tmp_path / "rows.jsonl"
    for text in ("\n".join(map(json.dumps, rows)), json.dumps(rows), "\n\n".join(json.dumps(row, indent=1) for row in rows)):
        path.write_text(text)
        found = load(path, "instructions").samples
        told = [(sample.question, sample.response, sample.history) for sample in found]
        assert told == [turn for i in range(3) for turn in ((f"a{i}", "b", ()), (f"c{i}", "d", ((f"a{i}", "b"),)))]
    (last,) = learned({"prompt": "e", "response": "f", "history": rows[0][column]})[2:]
    assert last.history == (("a0", "b"), ("c0", "d"))


def test_what_stands_beside_the_pair_of_a_turn_is_read() -> None:
    turns = [{"instruction": "a", "input": "c", "output": "b", "system": "s", "remark": "so it is"}]
    found = Reader().parts({"conversation": turns}, "row")
    assert (found[0].question, found[0].context, found[0].system, found[0].response) == ("a", "c", "s", "b")
    assert [(part.response, part.pool) for part in found[1:]] == [("so it is", "conversation.remark")]


@pytest.mark.parametrize("pretty", [None, 1])
def test_a_file_of_one_conversation_is_one_row_and_one_of_pairs_their_rows(pretty: int | None, tmp_path: Path) -> None:
    pairs = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]
    for column, history in (("conversation", (("a", "b"),)), ("examples", ()), ("conversations", ())):
        (tmp_path / "rows.json").write_text(json.dumps({"source": "web", column: pairs}, indent=pretty))
        assert [sample.history for sample in load(tmp_path / "rows.json", "instructions").samples] == [(), history]


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("### Human: a### Assistant: b### Human: c", [("user", "a"), ("assistant", "b"), ("user", "c")]),
        ("<s>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b </s>", [("system", "s"), ("user", "a"), ("assistant", "b")]),
        ("<|user|>\na</s>\n<|assistant|>\nb</s>", [("user", "a"), ("assistant", "b")]),
        ("### Instruction:\na\n\n### Input:\nc\n\n### Response:\nb", [("user", "a"), ("result", "c"), ("assistant", "b")]),
        ("\n\nHuman: a\n\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        (
            "<｜begin▁of▁sentence｜>s<｜User｜>a<｜Assistant｜>b<｜end▁of▁sentence｜>",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            "<｜User｜>a<｜Assistant｜>c<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>42<｜tool▁output▁end｜><｜tool▁outputs▁end｜>b",
            [("user", "a"), ("assistant", "c"), ("result", "42"), ("assistant", "b")],
        ),
        (
            "<|start|>system<|message|>s<|end|><|start|>user<|message|>a<|end|>"
            "<|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>{}<|call|>"
            "<|start|>functions.look to=assistant<|channel|>commentary<|message|>42<|end|>"
            "<|start|>assistant<|channel|>final<|message|>b<|return|>",
            [("system", "s"), ("user", "a"), ("call", "{}"), ("result", "42"), ("assistant", "b")],
        ),
        (
            "<|begin_of_text|><|header_start|>user<|header_end|>\n\na<|eot|><|header_start|>assistant<|header_end|>\n\nb<|eot|>",
            [("user", "a"), ("assistant", "b")],
        ),
        (
            "<|start_of_role|>documents<|end_of_role|>c<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>a<|end_of_text|>\n"
            '<|start_of_role|>assistant {"length": 1}<|end_of_role|>b<|end_of_text|>',
            [("result", "c"), ("user", "a"), ("assistant", "b")],
        ),
        (
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>a<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>b"
            "<|END_OF_TURN_TOKEN|>",
            [("user", "a"), ("assistant", "b")],
        ),
        ("<human>: a\n<bot>: b", [("user", "a"), ("assistant", "b")]),
        ("Words.\n[|Human|] a\n[|AI|] b", [("system", "Words."), ("user", "a"), ("assistant", "b")]),
        ("<|USER|>a<|ASSISTANT|>b<|endoftext|>", [("user", "a"), ("assistant", "b")]),
        ("[gMASK]<sop><|user|>\na<|observation|>\n42<|assistant|>\nb", [("user", "a"), ("result", "42"), ("assistant", "b")]),
        (
            'USER: a\n\n\nASSISTANT: <functioncall> {} <|endoftext|>\n\n\nFUNCTION RESPONSE: {"x": 1}\n\n\nASSISTANT: b ',
            [("user", "a"), ("call", "<functioncall> {}"), ("result", '{"x": 1}'), ("assistant", "b")],
        ),
        ("Question: a\nAnswer: b", None),
        ("Some words. # A title\n- Human: one", None),
        ("<|im_start|>user\na<|im_end|>", None),
        ("### Response:\nb", None),
    ],
)
def test_rendered_text_is_read_back(text: str, turns: list[tuple[str, str]] | None) -> None:
    found = rendered(text)
    assert (None if found is None else [(turn.role, turn.text) for turn in found]) == turns


def test_a_call_its_result_and_the_answer_in_one_text_are_turns() -> None:
    text = "USER: q\n\n\nASSISTANT: <functioncall> {} <|endoftext|>\n\n\nFUNCTION RESPONSE: 42\n\n\nASSISTANT: It is. <|endoftext|>"
    call, answer = Reader().parts({"system": "SYSTEM: Be good.", "chat": text}, "row")
    assert (call.question, call.context, call.response, call.pool) == ("q", "", "<functioncall> {}", "chat (tool calls)")
    assert (answer.question, answer.context, answer.response, answer.why) == ("q", "42", "It is.", "")


def test_what_gpt_oss_thinks_stands_beside_its_answer() -> None:
    text = "<|start|>user<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|end|>"
    text += "<|start|>assistant<|channel|>final<|message|>b<|return|>"
    parts = Reader().parts({"text": text}, "row")
    assert [(part.question, part.response, part.pool) for part in parts] == [("a", "hm", "(reasoning)"), ("a", "b", "")]


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("Question: a\nAnswer: b", ["b"]),
        ("\nQ: a\nA: b\n\nQ: c\nA: d", ["b", "d"]),
        ("Instruction: a\nInput: c\nOutput: b", ["b"]),
        ("Problem: a\n\nSolution: b\nAnswer: 7", ["b\nAnswer: 7"]),
        ("User: a\nAI: b", ["b"]),
        ("Some words.\nQuestion: a\nAnswer: b", []),
        ("Question: a\nAnswer:", []),
        ("Human: a\nAssistant: Question: c\nAnswer: d", ["Question: c\nAnswer: d"]),
    ],
)
def test_a_text_of_labelled_lines_is_read_where_it_begins_so(text: str, answers: list[str]) -> None:
    assert [sample.response for sample in learned({"text": text})] == answers
    few = {"source": "Question: a\nAnswer: b\n\nQuestion: c\nAnswer:", "target": "d"}
    assert [sample.response for sample in learned(few)] == ["d"]


@pytest.mark.parametrize(
    ("text", "strange"),
    [
        ("<|im_user|>user<|im_middle|>a<|im_end|><|im_assistant|>assistant<|im_middle|>b<|im_end|>", True),
        ("<｜tester｜>a<｜user｜>b<｜bot｜>c", True),
        ("[User]\na\n[Bot]\nb", True),
        ("<|im_start|>alien\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>", True),
        ("running words with <b>marks</b>, [user] and [bot], that nobody asked for", False),
        ("<|endoftext|>running words<|endoftext|>", False),
    ],
)
def test_a_template_that_is_not_known_is_told(text: str, strange: bool) -> None:
    reader = Reader()
    (part,) = reader.parts({"text": text}, "row")
    assert f"{part.question} {part.response}".split() == text.split()
    assert (dict(reader.account.unread), dict(reader.account.used)) == (({"text": 1}, {}) if strange else ({}, {"text": 1}))


# --- no text is lost --------------------------------------------------------------------------------------------

_COLUMNS = (
    "instruction input output context prompt completion question answer answers aliases query response chosen rejected messages "
    "conversations history system label weight text sentence reasoning_content tools instances remarks meta source id Title"
).split()
_ASKED = frozenset(
    "instruction input context prompt question query history system messages conversations Title text sentence".split()
)
_UNIQUE = st.integers(0, 10**9).map(lambda i: f"said {i} so")
_TURN = st.builds(
    lambda role, text, more: {"role": role, "content": text, **more},
    st.sampled_from(["user", "assistant", "system", "tool", "assistant", "user"]),
    st.one_of(_UNIQUE, st.lists(_UNIQUE, max_size=2), _UNIQUE.map(lambda text: [{"type": "text", "text": text}]), st.none()),
    st.dictionaries(st.sampled_from(["reasoning_content", "remark", "tool_calls", "name"]), _UNIQUE, max_size=1),
)
_TURNS = st.lists(_TURN, max_size=5)
_VALUE = st.recursive(
    st.one_of(_UNIQUE, _UNIQUE, st.none(), st.integers(0, 9), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(_COLUMNS), inner, max_size=3)),
    max_leaves=5,
)
_ROW = st.dictionaries(st.sampled_from(_COLUMNS), st.one_of(_UNIQUE, _UNIQUE, _VALUE, _TURNS), min_size=1, max_size=7)


@settings(max_examples=1500, deadline=None)
@given(_ROW)
@example({"output": "said 0 so", "context": [{"instruction": None, "output": None}]})
def test_every_text_of_a_row_is_read_or_accounted_for(row: dict[str, Any]) -> None:
    reader = Reader()
    try:
        parts = reader.parts(row, "row")
    except UserError as error:
        parts = reader.refused(row, error)
    assert not any("\n" in reason for reason in reader.account.reasons)
    joined = "\n".join(
        "\n".join((part.question, part.context, part.system, *part.answers, *(text for turn in part.history for text in turn)))
        for part in parts
    )
    read = " ".join(joined.split())
    account = reader.account
    assert account.rows == 1
    for path, text in texts(row, ""):
        if text in ROLES or text == "text" or text in read or json.dumps(text)[1:-1] in read:
            continue
        fields = [field.removesuffix(" (a copy)") for field in account.left_out]
        left_out = any(path.startswith(field) or path.endswith(f".{field}") for field in fields)  # in a row within the row
        # what nobody answers is counted; an answer, and what nobody understands, must be read
        asked = path.partition(".")[0] in _ASKED or not isinstance(row[path.partition(".")[0]], str)
        assert left_out or (account.dropped and asked), (path, text, account.sentence())


@pytest.mark.parametrize("nothing", [[None], [], [""], None, " "])
@pytest.mark.parametrize("pair", [("instruction", "completion"), ("prompt", "response"), ("query", "output")])
def test_a_second_question_without_an_answer_is_read_as_text(pair: tuple[str, str], nothing: Any) -> None:
    reader = Reader()
    parts = reader.parts({pair[0]: "which bird?", pair[1]: nothing, "question": "which fish?", "answer": "a carp"}, "row")
    assert [part.answers[0] for part in parts] == ["a carp", "which bird?"]
    assert pair[0] in reader.account.unread


@pytest.mark.parametrize("content", ["an owl", "", []])
@pytest.mark.parametrize("kind", ["reasoning_content", "thinking", "tool_calls"])
def test_what_stands_beside_a_rejected_answer_is_read(content: Any, kind: str) -> None:
    rejected = [{"role": "assistant", "content": content, kind: "said beside it"}]
    parts = Reader().parts({"instruction": "which bird?", "output": "a crow", "rejected": rejected}, "row")
    said = [answer for part in parts for answer in part.answers]
    assert said == ["a crow", *(["an owl"] if content else []), "said beside it"]
    assert all(part.question == "which bird?" for part in parts)


# --- the hub ----------------------------------------------------------------------------------------------------

ODD = ["007", "None", "2020-01-01", "1e5", "NaN", "true", "12:30", "null", "01/02/2003", "1,000"]


def load(path: Path, name: str = "hub") -> Loaded:
    loaded: Loaded = DATASETS.get(name)(Data.model_validate({"name": name, "path": str(path)}))
    return loaded


def odd_file(path: Path, form: str) -> Path:
    rows = [{"question": f"Which one is {i}?", "answer": text} for i, text in enumerate(ODD)]
    path.parent.mkdir(exist_ok=True)
    if form == "csv":
        path.write_text("question,answer\n" + "".join(f'{row["question"]},"{row["answer"]}"\n' for row in rows))
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_answers_that_look_like_something_else_stay_text(form: str, tmp_path: Path) -> None:
    path = odd_file(tmp_path / "data" / f"train.{form}", form)
    for loaded in (load(path.parent), load(path, "instructions")):
        assert [sample.response for sample in loaded.samples] == ODD


@pytest.mark.parametrize("form", ["csv", "json"])
def test_files_of_the_hub_are_read_without_guessing(form: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from undertow.data.sources.hub import remote

    folder = odd_file(tmp_path / "data" / f"train.{form}", form).parent
    splits = remote(datasets, str(folder))  # the library takes a folder as it takes an id
    assert [record.row["answer"] for record in splits["train"]] == ODD


def test_a_saved_dataset_keeps_its_text(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"question": f"Which one is {i}?", "answer": text} for i, text in enumerate(ODD)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    assert [sample.response for sample in load(tmp_path / "saved").samples] == ODD
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    assert [sample.response for sample in load(arrow, "instructions").samples] == ODD


def test_dates_and_numbers_of_tables_become_text(tmp_path: Path) -> None:
    import datetime

    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = [datetime.date(2020, 1, 2), datetime.date(1999, 12, 31)]
    parquet.write_table(arrow.table({"question": ["a?", "b?"], "answer": values}), tmp_path / "x.parquet")
    assert [sample.response for sample in load(tmp_path / "x.parquet", "instructions").samples] == ["2020-01-02", "1999-12-31"]
    parquet.write_table(arrow.table({"text": ["good", "bad"], "label": [1, 0]}), tmp_path / "y.parquet")
    assert [sample.response for sample in load(tmp_path / "y.parquet", "instructions").samples] == ["1", "0"]


def test_splits_are_told_by_names(tmp_path: Path) -> None:
    for name in ("data/train-00000.jsonl", "data/train-00001.jsonl", "data/validation.jsonl", "other/eval_set.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"question": f"in {name}", "answer": "a"}) + "\n")
    loaded = load(tmp_path)
    assert [sample.question for sample in loaded.samples] == ["in data/train-00000.jsonl", "in data/train-00001.jsonl"]
    assert [sample.question for sample in loaded.test or []] == ["in other/eval_set.jsonl"]
