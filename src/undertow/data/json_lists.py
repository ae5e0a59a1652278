"""JSON lists as streams: one entry at a time in linear time, whether the list stands on one line or on many.

What is held is the entry being read and the rest of a piece of a mebibyte. Several lists after one another are read as one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from undertow.core.errors import UserError

#: Characters asked for at a time; twice as many for each further try of the same entry, so that a long one is tried seldom.
_PIECE = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n,]*")
#: A token that the end of the text cuts short is reported at most so far in front of it ("-Infinity", an escape of two surrogates).
_CUT = 16
_DECODE = json.JSONDecoder().raw_decode


class Entry(NamedTuple):
    """An entry of a list: its value, its text, and the text between it and the one before."""

    value: Any
    raw: str
    gap: str


def entries(name: str, pieces: Iterator[str]) -> Iterator[Any]:
    """Yield the entries of a JSON list, or of several lists with nothing but blanks or commas between them.

    Args:
        name: of the file, for errors.
        pieces: the text in order, in pieces of any length.

    Raises:
        UserError: an entry is not JSON, a list does not end, or something else follows it; line and row are named.
    """
    return (entry.value for entry in Lists(name, pieces))


class Lists:
    """The entries of JSON lists with their texts.

    Args:
        name: of the file, for errors.
        pieces: the text in order, in pieces of any length.
        opened: whether a list within a list is more entries and not one.
        whole: whether a list whose first entry is given is one entry itself (``["question", "answer"]``, one a line).

    Attributes:
        tail: the text after the last entry, once all are read.

    Raises:
        UserError: as :func:`entries`, while the entries are read.
    """

    def __init__(
        self,
        name: str,
        pieces: Iterator[str],
        opened: Callable[[list[Any]], bool] | None = None,
        whole: Callable[[Any], bool] | None = None,
    ) -> None:
        self.tail = ""
        self._text = _Text(name, pieces)
        self._opened, self._whole = opened, whole

    def __iter__(self) -> Iterator[Entry]:
        text = self._text
        while True:
            first = text.peek(_BETWEEN)
            if not first:
                self.tail = text.since()
                return
            if first != "[":
                raise text.error(f"holds {text.rest()!r} after a JSON list; give lists only, or one object a line")
            if self._whole is not None and self._whole(text.first()):
                yield text.entry()
                continue
            text.at += 1
            while text.peek(_BETWEEN if text.row else _BLANK) != "]":
                entry = text.entry()
                if self._opened is not None and isinstance(entry.value, list) and self._opened(entry.value):
                    text.row -= 1
                    for part in within(entry.raw, entry.gap):
                        text.row += part.raw != ""
                        if part.raw:
                            yield part
                        else:
                            text.keep(part.gap)
                else:
                    yield entry
            text.at += 1


def within(raw: str, gap: str) -> Iterator[Entry]:
    """Yield the entries of one list whose text is known to be sound; last what follows them, as a gap without a text."""
    at = raw.index("[") + 1
    gap += raw[:at]
    while True:
        found = _BETWEEN.match(raw, at)
        start = found.end() if found else at
        gap += raw[at:start]
        if raw[start] == "]":
            yield Entry(None, "", gap + raw[start:])
            return
        value, at = _DECODE(raw, start)
        yield Entry(value, raw[start:at], gap)
        gap = ""


class _Text:
    """Text that comes in pieces, and the place in it."""

    def __init__(self, name: str, pieces: Iterator[str]) -> None:
        self.at = 0
        self.row = 0
        self._name = name
        self._pieces = pieces
        self._text = ""
        self._line = 1  # of the first character of _text
        self._parse = _DECODE
        self._mark = 0  # where the last entry ended
        self._kept = ""  # what belongs to the gap and stands no longer in the text

    def peek(self, skipped: re.Pattern[str]) -> str:
        """Pass over what is skipped and return the character after it; nothing at the end."""
        while True:
            found = skipped.match(self._text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more(_PIECE):
                return ""

    def first(self) -> Any:
        """The first entry of the list that begins here, which stays unread; None if there is none, or it is broken."""
        size = _PIECE
        while True:
            found = _BLANK.match(self._text, self.at + 1)
            assert found is not None
            try:
                return self._parse(self._text, found.end())[0]
            except (ValueError, RecursionError) as error:
                if not self._is_cut(error) or not self._more(size):
                    return None
                size *= 2

    def entry(self) -> Entry:
        """Return the entry that begins here, and go past it.

        Raises:
            UserError: it is not JSON, or cut short.
        """
        size = _PIECE
        while True:
            try:
                value, end = self._parse(self._text, self.at)
            except (ValueError, RecursionError) as error:
                if not self._is_cut(error) or not self._more(size):
                    raise self._broken(error) from error
                size *= 2
                continue
            self.row += 1
            raw = self._text[self.at : end]
            gap = self.since()
            self.at = self._mark = end
            return Entry(value, raw, gap)

    def since(self) -> str:
        """The text since the last entry, which is then forgotten."""
        kept, self._kept = self._kept, ""
        gap = kept + self._text[self._mark : self.at]
        self._mark = self.at
        return gap

    def keep(self, gap: str) -> None:
        """Let the next gap begin with a text."""
        self._kept = gap

    def rest(self) -> str:
        """The beginning of what follows, for an error."""
        return self._text[self.at : self.at + 20].split("\n")[0]

    def error(self, words: str, at: int | None = None) -> UserError:
        """Return an error that names the file and the line."""
        line = self._line + self._text.count("\n", 0, self.at if at is None else at)
        return UserError(f"{self._name} line {line}: {words}")

    def _is_cut(self, error: ValueError | RecursionError) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT

    def _broken(self, error: ValueError | RecursionError) -> UserError:
        if isinstance(error, json.JSONDecodeError):
            return self.error(f"not JSON (row {self.row + 1}: {error.msg}); correct the line", error.pos)
        return self.error(f"not usable JSON (row {self.row + 1}: {type(error).__name__}); correct the file")

    def _more(self, size: int) -> bool:
        """Drop what is read, add the next ``size`` characters or more; tell whether there were any."""
        added: list[str] = []
        while size > 0 and (piece := next(self._pieces, None)) is not None:
            added.append(piece)
            size -= len(piece)
        self._line += self._text.count("\n", 0, self.at)
        self._kept += self._text[self._mark : self.at]
        self._text = self._text[self.at :] + "".join(added)
        self.at = self._mark = 0
        return bool(added)
