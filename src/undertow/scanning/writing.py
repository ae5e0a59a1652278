"""What is left of a file, written: every byte of a row that is not touched stays as it was."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from undertow.core.errors import UserError
from undertow.core.files import check_files
from undertow.data.rows.files import Rows
from undertow.data.rows.record import Record
from undertow.data.rows.values import scalar

Row = Any
#: What is to become of a row: itself, another one, or None to leave it out.
Change = Callable[[int, Record], Row | None]
_KINDS = {".json": "list", ".csv": "csv", ".tsv": "tsv"}


def check_output(option: str, path: Path | None, inputs: Sequence[str]) -> None:
    """Refuse a file that cannot be written, or that is one of the files scanned; None is none.

    Args:
        option: what asks for it, as it is typed.
        path: as the user gave it.
        inputs: names of the files scanned; ``-`` is standard input.

    Raises:
        UserError: it cannot be written, or is an input.
    """
    check_files({option: path}, [name for name in inputs if name != "-"])


def write_rows(rows: Rows, change: Change, path: Path, into: Path) -> int:
    """Write the rows of a file that stay.

    Where the name asks for the form that the file has, its text is copied and only what changes is written anew. Any other name
    chooses a form: JSON for ``.json``, CSV and TSV for theirs, JSON lines for all others.

    Args:
        rows: of the file.
        change: what becomes of each row, by its index.
        path: what is asked for; its ending chooses the form.
        into: the file that is written.

    Returns:
        the rows written.

    Raises:
        UserError: CSV or TSV asked for rows that have other than the first row's columns.
    """
    ending = path.suffix.lower()
    wanted = _KINDS.get(ending, "lines")
    # half of a pair of surrogates, which JSON may hold, is written as JSON escapes it
    with open(into, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        records = iter(rows)
        first = next(records, None)
        if first is None:
            return 0
        kind = rows.separated.kind if rows.separated else rows.kind
        every = _chained(first, records)
        if first.raw and (kind == wanted or (ending and ending == rows.source.suffix)):
            return _Copy(rows, file).write(every, change)
        kept = ((record, change(i, record)) for i, record in enumerate(every))
        whole = (row for record, row in kept if row is not None and record.broken is None)
        if wanted in ("csv", "tsv"):
            return _separated(whole, file, path, "\t" if wanted == "tsv" else ",")
        return _json(whole, file, wanted == "list")


def _chained(first: Record, others: Iterator[Record]) -> Iterator[Record]:
    yield first
    yield from others


class _Copy:
    """A file copied text by text."""

    def __init__(self, rows: Rows, file: IO[str]) -> None:
        self._rows, self._file = rows, file
        self._fresh = True  # no row has been written since the list began

    def write(self, records: Iterator[Record], change: Change) -> int:
        self._file.write(self._rows.bom)
        count = 0
        listed = self._rows.kind == "list"
        for i, record in enumerate(records):
            row = change(i, record)
            if not listed:
                self._file.write(record.gap)
            else:
                self._between(record.gap, row is not None)
            if row is None:
                continue
            self._file.write(record.raw if row is record.row else self._text(record, row))
            count += 1
        self._file.write(self._rows.tail)
        return count

    def _between(self, gap: str, kept: bool) -> None:
        """Write what stands between two entries of a list; a comma only between two that are written."""
        if gap.strip(" \t\r\n,"):
            # brackets and names: the list of before ends here, and another begins
            self._file.write(gap)
            self._fresh = True
        elif kept and not self._fresh:
            self._file.write(gap)
        if kept:
            self._fresh = False

    def _text(self, record: Record, row: Row) -> str:
        raw = record.raw
        end = raw[len(raw.rstrip("\r\n")) :]
        if self._rows.separated is not None:
            return self._rows.separated.written(row, end)
        plain = raw.isascii()
        bare = raw.strip()
        if "\n" not in bare:
            separators = (", ", ": ") if '": ' in bare or (bare[:1] == "[" and ", " in bare) else (",", ":")
            return json.dumps(row, ensure_ascii=plain, separators=separators, default=scalar) + end
        base = record.gap.rpartition("\n")[2]
        inner = bare.split("\n")[1]
        step = len(inner) - len(inner.lstrip()) - len(base)
        text = json.dumps(row, ensure_ascii=plain, indent=max(1, step), default=scalar)
        return text.replace("\n", "\n" + base) + end


def _json(rows: Iterator[Row], file: IO[str], listed: bool) -> int:
    count = 0
    file.write("[" if listed else "")
    for row in rows:
        file.write((",\n" if listed and count else "") + json.dumps(row, ensure_ascii=False, default=scalar))
        file.write("" if listed else "\n")
        count += 1
    file.write("]\n" if listed else "")
    return count


def _separated(rows: Iterator[Row], file: io.TextIOBase | IO[str], path: Path, delimiter: str) -> int:
    writer: csv.DictWriter[str] | None = None
    count = 0
    for row in rows:
        flat = isinstance(row, dict) and not any(isinstance(value, list | dict) for value in row.values())
        if flat and writer is None:
            writer = csv.DictWriter(file, list(row), delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
        if not flat or writer is None or list(row) != list(writer.fieldnames):
            raise UserError(f"--write {path}: row {count + 1} does not fit into columns; write to a name that ends in .jsonl")
        writer.writerow(row)
        count += 1
    return count
