"""Files that are one object: lists of rows under names such as ``train`` or ``data``, a table by columns, or a single row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from undertow.core.errors import UserError
from undertow.data.json_lists import Entry, within
from undertow.data.rows.names import LABEL_LENGTH, is_left_out, plain
from undertow.data.rows.plan import fits, plan
from undertow.data.rows.turns import is_paired, is_said, is_talk, is_turn
from undertow.data.rows.values import texts

_DECODE = json.JSONDecoder().raw_decode
#: Columns that hold one conversation; where an object is the whole file, others may hold rows.
_ONE_TALK = ("conversation", "dialogue", "dialog")
_BLANK = re.compile(r"[ \t\r\n]*")


def is_chunk(value: list[Any]) -> bool:
    """Whether a list within a list holds rows; a list of turns, or of a question and answers, is a row itself."""
    return bool(value) and all(isinstance(item, dict) for item in value) and not is_speech(value[0])


def is_row_part(value: Any) -> bool:
    """Whether a list that begins with this is a row: a text or a turn."""
    return isinstance(value, str) or (isinstance(value, dict) and is_speech(value))


def is_speech(value: dict[str, Any]) -> bool:
    """Whether an object is one turn of a conversation, by its speaker."""
    return is_turn({key: item for key, item in value.items() if key in ("from", "role", "speaker")}) or is_said(value)


def is_container(value: Any) -> bool:
    """Whether an object holds lists of rows, or columns, and is no row itself."""
    return isinstance(value, dict) and (_holds_rows(value) or _table(value) is not None)


def has_text(value: dict[str, Any]) -> bool:
    """Whether a text that is no identifier stands beside an object's lists: one of several such objects is a row, and a list in it
    its questions or its choices."""
    return any(isinstance(item, str) and item.strip() and not is_left_out(plain(str(key))) for key, item in value.items())


def holds_talk(value: Any) -> bool:
    """Whether an object has a conversation of questions with their answers, ``{"conversation": [{"input": ..., "output": ...}]}``:
    one of several such objects is a row."""
    return isinstance(value, dict) and any(is_paired(value[column]) for column in plan(value, {}).talks)


def _holds_rows(value: dict[str, Any]) -> bool:
    lists = [item for item in value.values() if isinstance(item, list) and is_chunk(item)]
    inner = [item for item in value.values() if isinstance(item, dict) and _holds_rows(item)]
    return bool(lists or (inner and not _speaks(value))) and not _is_row(value)


def _speaks(value: dict[str, Any]) -> bool:
    """Whether a conversation stands in an object or in one within it, as in a logged request: lists beside it are parts of that."""
    return any(
        (isinstance(item, list) and bool(item) and isinstance(item[0], dict) and is_speech(item[0]) and is_talk(item))
        or (isinstance(item, dict) and _speaks(item))
        for item in value.values()
    )


def _is_row(value: dict[str, Any]) -> bool:
    made = plan(value, {})
    pairs = [*made.pairs, *made.classes] if made.usual else []
    named = [*made.talks, *made.chosen, *(column for pair in pairs for column in pair)]
    texts = any(isinstance(value[column], str) for column in (*named, *made.rendered, *made.asked))
    one = any(plain(column) in _ONE_TALK and is_paired(value[column]) for column in made.talks)
    return (
        texts
        or one
        or any(
            isinstance(value[column], list) and value[column] and is_turn(value[column][0])
            for column in made.talks
            if isinstance(value[column], list) and value[column] and isinstance(value[column][0], dict)
        )
    )


def _columns(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of a table by columns, as pandas writes one: lists of one length, or objects with the same keys."""
    made = plan(value, {})
    if not made.pairs and not made.classes:
        return None
    items = list(value.values())
    if all(isinstance(item, list) for item in items) and len({len(item) for item in items}) == 1:
        ask = (made.pairs or made.classes)[0][0]
        if len(items[0]) < 2 or not all(isinstance(item, str | list) for item in value[ask]):
            return None
        return [dict(zip(value, row, strict=True)) for row in zip(*items, strict=True)]
    if all(isinstance(item, dict) for item in items) and len({tuple(item) for item in items}) == 1 and "0" in items[0]:
        return [{column: value[column][key] for column in value} for key in items[0]]
    return None


def _table(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of a table: by columns, by names of rows, or by lists after the names of their columns."""
    named, listed = value.get("columns"), value.get("data")
    if isinstance(named, list) and isinstance(listed, list) and value.keys() <= {"columns", "data", "index"}:
        rows = [dict(zip(map(str, named), row, strict=False)) for row in listed if isinstance(row, list)]
        return rows if len(rows) == len(listed) and all(len(row) == len(named) for row in rows) else None
    items = list(value.values())
    if len(items) > 1 and all(isinstance(item, dict) for item in items) and not fits(value) and all(fits(item) for item in items):
        return items
    return _columns(value)


class Containers:
    """The rows of objects that hold them, with their texts.

    Args:
        name: of the file, for errors.
        text: the whole file.

    Attributes:
        tail: the text after the last row, once all are read.
        beside, unread: names under which an object that holds lists of rows holds something else; ``unread``: text that is not
            understood.

    Raises:
        UserError: while it is iterated: not JSON.
    """

    def __init__(self, name: str, text: str) -> None:
        self.tail = ""
        self.beside: list[str] = []
        self.unread: list[str] = []
        self._name, self._text = name, text
        self._done = 0

    def __iter__(self) -> Iterator[Entry]:
        at = self._skip(0)
        while at < len(self._text):
            value, end = self._decoded(at)
            several = at > 0 or self._skip(end) < len(self._text)
            if isinstance(value, dict) and (rows := _table(value)) is not None:
                yield from (Entry(row, "", "") for row in rows)
            elif isinstance(value, dict) and _holds_rows(value) and not (several and (has_text(value) or holds_talk(value))):
                yield from self._rows(at, value)
            else:
                yield self._entry(value, at, end)
            at = self._skip(end)
        self.tail = self._text[self._done :]

    def _rows(self, at: int, value: dict[str, Any]) -> Iterator[Entry]:
        """The rows of the object that begins at ``at`` and is known to be sound."""
        at = self._skip(at + 1)
        while self._text[at] != "}":
            if self._text[at] == ",":
                at = self._skip(at + 1)
            key, at = _DECODE(self._text, at)
            at = self._skip(self._skip(at) + 1)
            item, end = _DECODE(self._text, at)
            if isinstance(item, list) and is_chunk(item):
                for part in within(self._text[at:end], ""):
                    if part.raw:
                        start = at + len(part.gap)
                        yield self._entry(part.value, start, start + len(part.raw))
                        at = start + len(part.raw)
            elif isinstance(item, dict) and _holds_rows(item):
                yield from self._rows(at, item)
            elif isinstance(item, str | list | dict) and item:
                short = is_left_out(plain(str(key))) and all(len(text) <= LABEL_LENGTH for _, text in texts(item, ""))
                (self.beside if short else self.unread).append(str(key))
            at = self._skip(end)

    def _entry(self, value: Any, start: int, end: int) -> Entry:
        gap, self._done = self._text[self._done : start], end
        return Entry(value, self._text[start:end], gap)

    def _skip(self, at: int) -> int:
        found = _BLANK.match(self._text, at)
        return found.end() if found else at

    def _decoded(self, at: int) -> tuple[Any, int]:
        try:
            return _DECODE(self._text, at)
        except json.JSONDecodeError as error:
            line = self._text.count("\n", 0, error.pos) + 1
            raise UserError(f"{self._name} line {line}: not JSON ({error.msg}); correct the line") from error
        except (RecursionError, ValueError) as error:
            raise UserError(f"{self._name}: not usable JSON ({type(error).__name__}); correct the file") from error
