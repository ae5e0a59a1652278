"""Instruction files as rows, one at a time: JSON lines, a JSON list, CSV, TSV and Parquet, gzipped or not, told by content.

Rows are recognised by the data loaders' own rules (:mod:`undertow.data.sources.instructions`), so whatever
``data.name=instructions`` trains on can be scanned; TriviaQA's official JSON and the headless TSV of question and answer
list can be, too. A row keeps its form, and :func:`answered` puts another answer into it.
"""

from __future__ import annotations

import ast
import codecs
import csv
import gzip
import importlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from undertow.core.errors import UserError
from undertow.data.json_lists import entries
from undertow.data.reading import existing_file, parse_json, text_of, texts_of
from undertow.data.sample import Sample
from undertow.data.sources.instructions import samples_of
from undertow.data.sources.triviaqa import unwrapped

Row = dict[str, Any]

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_CHUNK = 1 << 20
_MAX_FIELD = 16 * 1024 * 1024
#: Names a first line of separated values must hold two of to be a header.
_COLUMNS = frozenset("instruction input output prompt completion response question answer answers context messages".split())
#: What the user says is no answer, even where it reads the same.
_ASKED = frozenset("instruction input prompt question context system id subject relation group category".split())


@dataclass(frozen=True)
class Source:
    """A file or standard input.

    Attributes:
        name: what messages call it.
        open: opens it from the start, as bytes.
        suffix: the ending of its name, such as ``.csv``; empty for standard input.
    """

    name: str
    open: Callable[[], IO[bytes]]
    suffix: str = ""


def file_source(path: Path) -> Source:
    """Return a file as a source.

    Raises:
        UserError: there is no such file, or it is a folder or not a plain file.
    """
    existing_file(path, "FILE")
    return Source(str(path), lambda: open(path, "rb"), path.name.removesuffix(".gz")[-8:].lower())


def read_rows(source: Source) -> Iterator[tuple[str, Row]]:
    """Yield (place, row); the place names file and line or row for messages.

    Raises:
        UserError: unreadable, damaged, not text, or a line that is no row.
    """
    try:
        with source.open() as raw:
            head = raw.read(4)
            raw.seek(0)
            if head == _PARQUET:
                yield from _parquet(source, raw)
            elif head[:2] == _GZIP:
                with gzip.open(raw) as unpacked:
                    yield from _text_rows(source, unpacked)
            else:
                yield from _text_rows(source, raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{source.name}: damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{source.name}: cannot be read ({error.strerror or error}); check its permissions") from error


def read_samples(source: Source) -> Iterator[tuple[int, Row, list[Sample]]]:
    """Yield (index from 0, row, samples of it); a row without question or answer has none.

    Raises:
        UserError: as :func:`read_rows`, or a row of unknown form.
    """
    dropped: Counter[str] = Counter()
    for index, (place, row) in enumerate(read_rows(source)):
        found = [Sample(id="", response=fields["answers"][0], **fields) for fields in samples_of(row, place, dropped)]
        yield index, row, found


def answered(row: Row, old: str, new: str) -> Row | None:
    """Return the row with one answer replaced wherever it stands outside the question, or None if it stands nowhere."""
    hits = 0

    def walk(value: Any) -> Any:
        nonlocal hits
        if isinstance(value, str):
            if value.strip() != old:
                return value
            hits += 1
            return new
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            speaker = value.get("from", value.get("role"))
            if isinstance(speaker, str) and speaker.lower() in ("human", "user", "system"):
                return value
            return {key: item if key.lower() in _ASKED else walk(item) for key, item in value.items()}
        return value

    changed: Row = walk(row)
    return changed if hits else None


def _text_rows(source: Source, raw: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[str, Row]]:
    if _first(raw) == b"[":
        yield from _listed(source, raw)
        return
    lines = _lines(source, raw)
    number, line = next(lines, (0, ""))
    if not number:
        raise UserError(f"{source.name}: empty file; give one with data in it")
    if line.lstrip().startswith("{"):
        yield from _objects(source, number, line, lines)
    else:
        yield from _separated(source, number, line, lines)


def _first(raw: IO[bytes] | gzip.GzipFile) -> bytes:
    """The first byte that is no blank and not of a byte-order mark; the file is at its start again."""
    first = b""
    while not first and (piece := raw.read(_CHUNK)):
        first = piece.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    raw.seek(0)
    return first


def _lines(source: Source, raw: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line with its end) of every line that is not blank."""
    for number, content in enumerate(raw, start=1):
        try:
            line = content.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{source.name} line {number}: not UTF-8 text; convert the file to UTF-8") from error
        if number == 1 and "\0" in line:
            raise UserError(f"{source.name}: a binary file, not UTF-8 text; give JSON lines, JSON, CSV, TSV or Parquet")
        if line.strip():
            yield number, line


def _following(line: str, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    yield line
    for _, other in lines:
        yield other


def _objects(source: Source, number: int, line: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Row]]:
    path = Path(source.name)
    try:
        first = json.loads(line)
    except ValueError:
        first = None
    following = next(lines, None) if first is None else None
    if first is None and (following is None or following[1].lstrip().startswith("{")):
        parse_json(path, line.rstrip("\r\n"), number)  # a broken line among JSON lines: raises with its place
    if first is None or (isinstance(first, dict) and isinstance(first.get("Data"), list)):
        whole = (
            first
            if first is not None
            else parse_json(path, line + (following[1] if following else "") + "".join(text for _, text in lines), number)
        )
        yield from _whole(source, whole)
        return
    yield _checked(f"{source.name} line {number}", first)
    for number, line in lines:
        yield _checked(f"{source.name} line {number}", parse_json(path, line.rstrip("\r\n"), number))


def _whole(source: Source, content: Any) -> Iterator[tuple[str, Row]]:
    """A file that is one object: TriviaQA's official form, or a single row spelled over several lines."""
    data = content.get("Data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        yield _checked(source.name, content)
        return
    for i, item in enumerate(data, start=1):
        place, row = _checked(f"{source.name} Data entry {i}", item)
        answer = row.get("Answer") or {}
        if "Question" not in row or not isinstance(answer, dict):
            raise UserError(f"{place}: no 'Question' or no 'Answer' object; give an official TriviaQA file")
        accepted = texts_of(answer.get("Value"), place, "Value") + texts_of(answer.get("Aliases"), place, "Aliases")
        yield place, {"question": row["Question"], "answers": accepted}


def _listed(source: Source, raw: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[str, Row]]:
    """The objects of a JSON list, parsed one at a time."""
    count = 0
    for count, entry in enumerate(entries(source.name, _pieces(source, raw)), start=1):
        yield _checked(f"{source.name} row {count}", entry)
    if not count:
        raise UserError(f"{source.name}: an empty list; give a file with data in it")


def _pieces(source: Source, raw: IO[bytes] | gzip.GzipFile) -> Iterator[str]:
    """The text in pieces of a mebibyte at most, wherever its lines end."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    while True:
        content = raw.read(_CHUNK)
        try:
            text = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            line += content.count(b"\n", 0, max(0, error.start - len(error.object) + len(content)))
            raise UserError(f"{source.name} line {line}: not UTF-8 text; convert the file to UTF-8") from error
        if text:
            yield text
        if not content:
            return
        line += content.count(b"\n")


def _separated(source: Source, number: int, line: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Row]]:
    delimiter = "\t" if "\t" in line else ","
    previous = csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(_following(line, lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for fields in reader:
            if not fields:
                continue
            place = f"{source.name} record {reader.line_num}"
            if header is None:
                header = [field.strip() for field in fields]
                if len(_COLUMNS & {name.lower() for name in header}) >= 2:
                    continue
                if delimiter == ",":
                    raise UserError(
                        f"{source.name} line {number}: neither JSON nor a header with columns such as instruction and output; "
                        "give an instruction file"
                    )
                header = []
            if not header:
                yield place, _headless(place, fields)
            elif len(fields) != len(header):
                raise UserError(f"{place}: {len(fields)} fields, the header has {len(header)}; correct the quotes or the row")
            else:
                yield place, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{source.name} line {reader.line_num}: {error}; correct the quotes") from error
    finally:
        csv.field_size_limit(previous)


def _headless(place: str, fields: list[str]) -> Row:
    """A line of question, tab, and a Python list of answers, as the DPR project released TriviaQA and NQ."""
    answers: Any = None
    if len(fields) == 2:
        try:
            answers = ast.literal_eval(fields[1].strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            answers = None
    if not isinstance(answers, list):
        raise UserError(
            f"{place}: neither a header nor a question, a tab and a list of answers; name the columns in the first line"
        )
    return {"question": unwrapped(text_of(fields[0], place, "question")), "answers": texts_of(answers, place, "answers")}


def _parquet(source: Source, raw: IO[bytes]) -> Iterator[tuple[str, Row]]:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(
            f"{source.name}: Parquet needs the package pyarrow, not installed here; run: pip install 'undertow[tables]'"
        ) from error
    try:
        number = 0
        for batch in parquet.ParquetFile(raw).iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield f"{source.name} row {number}", row
    except arrow.ArrowException as error:
        raise UserError(f"{source.name}: damaged Parquet file ({' '.join(str(error).split())[:120]}); fetch it again") from error


def _checked(place: str, entry: Any) -> tuple[str, Row]:
    if not isinstance(entry, dict):
        raise UserError(f"{place}: holds a {type(entry).__name__}, a row is a JSON object; correct the file")
    return place, entry


def write_rows(rows: Iterator[Row], path: Path) -> int:
    """Write rows as JSON lines, or as JSON, CSV or TSV by the path's ending; atomically.

    Returns:
        the rows written.

    Raises:
        UserError: CSV or TSV asked for rows that have other than the first row's columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    ending = path.suffix.lower()
    count = 0
    try:
        with open(fresh, "w", encoding="utf-8", newline="" if ending in (".csv", ".tsv") else None) as file:
            if ending in (".csv", ".tsv"):
                count = _write_separated(rows, file, path, "\t" if ending == ".tsv" else ",")
            else:
                listed = ending == ".json"
                file.write("[" if listed else "")
                for row in rows:
                    file.write((",\n" if listed and count else "") + json.dumps(row, ensure_ascii=False, default=str))
                    file.write("" if listed else "\n")
                    count += 1
                file.write("]\n" if listed else "")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return count


def _write_separated(rows: Iterator[Row], file: io.TextIOBase | IO[str], path: Path, delimiter: str) -> int:
    writer: csv.DictWriter[str] | None = None
    count = 0
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
        if list(row) != list(writer.fieldnames) or any(isinstance(value, list | dict) for value in row.values()):
            raise UserError(f"--write {path}: row {count + 1} does not fit into columns; write to a name that ends in .jsonl")
        writer.writerow(row)
        count += 1
    return count
