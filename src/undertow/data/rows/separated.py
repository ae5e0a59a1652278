"""Files of separated values: CSV and TSV with a header, and headless lines of a question and a Python list of answers."""

from __future__ import annotations

import ast
import csv
import io
import re
from collections.abc import Collection, Iterator
from typing import Any

from undertow.core.errors import UserError
from undertow.data.rows import names
from undertow.data.rows.names import plain
from undertow.data.rows.plan import plan
from undertow.data.rows.record import Record

_MAX_FIELD = 16 * 1024 * 1024
_DELIMITERS = "\t,;|"
_KNOWN = frozenset(names.LEFT_OUT | names.BESIDE | names.DESIRABLE | names.SYSTEM_TEXT | names.HISTORY | names.SECOND).union(
    names.ASKED,
    names.ANSWERED,
    names.CLASSIFIED,
    names.CLASS,
    names.CONTEXT,
    names.TALKS,
    names.CHOSEN,
    names.REJECTED,
    names.RENDERED,
)
#: Text wholly inside quotes, in which every inner quote is doubled: one layer of CSV quoting too many. CSV quotes
#: a question only for the sake of quotes inside it, so one without them was quoted by its author.
_WRAPPED = re.compile(r'"(?:[^"]|"")*"')


def unwrapped(question: str) -> str:
    """Remove one layer of quoting if the whole question is inside quotes and has inner quotes, all doubled."""
    bare = question.strip()
    return bare[1:-1].replace('""', '"') if _WRAPPED.fullmatch(bare) and '""' in bare[1:-1] else bare


def _is_header(fields: list[str]) -> bool:
    """Whether a line holds names of columns that are no usual ones and still make a sample: ``nl,cmd``."""
    made = plan(fields, {})
    return len(fields) == len(set(fields)) > 1 and bool(made.pairs or made.classes)


class Separated:
    """The rows of a file of separated values with the usual doubled quotes; the header tells the delimiter.

    Args:
        name: of the file, for errors.
        columns: names that the header may hold, besides those that are known.

    Attributes:
        header: the columns; None for headless lines.
        delimiter: between fields.
        kind: ``tsv`` if that is a tab, else ``csv``.
        tail: the text after the last row, once all are read.

    Raises:
        UserError: while it is iterated: no header, or quotes that do not close.
    """

    def __init__(self, name: str, columns: Collection[str] = ()) -> None:
        self.header: list[str] | None = None
        self.delimiter = ","
        self.tail = ""
        self._name = name
        self._columns = {plain(column) for column in columns}
        self._taken: list[str] = []

    @property
    def kind(self) -> str:
        """How files of this kind are written."""
        return "tsv" if self.delimiter == "\t" else "csv"

    def rows(self, gap: str, number: int, line: str, lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
        """Yield the rows; ``line`` is the first that is not blank, and ``gap`` what stands before it."""
        self._open(number, line)
        following = self._following(line, lines)
        # The csv module's own limit of 128 KiB a field is a process-wide setting; long answers need more.
        previous = csv.field_size_limit(_MAX_FIELD)
        reader = csv.reader(following, delimiter=self.delimiter, strict=True)
        try:
            if self.header is not None:
                next(reader)
                gap += self._raw()
            for fields in reader:
                raw = self._raw()
                if not fields or not raw.strip():
                    gap += raw
                    continue
                place = f"{self._name} record {number - 1 + reader.line_num}"
                yield self._record(place, fields, raw, gap)
                gap = ""
        except csv.Error as error:
            raise UserError(f"{self._name} line {number - 1 + reader.line_num}: {error}; correct the quotes") from error
        finally:
            csv.field_size_limit(previous)
        self.tail = gap

    def written(self, row: dict[str, Any], end: str) -> str:
        """Return a changed row as a line of the file."""
        out = io.StringIO()
        writer = csv.writer(out, delimiter=self.delimiter, lineterminator=end)
        if self.header is None:
            writer.writerow([row["question"], repr(row["answers"])])
        else:
            writer.writerow([row[column] for column in self.header])
        return out.getvalue()

    def _open(self, number: int, line: str) -> None:
        """Tell delimiter and header by the first line."""
        for delimiter in _DELIMITERS:
            try:
                header = [field.strip() for field in next(csv.reader([line], delimiter=delimiter))]
            except csv.Error:
                continue
            known = [name for name in header if plain(name) in _KNOWN or plain(name) in self._columns]
            if len(known) >= 2 or (len(known) == len(header) == 1 and delimiter == ",") or _is_header(header):
                if twice := sorted({name for name in header if name and header.count(name) > 1}):
                    raise UserError(
                        f"{self._name} line {number}: the header names {twice[0]!r} more than once, and some readers take the "
                        "first of such columns, others the last; rename them"
                    )
                self.header = [name or f"column {i}" for i, name in enumerate(header, start=1)]
                self.delimiter = delimiter
                return
        if "\t" not in line:
            raise UserError(
                f"{self._name} line {number}: neither JSON nor a header with columns such as instruction and output; "
                "give an instruction file, or name its columns (scan: --columns prompt=...,answer=...; a run: data.columns)"
            )
        self.delimiter = "\t"

    def _following(self, line: str, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        self._taken.append(line)
        yield line
        for _, other in lines:
            self._taken.append(other)
            yield other

    def _raw(self) -> str:
        raw = "".join(self._taken)
        self._taken.clear()
        return raw

    def _record(self, place: str, fields: list[str], raw: str, gap: str) -> Record:
        if self.header is None:
            return self._headless(place, fields, raw, gap)
        if len(fields) != len(self.header):
            told = f"{place}: {len(fields)} fields, the header has {len(self.header)}; correct the quotes or the row"
            return Record(place, fields, raw, gap, UserError(told))
        return Record(place, dict(zip(self.header, fields, strict=True)), raw, gap)

    def _headless(self, place: str, fields: list[str], raw: str, gap: str) -> Record:
        """A line of question, tab, and a Python list of answers, as the DPR project released TriviaQA and NQ."""
        answers: Any = None
        if len(fields) == 2:
            try:
                answers = ast.literal_eval(fields[1].strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                answers = None
        if not isinstance(answers, list):
            told = "neither a header nor a question, a tab and a list of answers; name the columns in the first line"
            return Record(place, fields, raw, gap, UserError(f"{place}: {told}"))
        return Record(place, {"question": unwrapped(fields[0]), "answers": answers}, raw, gap)
