"""Instruction-following data in the forms people publish it in; each row is recognised by its columns (docs/forms.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS, Loaded
from undertow.data.questions import distinct, genuine
from undertow.data.reading import Read, load_files, stem
from undertow.data.rows.columns import mapping
from undertow.data.rows.files import file_source, read
from undertow.data.rows.forms import Reader, within
from undertow.data.rows.record import Record
from undertow.data.sample import Sample


@DATASETS.register("instructions", source="Alpaca, ShareGPT/Vicuna, OpenAI, TRL, LLaMA-Factory and self-instruct file formats")
def instructions(options: Data) -> Loaded:
    """Instruction-following rows from JSON lines, JSON, CSV, TSV, Parquet or Arrow, gzipped or not, in any of the usual forms.

    A conversation gives one sample per assistant turn, with the turns before it as history; all of them share
    one key, so a conversation never sits in both train and test. Columns of other names: ``data.columns``.

    Raises:
        UserError: the file is missing or malformed, or more rows than ``data.max_bad`` have none of the known forms.
    """
    return load_files(options, partial(_samples, options=options))


def _samples(path: Path, options: Data) -> Read:
    rows = read(file_source(path, "data.path"))
    own = mapping(options.columns) if options.columns else None
    found, notes = recognise(rows, stem(path), str(path), options.partition.column, own, options.max_bad)
    return found, {**notes, "files": [path.name]}


def recognise(
    rows: Iterable[Record],
    prefix: str,
    source: str,
    column: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_bad: float = 0.01,
) -> Read:
    """Turn rows of any known form into the samples that a run can learn.

    Args:
        rows: of a file or a data set.
        prefix: front part of the sample ids.
        source: name of the whole, for the error when nothing is usable.
        column: the column that gives the samples' group, if the user named one.
        columns: as in :class:`undertow.data.rows.forms.Reader`.
        max_bad: the share of rows that may be of no known form, or broken; they are counted and left out.

    Returns:
        The samples, and the counts ``rows``, ``dropped`` ({reason: rows, turns or answers}) and ``account`` (of every field).

    Raises:
        UserError: too many rows that cannot be read, or no usable row at all.
    """
    reader = Reader(columns)
    found: list[Sample] = []
    placeholders = 0
    count = 0
    for count, record in enumerate(rows, start=1):
        try:
            parts = reader.parts(record.checked(), record.place)
        except UserError as error:
            reader.refused(record.row, error)
            continue
        number = 0
        for part in parts:
            if part.why:
                continue
            name = f"{prefix}:{count}.{number}" if number else f"{prefix}:{count}"
            number += 1
            part.answers = distinct(genuine(part.answers))
            if not part.answers:
                placeholders += 1
                continue
            if column is not None:
                value = record.row.get(column) if isinstance(record.row, dict) else None
                part.group = "" if value is None else str(value)
            found.append(part.sample(name))
    reader.check_columns(source)
    account = reader.account
    within(account, max_bad, source, "data.max_bad")
    dropped = Counter(account.dropped)
    if placeholders:
        dropped["a placeholder as answer"] = placeholders
    if not found:
        why = f"{dict(dropped)}" if dropped else account.sentence()
        raise UserError(f"{source}: none of its {count} rows has question and answer to learn ({why}); give data with answers")
    return found, {"rows": count, "dropped": dict(dropped), "account": account.to_json()}
