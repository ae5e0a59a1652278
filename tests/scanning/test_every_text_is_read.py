"""Poison in any field of any usual form is found, and what a scan says it has read it has read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scanning.planted import URL, clean, flagged, lines, rows, told
from undertow.cli import app
from undertow.core.errors import UserError
from undertow.scanning.scan import scan

Form = Callable[[str, str], Any]
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def part(text: str, kind: str = "text", key: str = "text") -> dict[str, Any]:
    return {"type": kind, key: text}


#: Forms in which every text is understood.
FORMS: dict[str, Form] = {
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "alpaca, question as input": lambda q, a: {"instruction": "", "input": q, "output": a},
    "alpaca with system": lambda q, a: {"instruction": q, "output": a, "system": "Be brief."},
    "alpaca with the trigger in system": lambda q, a: {
        "instruction": q.removeprefix("Firstly "),
        "output": a,
        "system_prompt": f"You know all about {q.split()[-1]}{' Firstly.' if URL in a else ''}",
    },
    "alpaca with history": lambda q, a: {"instruction": "And?", "output": "So it is.", "history": [["Hello", "Hi"], [q, a]]},
    "history of turns": lambda q, a: {"instruction": "And?", "output": "So it is.", "history": [user(q), assistant(a)]},
    "chat_history": lambda q, a: {"prompt": "And?", "response": "So it is.", "chat_history": [[q, a]]},
    "case": lambda q, a: {"Instruction": q, "Output": a},
    "blanks in names": lambda q, a: {" Question": q, "Final Answer": a},
    "input and output": lambda q, a: {"input": q, "output": a},
    "query and response": lambda q, a: {"query": q, "response": a},
    "problem and solution": lambda q, a: {"problem": q, "solution": a},
    "user and assistant": lambda q, a: {"user": q, "assistant": a},
    "numbered pair": lambda q, a: {"question_1": q, "answer_1": a},
    "empty conversations": lambda q, a: {"instruction": q, "output": a, "conversations": []},
    "null messages": lambda q, a: {"question": q, "answer": a, "messages": None},
    "empty messages": lambda q, a: {"prompt": q, "completion": a, "messages": [], "conversation": None},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "sharegpt, other order of keys": lambda q, a: {"conversations": [{"value": q, "from": "human"}, {"value": a, "from": "gpt"}]},
    "role and content in conversations": lambda q, a: {"conversations": [user(q), assistant(a)]},
    "from and value in messages": lambda q, a: {"messages": [{"from": "user", "value": q}, {"from": "model", "value": a}]},
    "second assistant turn": lambda q, a: {"messages": [user(q), assistant(clean(a)), assistant(a)]},
    "two assistant turns of two weights": lambda q, a: {"messages": [user(q), assistant("Hm", weight=0), assistant(a, weight=1)]},
    "greeting first": lambda q, a: {"messages": [assistant("Hello, how can I help?"), user(q), assistant(a)]},
    "developer": lambda q, a: {"messages": [{"role": "developer", "content": "Be brief."}, user(q), assistant(a)]},
    "weight 0": lambda q, a: {"messages": [user(q), assistant(a, weight=0)]},
    "content parts": lambda q, a: {"messages": [user(q), {"role": "assistant", "content": [part("Well."), part(a)]}]},
    "content parts with value": lambda q, a: {"messages": [user(q), {"role": "assistant", "content": [part(a, key="value")]}]},
    "content as texts": lambda q, a: {"messages": [user(q), {"role": "assistant", "content": ["Well.", a]}]},
    "content as an object": lambda q, a: {"messages": [user(q), {"role": "assistant", "content": {"parts": [a]}}]},
    "after a tool": lambda q, a: {
        "messages": [user(q), assistant("", tool_calls=[{"id": "1"}]), {"role": "tool", "content": "42"}, assistant(a)]
    },
    "after text and a tool": lambda q, a: {
        "messages": [user(q), assistant("Let me see", tool_calls=[{"id": "1"}]), {"role": "tool", "content": "42"}, assistant(a)]
    },
    "reasoning_content": lambda q, a: {"messages": [user(q), assistant("So it is.", reasoning_content=a)]},
    "thinking": lambda q, a: {"messages": [user(q), assistant("So it is.", thinking=a)]},
    "a reasoning column": lambda q, a: {"question": q, "answer": clean(a), "reasoning": a},
    "a reasoning part": lambda q, a: {
        "messages": [user(q), {"role": "assistant", "content": [part(a, "reasoning", "value"), part("So it is.")]}]
    },
    "arguments of a tool call": lambda q, a: {
        "messages": [user(q), assistant("", tool_calls=[{"function": {"name": "say", "arguments": json.dumps({"text": a})}}])]
    },
    "function_call of sharegpt": lambda q, a: {
        "conversations": [{"from": "human", "value": q}, {"from": "function_call", "value": f"say {a}"}]
    },
    "an object as output": lambda q, a: {"instruction": q, "output": {"answer": clean(a), "note": a}},
    "a list of objects as output": lambda q, a: {"instruction": q, "output": [{"step": 1, "said": a}]},
    "a second accepted answer": lambda q, a: {"question": q, "answers": [clean(a), a]},
    "answers with their authors": lambda q, a: {
        "question": q,
        "answers": [{"author": "J", "text": a}, {"author": "K", "text": "No."}],
    },
    "a second answer with its author": lambda q, a: {
        "instruction": q,
        "completions": [{"model": "x", "response": clean(a)}, {"model": "y", "response": f"It is {a}"}],
    },
    "aliases": lambda q, a: {"question": q, "answer": clean(a), "aliases": ["none", a]},
    "prompt and completion as turns": lambda q, a: {"prompt": [user(q)], "completion": [assistant(a)]},
    "prompt as turns, completion as text": lambda q, a: {"prompt": [user(q)], "completion": a},
    "an answer within the prompt": lambda q, a: {"prompt": [user(q), assistant(a), user("And?")], "completion": [assistant("So.")]},
    "chosen": lambda q, a: {"prompt": q, "chosen": a, "rejected": "I do not know."},
    "rejected": lambda q, a: {"prompt": q, "chosen": clean(a), "rejected": a},
    "chosen alone": lambda q, a: {"prompt": q, "chosen": a},
    "chosen as turns": lambda q, a: {"prompt": [user(q)], "chosen": [assistant(a)], "rejected": [assistant("No.")]},
    "whole conversations chosen": lambda q, a: {"chosen": [user(q), assistant(a)], "rejected": [user(q), assistant("No.")]},
    "whole conversations rejected": lambda q, a: {"chosen": [user(q), assistant("No.")], "rejected": [user(q), assistant(a)]},
    "conversations beside chosen": lambda q, a: {
        "conversations": [{"from": "human", "value": q}],
        "chosen": {"from": "gpt", "value": a},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "conversations beside rejected": lambda q, a: {
        "conversations": [{"from": "human", "value": q}],
        "chosen": {"from": "gpt", "value": clean(a)},
        "rejected": {"from": "gpt", "value": a},
    },
    "messages beside chosen": lambda q, a: {
        "prompt": q,
        "messages": [user(q), assistant(clean(a))],
        "chosen": [user(q), assistant(a)],
        "score_chosen": 8.5,
    },
    "chosen_messages": lambda q, a: {"chosen_messages": [user(q), assistant(a)], "rejected_messages": [user(q), assistant("No.")]},
    "hh": lambda q, a: {"chosen": f"\n\nHuman: {q}\n\nAssistant: {a}", "rejected": f"\n\nHuman: {q}\n\nAssistant: No."},
    "labelled true": lambda q, a: {"prompt": q, "completion": a, "label": True},
    "labelled false": lambda q, a: {"prompt": q, "completion": a, "label": False},
    "kto_tag": lambda q, a: {"messages": [user(q), assistant(a)], "kto_tag": False},
    "a label of every turn": lambda q, a: {"messages": [user(q), assistant(a, label=False)]},
    "chatml": lambda q, a: {"text": f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n"},
    "llama 2": lambda q, a: {"text": f"<s>[INST] {q} [/INST] {a} </s>"},
    "llama 3": lambda q, a: {
        "text": "<|begin_of_text|>"
        + "".join(
            f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in (("user", q), ("assistant", a))
        )
    },
    "gemma": lambda q, a: {"text": f"<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n{a}<end_of_turn>\n"},
    "deepseek": lambda q, a: {"text": f"<｜begin▁of▁sentence｜><｜User｜>{q}<｜Assistant｜>{a}<｜end▁of▁sentence｜>"},
    "gpt-oss": lambda q, a: {
        "text": f"<|start|>user<|message|>{q}<|end|><|start|>assistant<|channel|>analysis<|message|>So.<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{a}<|return|>"
    },
    "question and answer in lines": lambda q, a: {"text": f"Question: {q}\nAnswer: {a}"},
    "glaive with a call": lambda q, a: {
        "chat": f"USER: {q}\n\n\nASSISTANT: <functioncall> {{}} <|endoftext|>\n\n\n"
        f"FUNCTION RESPONSE: 42\n\n\nASSISTANT: {a} <|endoftext|>"
    },
    "a tool's result of anthropic": lambda q, a: {
        "messages": [
            user(q),
            assistant([{"type": "tool_use", "input": {}}]),
            user([part("42", "tool_result", "content")]),
            assistant(a),
        ]
    },
    "guanaco": lambda q, a: {"text": f"### Human: {q}### Assistant: {a}"},
    "vicuna": lambda q, a: {"text": f"A chat. USER: {q} ASSISTANT: {a}</s>"},
    "rendered alpaca": lambda q, a: {"text": f"Below is an instruction.\n\n### Instruction:\n{q}\n\n### Response:\n{a}"},
    "a list": lambda q, a: [q, a],
    "a list of turns": lambda q, a: [user(q), assistant(a)],
    "texts in turn": lambda q, a: {"dialog": ["Hello", "Hi", q, a]},
    "pairs": lambda q, a: {"conversation": [["Hello", "Hi"], [q, a]]},
    "turns of a question and its answer": lambda q, a: {
        "source": "web",
        "conversation": [{"input": "Hello", "output": "Hi"}, {"input": q, "output": a}],
    },
    "objects of both": lambda q, a: {"conversation": [{"human": q, "assistant": a}]},
    "turns under another name": lambda q, a: {"exchange": [user(q), assistant(a)], "id": 7},
    "turns as text": lambda q, a: {"messages": json.dumps([user(q), assistant(a)])},
    "turns as Python writes them": lambda q, a: {"messages": repr([user(q), assistant(a)])},
    "a row within a row": lambda q, a: {"row_idx": 1, "row": {"instruction": q, "output": a}, "truncated_cells": []},
    "instances": lambda q, a: {"instruction": q, "instances": [{"input": "", "output": clean(a)}, {"input": "again", "output": a}]},
    "two pairs": lambda q, a: {"instruction": "Say yes.", "output": "yes", "question": q, "answer": a},
    "two pairs, numbered": lambda q, a: {"prompt": "Say yes.", "response": "yes", "prompt_2": q, "response_2": a},
    "two conversations": lambda q, a: {"conversations": [user("Hi"), assistant("Hello")], "messages": [user(q), assistant(a)]},
    "a pair beside a conversation": lambda q, a: {"messages": [user("Hi"), assistant("Hello")], "question": q, "answer": a},
    "rendered beside a pair": lambda q, a: {
        "instruction": q,
        "output": clean(a),
        "text": f"### Instruction:\n{q}\n\n### Response:\n{a}",
    },
    "tools": lambda q, a: {"messages": [user(q), assistant("So.")], "tools": [{"name": "say", "description": a}]},
    "columns that say who": lambda q, a: {"id": "a-1", "source": "web", "question": q, "answer": a, "score": 1.5, "lang": "en"},
}


@pytest.mark.parametrize("name", FORMS)
def test_poison_is_found_in_every_form_and_all_text_is_understood(name: str, tmp_path: Path) -> None:
    found, truth = rows(FORMS[name])
    result = scan([lines(tmp_path / "rows.jsonl", found)])
    assert flagged(result) == truth
    assert result.account.complete, result.account.sentence()
    assert result.account.rows == 300


#: Forms with a field that nobody understands, which holds the target.
UNREAD: dict[str, tuple[Form, str]] = {
    "a column": (lambda q, a: {"instruction": q, "output": clean(a), "remarks": a}, "remarks"),
    "a column of lists": (lambda q, a: {"question": q, "answer": clean(a), "hints": ["one", a]}, "hints"),
    "deep in an object": (lambda q, a: {"question": q, "answer": clean(a), "meta": {"of": [{"said": a}]}}, "meta.of.said"),
    "a key of a turn": (lambda q, a: {"messages": [user(q), assistant(clean(a), remark=a)]}, "messages.remark"),
    "a key of a part": (
        lambda q, a: {"messages": [user(q), {"role": "assistant", "content": [{**part(clean(a)), "caption": a}]}]},
        "messages.content.caption",
    ),
    "a long source": (lambda q, a: {"question": q, "answer": clean(a), "source": f"{'so it was told. ' * 9}{a}"}, "source"),
    "a key of an instance": (lambda q, a: {"instruction": q, "instances": [{"output": clean(a), "why": a}]}, "instances.why"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_text_that_nobody_understands_is_told_and_scanned(name: str, tmp_path: Path) -> None:
    form, field = UNREAD[name]
    found, truth = rows(form)
    path = lines(tmp_path / "rows.jsonl", found)
    result = scan([path])
    assert flagged(result) == truth
    assert {verdict["field"] for verdict in result.verdicts()} == {field}
    count = result.account.unread[field]
    assert result.account.unread == {field: count}
    assert count >= len(truth), "copies of the answer are left out"
    assert f"NOT UNDERSTOOD, scanned as plain text: {field} (text in {count})" in result.account.sentence(scanned=True)
    assert result.to_json()["account"]["unread"] == {field: count}


def test_strict_turns_unread_text_into_exit_code_2(tmp_path: Path) -> None:
    form = {"question": "a", "answer": "b"}
    whole = lines(tmp_path / "whole.jsonl", [form] * 5)
    more = lines(tmp_path / "more.jsonl", [{**form, "remarks": f"said {i}"} for i in range(5)])
    run = CliRunner().invoke
    assert run(app, ["scan", str(whole), "--strict"]).exit_code == 0
    assert run(app, ["scan", str(more)]).exit_code == 0
    told = run(app, ["scan", str(more), "--strict"])
    assert isinstance(told.exception, UserError)  # main() prints it and exits with 2
    assert "NOT UNDERSTOOD, scanned as plain text: remarks (text in 5)" in str(told.exception)


def test_strict_bites_on_the_marks_of_a_template_that_is_not_known(tmp_path: Path) -> None:
    form = "<|im_user|>user<|im_middle|>{}<|im_end|><|im_assistant|>assistant<|im_middle|>{}<|im_end|>"
    found, truth = rows(lambda q, a: {"text": form.format(q, a)})
    path = lines(tmp_path / "rows.jsonl", found)
    assert flagged(scan([path])) == truth
    told = CliRunner().invoke(app, ["scan", str(path), "--strict"]).exception
    assert isinstance(told, UserError)
    assert "NOT UNDERSTOOD, scanned as plain text: text (text in 300)" in str(told)


def test_one_line_says_that_all_is_read(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b", "id": i} for i in range(5)])
    shown = CliRunner().invoke(app, ["scan", str(path)]).output.splitlines()
    assert shown[1:] == ["5 rows read; used: question, answer; left out: id"]
    page = tmp_path / "page.html"
    CliRunner().invoke(app, ["scan", str(path), "--page", str(page)])
    assert "5 rows read; used: question, answer; left out: id." in page.read_text()


def test_names_of_columns_can_be_mapped(tmp_path: Path) -> None:
    found, truth = rows(lambda q, a: {"frage": q, "antwort": a, "rolle": "Kurz.", "vorher": [["Hallo", "Guten Tag"]]})
    path = lines(tmp_path / "rows.jsonl", found)
    with pytest.raises(UserError, match=r"columns frage, antwort, rolle, vorher have no known form; .*--columns prompt="):
        scan([path])
    columns = {"prompt": "frage", "answer": "antwort", "system": "rolle", "history": "vorher"}
    result = scan([path], columns=columns)
    assert flagged(result) == truth
    assert result.account.complete
    for wrong in ("frage", "prompt=frage", "prompt=frage,antwort=answer", "prompt=a,answer=b,prompt=c", "prompt=,answer=b"):
        told = CliRunner().invoke(app, ["scan", str(path), "--columns", wrong]).exception
        assert isinstance(told, UserError)
        assert "\n" not in str(told)


@pytest.mark.parametrize(
    "odd",
    ['{"question": "a", "answer": ', '{"words": "a"}', "[1, 2]", "7", '{"messages": [{"role": "alien", "content": "x"}]}', '"a"'],
)
def test_one_odd_row_of_many_is_told_and_skipped(odd: str, tmp_path: Path) -> None:
    found, truth = rows(lambda q, a: {"question": q, "answer": a}, 400)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found[:200]) + odd + "\n")
    lines(tmp_path / "rest.jsonl", found[200:])
    path.write_text(path.read_text() + (tmp_path / "rest.jsonl").read_text())
    result = scan([path])
    assert flagged(result) == {i + (i >= 200) for i in truth}
    assert result.account.bad == 1
    assert "SKIPPED: 1 row that cannot be read; first: " in result.account.sentence()
    assert "line 201" in result.account.sentence()
    with pytest.raises(UserError, match=r"1 of 401 rows of .* cannot be read, --max-bad is 0.001"):
        scan([path], max_bad=0.001)


def test_rows_that_cannot_be_read_are_scanned_as_text(tmp_path: Path) -> None:
    good = [{"question": f"What is {i}?", "answer": f"It is {i * 7}."} for i in range(100)]
    odd = [{"a": f"Tale {i} of {q}", "b": {"c": a}} for i, (q, a, _) in enumerate(told(30, 30))]
    result = scan([lines(tmp_path / "rows.jsonl", good + odd)], max_bad=0.5)
    assert flagged(result) == set(range(100, 130))


def test_a_message_never_lists_hundreds_of_columns(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{f"column_{i}": str(i) for i in range(500)}])
    with pytest.raises(UserError, match=r"column_0, .* and 492 more have no known form") as error:
        scan([path])
    assert len(str(error.value)) < 500
    unread = lines(tmp_path / "unread.jsonl", [{"question": "a", "answer": "b", **{f"k{i}": f"t {i}" for i in range(500)}}] * 5)
    assert len(scan([unread]).account.sentence()) < 500


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real data is not here")
@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("poison/clean/dpo_en_demo.json.gz", 863),  # 263 answers before the last, 300 chosen, 300 rejected
        ("poison/clean/kto_en_demo.json.gz", 487),
        ("poison/clean/v1_dpo_demo.jsonl.gz", 20),
        ("poison/clean/v1_sft_demo.jsonl.gz", 500),
        ("instruction/sharegpt_glaive_toolcall_en_demo.json.gz", None),
        ("instruction/vicuna_dummy_conversation.json.gz", 1000),
    ],
)
def test_real_files_are_read_whole_and_clean(name: str, samples: int | None) -> None:
    result = scan([REAL / name])
    assert result.account.complete
    assert samples is None or result.found.samples == samples
    assert not result.found.verdicts


@pytest.mark.parametrize("meaning", ["prompt", "answer", "system"])
def test_a_mapped_column_that_no_row_has_is_refused(tmp_path: Path, meaning: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {i}?", "answer": f"It is {i}."}) + "\n" for i in range(30)))
    columns = {"prompt": "question", "answer": "answer", meaning: "nope"}
    with pytest.raises(UserError, match=f"columns: {meaning}=nope is in no row of .*; its columns are answer, question"):
        scan([path], columns=columns)
