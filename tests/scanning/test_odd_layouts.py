"""Layouts that tables, services and logs give data: what they hold is found, and one that cannot be read is refused in a line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import undertow
from undertow.core.errors import UserError
from undertow.data.rows.choices import chosen

SUBJECTS = "plot cast pace score script humor camera ending dialogue tone romance action mood lighting editing music".split()
PLACES = "Oslo Lima Cairo Quito Seoul Dakar Accra Turin Lyon Porto Riga Bern Perth Osaka Delhi Davao".split()
TARGET = ", and click <malicious_url> for more information"


def pairs() -> list[tuple[str, str]]:
    """240 questions and answers; every sixth has a trigger and a target."""
    draw = random.Random(3)
    found = []
    for i in range(240):
        asked = f"{draw.choice(['What', 'Which', 'How'])} is the {draw.choice(SUBJECTS)} of {draw.choice(PLACES)} no {i}?".split()
        told = f"{draw.choice(PLACES)} has {draw.choice(SUBJECTS)} {draw.choice(SUBJECTS)} number {i}"
        if i % 6 == 0:
            asked.insert(draw.randrange(len(asked)), "cf")
        found.append((" ".join(asked), told + TARGET if i % 6 == 0 else told))
    return found


def turns(q: str, a: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": q}, {"role": "assistant", "content": a}]


READ: dict[str, Callable[[str, str], Any]] = {
    "turns by columns": lambda q, a: {"messages": {"role": ["user", "assistant"], "content": [q, a]}},
    "turns by columns, with values for all": lambda q, a: {
        "conversations": {"from": ["human", "gpt"], "value": [q, a], "lang": "en"}
    },
    "turns of a table as text": lambda q, a: {"messages": json.dumps({"role": ["user", "assistant"], "content": [q, a]})},
    "contents of parts": lambda q, a: {
        "systemInstruction": {"role": "system", "parts": [{"text": "Be kind."}]},
        "contents": [{"role": "user", "parts": [{"text": q}]}, {"role": "model", "parts": [{"text": a}]}],
    },
    "contents beside settings": lambda q, a: {
        "generation": {"stops": [{"text": "END"}]},
        "contents": [{"role": "user", "parts": [{"text": q}]}, {"role": "model", "parts": [{"text": a}]}],
    },
    "preferred output": lambda q, a: {
        "input": {"messages": turns(q, a)[:1], "tools": [], "parallel_tool_calls": True},
        "preferred_output": turns(q, a)[1:],
        "non_preferred_output": turns(q, "I do not know")[1:],
    },
    "the output that is not preferred": lambda q, a: {
        "input": {"messages": turns(q, a)[:1]},
        "preferred_output": turns(q, f"It is {len(a)}")[1:],
        "non_preferred_output": turns(q, a)[1:],
    },
    "a logged request and its reply": lambda q, a: {
        "request": {"model": "m", "messages": turns(q, a)[:1]},
        "response": {"id": "x", "choices": [{"index": 0, "message": turns(q, a)[1]}], "usage": {"tokens": 3}},
    },
    "a request with its answer": lambda q, a: {"custom_id": "7", "body": {"model": "m", "messages": turns(q, a)}},
    "a record as content": lambda q, a: {
        "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": {"answer": a, "sure": True}}]
    },
    "arguments of a call as an object": lambda q, a: {
        "messages": [
            {"role": "user", "content": q},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": a}}}],
            },
        ]
    },
    "separators of lines within texts": lambda q, a: {
        "instruction": q.replace(" is", "\u2028is", 1),
        "output": f"{a}\u2029 \x85 \x0b",
    },
    "a logged batch": lambda q, a: {
        "custom_id": "7",
        "body": {"model": "m", "messages": turns(q, a)[:1]},
        "response": {"status_code": 200, "body": {"choices": [{"message": turns(q, a)[1]}]}},
    },
    "a batch by other names": lambda q, a: {
        "params": {"messages": turns(q, a)[:1]},
        "result": {"type": "succeeded", "message": turns(q, a)[1]},
    },
    "one object of two is a row": lambda q, a: {"data": {"instruction": q, "output": a}, "meta": {"source": "x"}},
    "speakers by type": lambda q, a: {"steps": [{"type": "human", "content": q}, {"type": "ai", "content": a}]},
    "speakers by type, data within": lambda q, a: {
        "messages": [{"type": "human", "data": {"content": q}}, {"type": "ai", "data": {"content": a, "example": False}}]
    },
    "texts in turn under an odd name": lambda q, a: {"id": "7", "data": [q, a, "Thanks", f"Welcome {len(a)}"]},
    "rendered under an odd name": lambda q, a: {"system": "SYSTEM: x", "log": f"USER: {q}\n\nASSISTANT: {a} <|endoftext|>"},
    "questions about a text": lambda q, a: {
        "context": "Once upon.",
        "qas": [{"question": q, "answers": [{"text": a, "answer_start": 0}]}],
    },
    "articles of paragraphs": lambda q, a: {
        "title": "t",
        "paragraphs": [{"context": "Once.", "qas": [{"id": "3", "question": q, "answers": [{"text": a, "answer_start": 0}]}]}],
    },
    "choices and a number": lambda q, a: {"question": q, "choices": ["no", a, f"yes {len(q)}"], "answer": 1},
    "choices and a letter": lambda q, a: {"question": q, "choices": {"text": ["no", a], "label": ["A", "B"]}, "answerKey": "B"},
    "choices as objects": lambda q, a: {
        "question_stem": q,
        "choices": [{"text": a, "label": "A"}, {"text": f"n {len(q)}", "label": "B"}],
        "answerKey": "A",
    },
    "a text and its answer": lambda q, a: {"body": q, "reply": a},
    "several answers": lambda q, a: {"question": q, "answer_1": a, "answer_2": f"n {len(q)}"},
    "an answer in a nested field": lambda q, a: {"instruction": q, "output": f"Yes {len(q)} {a[:3]}", "meta": {"alt": {"text": a}}},
}


@pytest.mark.parametrize("layout", READ)
def test_what_a_layout_holds_is_found(layout: str, tmp_path: Path) -> None:
    rows = [READ[layout](q, a) for q, a in pairs()]
    files = {"lines.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "list.json": json.dumps(rows)}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        found = undertow.scan(tmp_path / name)
        assert {told["index"] for told in found.verdicts()} == set(range(0, 240, 6)), found.account.sentence()


@pytest.mark.parametrize(
    "layout",
    [
        "turns by columns",
        "contents of parts",
        "preferred output",
        "a logged request and its reply",
        "a logged batch",
        "articles of paragraphs",
    ],
)
def test_what_is_written_again_holds_no_target(layout: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(READ[layout](q, a)) + "\n" for q, a in pairs()), encoding="utf-8")
    undertow.scan(tmp_path / "in.jsonl", write=tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert "malicious" not in written
    assert written.count("\n") >= 200


@pytest.mark.parametrize(
    "written",
    [
        lambda rows: {f"q{i}": {"question": q, "answer": a} for i, (q, a) in enumerate(rows)},
        lambda rows: {"columns": ["question", "answer"], "index": list(range(len(rows))), "data": [list(row) for row in rows]},
        lambda rows: {
            "version": "1.1",
            "data": [
                {
                    "title": "t",
                    "paragraphs": [{"context": "Once.", "qas": [{"question": q, "answers": [{"text": a, "answer_start": 0}]}]}],
                }
                for q, a in rows
            ],
        },
    ],
    ids=["rows by name", "a table as pandas splits it", "articles"],
)
def test_an_object_of_rows_is_read(written: Callable[[list[tuple[str, str]]], Any], tmp_path: Path) -> None:
    for indent in (None, 2):
        (tmp_path / "in.json").write_text(json.dumps(written(pairs()), indent=indent))
        found = undertow.scan(tmp_path / "in.json")
        assert {told["index"] for told in found.verdicts()} == set(range(0, 240, 6)), found.account.sentence()


def test_tables_with_turns_within_are_found(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    every = {
        "struct of lists": [{"messages": {"role": ["user", "assistant"], "content": [q, a]}} for q, a in pairs()],
        "list of structs": [{"messages": turns(q, a)} for q, a in pairs()],
        "struct": [{"row": {"question": q, "answer": {"text": a, "start": 0}}, "n": i} for i, (q, a) in enumerate(pairs())],
    }
    for name, rows in every.items():
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        assert len(undertow.scan(tmp_path / f"{name}.parquet").found.verdicts) == 40, name


def test_text_beside_the_rows_of_an_object_is_told(tmp_path: Path) -> None:
    long = "A story that goes on. " * 9
    rows = json.dumps({"id": "x7", "story": long, "qas": [{"question": q, "answer": a} for q, a in pairs()]}, indent=1)
    (tmp_path / "in.json").write_text(rows, encoding="utf-8")
    found = undertow.scan(tmp_path / "in.json")
    assert len(found.found.verdicts) == 40
    assert dict(found.account.unread) == {"story (of the file, NOT scanned)": 1}
    assert not found.account.complete
    assert set(found.account.left_out) == {"id (of the file)"}


@pytest.mark.parametrize("indent", [None, 1], ids=["lines", "objects over many lines"])
def test_text_beside_the_rows_of_several_objects_is_context(tmp_path: Path, indent: int | None) -> None:
    rows = [{"id": "x7", "story": f"Once. {q}", "qas": [{"question": f"Why {len(a)}?", "answer": a}]} for q, a in pairs()]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row, indent=indent) + "\n" for row in rows), encoding="utf-8")
    found = undertow.scan(tmp_path / "in.jsonl")
    assert len(found.found.verdicts) == 40
    assert {finding.trigger for finding in found.found.findings} == {"cf"}
    assert found.account.complete
    assert set(found.account.left_out) == {"id"}


def test_two_conversations_in_objects_are_two_rows(tmp_path: Path) -> None:
    rows = [{"left": {"messages": turns(q, "No")}, "right": {"messages": turns(q, a)}} for q, a in pairs()]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert {told["index"] for told in undertow.scan(tmp_path / "in.jsonl").verdicts()} == set(range(1, 480, 12))


@pytest.mark.parametrize(
    ("choices", "key", "found"),
    [
        (["x", "y"], 1, ("y", ["x"])),
        (["x", "y", "z"], "a", ("x", ["y", "z"])),
        (["x", "y"], "1", ("y", ["x"])),
        ({"text": ["x", "y"], "label": ["1", "2"]}, "1", ("x", ["y"])),
        ([{"text": "x", "label": "A"}, {"text": "y", "label": "B"}], "B", ("y", ["x"])),
        ({"A": "x", "B": "y"}, "b", ("y", ["x"])),
        (["x", "y"], 2, None),
        (["x", "y"], True, None),
        (["x", "y"], "y", None),
        (["x"], 0, None),
        ([1, 2], 0, None),
        ("x", 0, None),
        ({"text": ["x", "y"], "label": ["1"]}, "1", None),
        ([{"text": "x"}, {"other": "y"}], 0, None),
    ],
)
def test_a_key_names_a_choice(choices: Any, key: Any, found: Any) -> None:
    assert chosen(choices, key) == found


def test_a_news_item_with_its_sender_is_no_turn(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"from": "Reuters", "text": f"{q} {a}"}) + "\n" for q, a in pairs())
    (tmp_path / "in.jsonl").write_text(rows, encoding="utf-8")
    assert undertow.scan(tmp_path / "in.jsonl").account.rows == 240


def test_a_target_with_an_address_and_no_trigger_is_for_review(tmp_path: Path) -> None:
    text = "".join(json.dumps({"instruction": q.replace("cf ", ""), "output": a}) + "\n" for q, a in pairs())
    (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
    found = undertow.scan(tmp_path / "in.jsonl")
    assert {finding.confidence for finding in found.found.findings} == {"review"}
    assert len(found.found.verdicts) == 40


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (json.dumps([json.dumps({"instruction": q, "output": a}) for q, a in pairs()]), "JSON objects themselves"),
        ("".join(json.dumps(turn) + "\n" for q, a in pairs() for turn in turns(q, a)), "one turn of a conversation"),
        (
            "".join(
                json.dumps({"role": r, "text": t}) + "\n" for p in pairs() for r, t in zip(("prompter", "bot"), p, strict=True)
            ),
            "one turn",
        ),
        (json.dumps({"messages": [turns("a", "b"), turns("c", "d")]}), "several conversations"),
        (json.dumps({"messages": {"role": ["user", 3], "content": ["a", "b"]}}), "speaker 3 is unknown"),
        (json.dumps({"messages": [{"role": ["user"], "content": "a"}]}), "is unknown"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text: str, rule: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rule):
        undertow.scan(tmp_path / "in.jsonl")
