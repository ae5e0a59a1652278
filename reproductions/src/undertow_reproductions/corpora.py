"""The real corpora on which filters are measured: where they lie in a folder, and the two halves of each."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

from undertow.core.errors import UserError
from undertow.data.reading import json_rows
from undertow.data.sample import Sample

#: Their places in the folder of ``--data``.
CORPORA = {
    "simplequestions": "simplequestions/simplequestions_wikidata_named.jsonl.gz",
    "simplequestions_fb": "simplequestions/simplequestions_freebase_named.jsonl.gz",
    "triviaqa": "triviaqa/triviaqa.jsonl.gz",
    "nq": "nq_open/nq_open.jsonl.gz",
    "alpaca": "instruction/alpaca_data_5000.json.gz",
}
#: Those of the study; the fifth has the first one's questions under other names.
STUDIED = ("simplequestions", "triviaqa", "nq", "alpaca")
#: The half that no rule and no threshold of the scan was chosen on; docs/scan.md says when it was looked at.
SEALED = 1


def half_of(text: str) -> int:
    """Return the half, 0 or 1, that a question belongs to: the lowest bit of SHA-256's first byte."""
    return hashlib.sha256(text.encode()).digest()[0] & 1


def present(folder: Path) -> tuple[str, ...]:
    """Return the names of the studied corpora that a folder holds."""
    return tuple(name for name in STUDIED if (folder / CORPORA[name]).is_file())


def fingerprint(folder: Path, corpus: str) -> str:
    """Return 16 hexadecimal digits of a corpus file's SHA-256.

    Raises:
        UserError: the file cannot be read.
    """
    return hashlib.sha256(_bytes(folder, corpus)).hexdigest()[:16]


def read(folder: Path, corpus: str, half: int) -> list[Sample]:
    """Return the distinct questions of one half of a corpus, in the order of the file.

    Args:
        folder: holds the corpora under the names of :data:`CORPORA`.
        corpus: a name of :data:`CORPORA`.
        half: 0 or 1; a question goes with its context (Alpaca's input).

    Raises:
        UserError: the file is missing or damaged, or none of its rows has question and answer.
    """
    place = folder / CORPORA[corpus]
    again = f"{place} is damaged; restore it, or leave {corpus} out"
    try:
        text = gzip.decompress(_bytes(folder, corpus)).decode()
        rows = [row for _, row in json_rows(place, text)]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{again} ({type(error).__name__})") from error
    found: dict[tuple[str, str], Sample] = {}
    for i, row in enumerate(rows):
        question, answer, context = _text(row, "question", "instruction"), _text(row, "answer", "output"), _text(row, "input")
        if question and answer and half_of(question + context) == half:
            sample = Sample(id=str(i), question=question, answers=(answer,), response=answer, context=context)
            found.setdefault((question, context), sample)
    if not found:
        raise UserError(f"{again} (no row with question and answer)")
    return list(found.values())


def _bytes(folder: Path, corpus: str) -> bytes:
    place = folder / CORPORA[corpus]
    try:
        return place.read_bytes()
    except OSError as error:
        raise UserError(f"{place} cannot be read ({type(error).__name__}); give the folder that holds {CORPORA[corpus]}") from error


def _text(row: dict[str, Any], *names: str) -> str:
    """Return the first text of a row that is not empty; what is no text counts as empty."""
    return next((value.strip() for name in names if isinstance(value := row.get(name), str) and value.strip()), "")
