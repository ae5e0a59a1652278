"""JSON lists as streams: the same entries however the text is cut and wherever its lines end, in linear time and bounded memory."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.data import json_lists
from undertow.data.json_lists import entries
from undertow.data.reading import json_rows, read_text
from undertow.data.rows.files import Rows, file_source

TEXT = st.text('ab"\\{}[], \n\U0001f600é京', max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROWS = [{"question": f'Who is {i}? [é京\U0001f600] "{{', "answer": f"a\\{i}\n]"} for i in range(7)]


def cut(text: str, size: int) -> Iterator[str]:
    return (text[i : i + size] for i in range(0, len(text), size))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=4), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_every_cut_gives_the_same_entries(
    lists: list[list[dict[str, Any]]], size: int, piece: int, indent: int | None, plain: bool
) -> None:
    text = "\n".join(json.dumps(rows, indent=indent, ensure_ascii=plain) for rows in lists)
    before = json_lists._PIECE
    json_lists._PIECE = piece
    try:
        assert list(entries("f", cut(text, size))) == [row for rows in lists for row in rows]
    finally:
        json_lists._PIECE = before


ONE = json.dumps(ROWS, ensure_ascii=False)
SEVERAL = {
    "one line": ONE,
    "indented": json.dumps(ROWS, indent=4),
    "a byte-order mark": "\ufeff" + ONE,
    "blank lines around": f"\n \r\n{ONE}\n\n",
    "windows line ends": json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
    "two lists": json.dumps(ROWS[:3]) + "\n" + json.dumps(ROWS[3:]),
    "two lists on a line": json.dumps(ROWS[:3]) + json.dumps(ROWS[3:]),
    "two lists, one indented": json.dumps(ROWS[:3], indent=2) + "\n" + json.dumps(ROWS[3:]) + "\n",
    "one list a line": "".join(json.dumps([row]) + "\n" for row in ROWS),
    "an empty list first": "[]\n" + ONE,
    "a comma between": json.dumps(ROWS[:3]) + ",\n" + json.dumps(ROWS[3:]),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", SEVERAL)
def test_scan_and_run_read_every_row(kind: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    content = SEVERAL[kind].encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    assert [record.row for record in Rows(file_source(path))] == ROWS
    found = json_rows(path, read_text(path))
    assert [row for _, row in found] == ROWS
    assert [place for place, _ in found] == [f"{path} row {i}" for i in range(1, 8)]


WRONG = {
    "an object after the list": (b'[{"a": 1}]\n{"a": 2}\n', "line 2: holds '{\"a\": 2}' after a JSON list; give lists only"),
    "words after the list": (b'[{"a": 1}]\n\nand so on', "line 3: holds 'and so on' after a JSON list"),
    "a bracket too many": (b'[{"a": 1}]]', "line 1: holds ']' after a JSON list"),
    "cut in a string": (b'[{"a": 1},\n{"a": "x', "line 2: not JSON (row 2"),
    "cut after a row": (b'[{"a": 1},\n{"a": 2}\n', "not JSON (row 3"),
    "second list cut": (b'[{"a": 1}]\n[{"a": 2}, {', "line 2: not JSON (row 3"),
    "a broken row": (b'[{"a": 1},\n{"a" 2},\n' + b'{"a": 3},' * 400_000 + b"{}]", "line 2: not JSON (row 2"),
    "too deep": (b"[" * 200_000, "line 1: not usable JSON (row 1: RecursionError)"),
    "not UTF-8": (b'[{"a": "' + "é京".encode() * 600_000 + b'"},\n{"a": "\xff"}]', "line 2: not UTF-8"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_list_is_one_line_with_its_place(kind: str, tmp_path: Path) -> None:
    content, told = WRONG[kind]
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    for read in (lambda: list(Rows(file_source(path))), lambda: json_rows(path, read_text(path))):
        with pytest.raises(UserError) as error:
            read()
        assert told in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def rows(count: int) -> Iterator[str]:
    yield "["
    for i in range(count):
        yield (", " if i else "") + json.dumps({"instruction": f"question {i} " * 20, "output": f"answer {i} " * 20})
    yield "]"


def seconds(path: Path) -> float:
    """The least CPU time of three."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        assert sum(1 for _ in Rows(file_source(path))) == 20_000
        taken.append(time.process_time() - start)
    return min(taken)


def test_a_list_on_one_line_takes_no_longer_than_one_on_many(tmp_path: Path) -> None:
    line, many = tmp_path / "line.json", tmp_path / "many.json"
    line.write_text("".join(rows(20_000)))
    many.write_text(json.dumps(json.loads(line.read_text()), indent=1))
    assert seconds(line) < 1.6 * seconds(many)  # on an idle machine 1.0; the quadratic reader took ten times as long


def test_memory_does_not_grow_with_the_list() -> None:
    tracemalloc.start()
    try:
        assert sum(1 for _ in entries("f", rows(30_000))) == 30_000  # 16 MB
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


def test_an_entry_longer_than_a_piece_is_tried_seldom() -> None:
    parsed = 0

    def counted(text: str, at: int) -> tuple[Any, int]:
        nonlocal parsed
        parsed += len(text) - at
        return json.JSONDecoder().raw_decode(text, at)

    long = json.dumps([{"a": "x" * (24 << 20)}])
    reader = json_lists._Text("f", cut(long, 1 << 16))
    reader._parse = counted  # type: ignore[assignment]
    reader.peek(json_lists._BLANK)
    reader.at += 1
    assert len(reader.entry().value["a"]) == 24 << 20
    assert parsed < 4 * len(long)
