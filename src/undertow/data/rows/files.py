"""Instruction files as rows, one at a time: JSON lines, JSON, CSV, TSV, Parquet and Arrow, gzipped or not, told by content.

One reader for ``scan``, ``run``, ``evaluate`` and the hub's files. A row keeps the text it stands in, so that a file can be
written again with every other byte as it was.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from undertow.core.errors import UserError
from undertow.data.json_lists import Lists
from undertow.data.rows.containers import Containers, holds_talk, is_chunk, is_container, is_row_part
from undertow.data.rows.formats import HEAD, refuse_foreign
from undertow.data.rows.record import Record
from undertow.data.rows.separated import Separated
from undertow.data.rows.tables import arrow_rows, is_arrow, is_parquet, parquet_rows

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file or standard input.

    Attributes:
        name: what messages call it.
        open: opens it from the start, as bytes.
        suffix: the ending of its name, such as ``.csv``; empty for standard input.
        same: tells whether the file is still the one that it was; where it is read more than once, what was found in the first
            pass is said of rows by their number.
    """

    name: str
    open: Callable[[], IO[bytes]]
    suffix: str = ""
    same: Callable[[], bool] = lambda: True


def file_source(path: Path, option: str = "FILE") -> Source:
    """Return a file as a source.

    Raises:
        UserError: there is no such file, or it is a folder or not a plain file.
    """
    if path.is_dir():
        raise UserError(f"{option}={path}: a folder, and this format is one file; give a file inside it")
    if path.exists() and not path.is_file():
        raise UserError(f"{option}={path}: a pipe or a device, no plain file; give a file, or - for standard input")
    if not path.is_file():
        raise UserError(f"{option}={path}: no such file; give the path of an existing file")
    stamp = _stamp(path)
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    return Source(str(path), lambda: open(path, "rb"), ending, lambda: _stamp(path) == stamp)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read(source: Source) -> Rows:
    """Return the rows of a file; iterate to read them."""
    return Rows(source)


class Rows:
    """The rows of a file, read anew by each iteration.

    Args:
        source: the file.
        columns: names that a first line of separated values may hold, besides those that are known.

    Attributes:
        kind: ``lines`` (one object a line), ``list`` (JSON lists, or lists within objects), ``csv`` or ``tsv`` (by its
            delimiter), ``table`` (rows that are no text); known once the first row is read.
        bom: the byte-order mark that the text begins with, if any.
        tail: the text after the last row, once all are read.
        beside, unread: names under which the file holds something besides its rows; ``unread``: text that is not understood.
        separated: how a file of separated values is written.

    Raises:
        UserError: while it is iterated: unreadable, damaged, not text, nothing that can be a row, or changed in the meantime.
    """

    def __init__(self, source: Source, columns: Collection[str] = ()) -> None:
        self.source = source
        self.kind = "lines"
        self.bom = ""
        self.tail = ""
        self.beside: list[str] = []
        self.unread: list[str] = []
        self.separated: Separated | None = None
        self._columns = columns

    def __iter__(self) -> Iterator[Record]:
        try:
            self._unchanged()
            yield from self._read()
        except UserError:
            self._unchanged()  # which is then why it is damaged
            raise
        self._unchanged()

    def _unchanged(self) -> None:
        if not self.source.same():
            raise UserError(f"{self.source.name}: changed while it was read; give a copy that nothing writes to")

    def _read(self) -> Iterator[Record]:
        source = self.source
        self.tail = self.bom = ""
        try:
            with source.open() as raw:
                head = raw.read(8)
                raw.seek(0)
                if source.suffix == ".parquet" and not is_parquet(head):
                    raise UserError(f"{source.name}: damaged Parquet file (it does not begin as one); fetch it again")
                if is_parquet(head) or is_arrow(head):
                    self.kind = "table"
                    yield from (parquet_rows if is_parquet(head) else arrow_rows)(source.name, raw)
                elif head[:2] == _GZIP:
                    with gzip.open(raw) as unpacked:
                        yield from self._text(unpacked)
                elif source.suffix and source.name.endswith(".gz") and head:
                    raise UserError(f"{source.name}: named .gz but not a gzip file; rename or compress it")
                else:
                    yield from self._text(raw)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{source.name}: damaged gzip file ({error}); fetch it again") from error
        except OSError as error:
            raise UserError(f"{source.name}: cannot be read ({error.strerror or error}); check its permissions") from error

    def _text(self, raw: IO[bytes] | gzip.GzipFile) -> Iterator[Record]:
        name = self.source.name
        refuse_foreign(name, raw.read(HEAD))
        raw.seek(0)
        self.bom = "\ufeff" if raw.read(3) == codecs.BOM_UTF8 else ""
        raw.seek(0)
        if _first(raw) == b"[":
            self.kind = "list"
            yield from self._listed(Lists(name, _pieces(name, raw), is_chunk, is_row_part))
            return
        lines = _lines(name, raw)
        blank = ""
        number, line = next(lines, (0, ""))
        while number and line.isspace():
            blank += line
            number, line = next(lines, (0, ""))
        if not number:
            raise UserError(f"{name}: empty file; give one with data in it")
        if line.lstrip().startswith("{"):
            yield from self._objects(blank, number, line, lines)
        else:
            self.separated = Separated(name, self._columns)
            yield from self.separated.rows(blank, number, line, lines)
            self.kind, self.tail = self.separated.kind, self.separated.tail

    def _listed(self, lists: Lists | Containers) -> Iterator[Record]:
        name = self.source.name
        count = 0
        for count, entry in enumerate(lists, start=1):
            yield Record(f"{name} row {count}", entry.value, entry.raw, entry.gap)
        if not count:
            raise UserError(f"{name}: an empty list; give a file with data in it")
        self.tail = lists.tail
        if isinstance(lists, Containers):
            self.beside, self.unread = lists.beside, lists.unread

    def _objects(self, gap: str, number: int, line: str, lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
        """Objects: one a line, or one over many lines, which may hold lists of rows."""
        name = self.source.name
        first = _loads(line)
        talk = holds_talk(first)
        following = next(lines, None) if first is None or talk else None
        several = following is not None and following[1].lstrip().startswith("{")
        if (first is None and not several) or (is_container(first) and not (several and talk)):
            self.kind = "list"
            rest = "".join(text for _, text in lines)
            yield from self._listed(Containers(name, gap + line + (following[1] if following else "") + rest))
            return
        self.kind = "lines"
        yield _line(name, number, line, gap)
        gap = ""
        if following is not None:
            yield _line(name, *following, gap)
        for number, line in lines:
            if line.isspace():
                gap += line
            else:
                yield _line(name, number, line, gap)
                gap = ""
        self.tail = gap


def _loads(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _line(name: str, number: int, line: str, gap: str) -> Record:
    place = f"{name} line {number}"
    try:
        return Record(place, json.loads(line), line, gap)
    except json.JSONDecodeError as error:
        broken = UserError(f"{place}: not JSON ({error.msg}); correct the line")
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        broken = UserError(f"{place}: not usable JSON ({type(error).__name__}); correct the file")
    return Record(place, line, line, gap, broken)


def _first(raw: IO[bytes] | gzip.GzipFile) -> bytes:
    """The first byte that is no blank and not of a byte-order mark; the file is at its start again."""
    first = b""
    while not first and (piece := raw.read(_CHUNK)):
        first = piece.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    raw.seek(0)
    return first


def _lines(name: str, raw: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line with its end) of every line."""
    for number, content in enumerate(raw, start=1):
        try:
            line = content.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{name} line {number}: not UTF-8 text; convert the file to UTF-8") from error
        if number == 1 and "\0" in line:
            raise UserError(f"{name}: a binary file, not UTF-8 text; give JSON lines, JSON, CSV, TSV or Parquet")
        yield number, line


def _pieces(name: str, raw: IO[bytes] | gzip.GzipFile) -> Iterator[str]:
    """The text in pieces of a mebibyte at most, wherever its lines end."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    while True:
        content = raw.read(_CHUNK)
        try:
            text = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            line += content.count(b"\n", 0, max(0, error.start - len(error.object) + len(content)))
            raise UserError(f"{name} line {line}: not UTF-8 text; convert the file to UTF-8") from error
        if text:
            yield text
        if not content:
            return
        line += content.count(b"\n")
