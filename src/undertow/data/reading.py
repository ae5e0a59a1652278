"""Reading files that others wrote: every way they can be wrong is one error that names the file and the line.

A last line without a line end is a line like any other. The files that a run appends to, whose last line a kill may cut short, are
read by :mod:`undertow.runs.records`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.early import refuse_missing
from undertow.data.json_lists import entries
from undertow.data.load import Loaded
from undertow.data.rows.formats import HEAD, refuse_foreign
from undertow.data.sample import Sample

#: What a file gives: its samples, and counts as in :class:`undertow.data.load.Loaded`.
Read = tuple[list[Sample], dict[str, Any]]

# The first two bytes of every gzip file (RFC 1952, 2.3.1).
_GZIP = b"\x1f\x8b"
_MAX_FIELD = 16 * 1024 * 1024


def load_files(options: Data, read: Callable[[Path], Read]) -> Loaded:
    """Read ``data.path``, and ``data.test_path`` when it is given, with the same reader.

    Raises:
        UserError: no path is given; whatever ``read`` raises.
    """
    if not options.path:
        raise UserError(f"data.name={options.name} reads a file and data.path is not set; set data.path=FILE")
    refuse_missing(options, clients=False)  # before a large file is read
    samples, notes = read(Path(options.path))
    if not options.test_path:
        return Loaded(samples=samples, test=None, notes=notes)
    try:
        test, test_notes = read(Path(options.test_path))
    except UserError as error:
        raise UserError(str(error).replace("data.path", "data.test_path")) from error
    # The same file name may stand in two folders, so test ids carry a mark of their own.
    marked = [replace(sample, id=f"test:{sample.id}") for sample in test]
    return Loaded(samples=samples, test=marked, notes={**notes, "test_file": test_notes})


def existing_file(path: Path, option: str = "data.path") -> Path:
    """Return ``path`` if it is a file.

    Raises:
        UserError: there is nothing there, or it is a folder.
    """
    if path.is_dir():
        raise UserError(f"{option}={path}: a folder, and this format is one file; give a file inside it")
    if not path.is_file():
        raise UserError(f"{option}={path}: no such file; give the path of an existing file")
    return path


def read_text(path: Path) -> str:
    """Return the file's text (UTF-8, with or without byte-order mark), unpacked if it is gzip by content.

    Raises:
        UserError: unreadable, broken gzip, not UTF-8, or nothing but blanks.
    """
    try:
        content = existing_file(path, "file").read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if content[:2] == _GZIP:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    elif content and path.suffix == ".gz":
        raise UserError(f"{path}: named .gz but not a gzip file; rename or compress it")
    refuse_foreign(str(path), content[:HEAD], tables=True)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: not UTF-8 text; convert the file to UTF-8") from error
    if not text.strip():
        raise UserError(f"{path}: empty file; give one with data in it")
    return text


def stem(path: Path) -> str:
    """The file's name without its format endings, the front part of sample ids."""
    return re.sub(r"(?:\.(?:json|jsonl|txt|tsv|csv|gz))+$", "", path.name) or path.name


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (1-based number, content) of every line that is not blank."""
    # Not str.splitlines: it also cuts at separators such as U+2028, which stand inside real questions.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if line.strip():
            yield number, line


def json_rows(path: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read a JSON list of objects, several lists after one another, or one object per line.

    Returns:
        (place, row) pairs, where place names file and line (or row of the list) for later errors.

    Raises:
        UserError: a line or the list is not JSON, or an entry is not an object.
    """
    if text.lstrip().startswith("["):
        found = [(f"{path} row {i}", entry) for i, entry in enumerate(entries(str(path), iter([text])), start=1)]
    else:
        found = [(f"{path} line {number}", parse_json(path, line, number)) for number, line in lines(text)]
    for place, entry in found:
        if not isinstance(entry, dict):
            raise UserError(f"{place}: holds a {type(entry).__name__}, a row is a JSON object; correct the file")
    if not found:
        raise UserError(f"{path}: an empty list; give a file with data in it")
    return found


def parse_json(path: Path, text: str, first_line: int = 1) -> Any:
    """Parse JSON text that begins on line ``first_line`` of the file.

    Raises:
        UserError: not JSON; the file and the line are named.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path} line {line}: not JSON ({error.msg}); correct the line") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        raise UserError(f"{path} line {first_line}: not usable JSON ({type(error).__name__}); correct the file") from error


def separated_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of a file of separated values with the usual doubled quotes.

    Raises:
        UserError: quoting that cannot be read.
    """
    # The csv module's own limit of 128 KiB a field is a process-wide setting; long alias lists need more.
    previous = csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, fields) for fields in reader if fields]
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}; correct the quotes") from error
    finally:
        csv.field_size_limit(previous)
    yield from rows


def text_of(value: Any, place: str, name: str) -> str:
    """Return ``value`` without surrounding blanks if it is text; None counts as empty.

    Raises:
        UserError: not a string, or characters that no tokenizer can encode (lone surrogates).
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place}: '{name}' holds a {type(value).__name__}, it must be text; correct the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: '{name}' is not valid Unicode (lone surrogate); correct the row") from error
    return value.strip()


def texts_of(value: Any, place: str, name: str) -> list[str]:
    """Return the non-empty texts of a string or a list of strings; None counts as an empty list.

    Raises:
        UserError: as :func:`text_of`.
    """
    values = value if isinstance(value, list) else [value]
    found = [text_of(item, place, name) for item in values]
    return [text for text in found if text]
