"""Facts files for the builder of small bases (``undertow base build``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.reading import read_text, separated_rows, stem
from undertow.data.sources.simplequestions import Triple, named_triple, no_names, read_names, read_triples, triple_files
from undertow.pretraining.corpus import Corpus, FactRow

#: Facts that a base must not have been asked: one for each of ten clients and ten test questions.
FEWEST = 20

_COLUMNS = ("subject", "relation", "object")


def read_facts(path: Path, names: Path | None = None, limit: int | None = None, seed: int = 0) -> list[FactRow]:
    """Read subject-relation-object rows, with questions where the file has them.

    A row's key equals the key that the ``simplequestions`` dataset gives to the same row, so that what the base
    was asked can be kept out of tuning and test.

    Args:
        path: a SimpleQuestions file or folder of any kind; or a TSV, CSV or JSON-lines file with the columns
            subject, relation, object (or answer) and, if known, question. Gzipped or not.
        names: for files of ids, lines of id, tab, name, or named JSON lines.
        limit: at most this many distinct keys, drawn at random; None for all.
        seed: of that draw.

    Returns:
        The rows in the order of the file; rows without the name of the subject or of the object are left out.

    Raises:
        UserError: a file is missing or malformed, ``limit`` is below 1, or no row is left.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit of facts is {limit}, it must be at least 1; raise it or leave it out for all")
    known = read_names(names, "names") if names else {}
    count = 0
    rows: dict[FactRow, None] = {}
    for file in triple_files(path):
        for triple in _triples(file, known):
            count += 1
            if triple.subject and triple.relation and triple.objects:
                rows[FactRow(triple.subject, triple.relation, triple.objects[0], triple.question)] = None
    if not rows:
        raise no_names(path, count, known, option="names")
    keys = sorted({row.key for row in rows})
    if limit is None or limit >= len(keys):
        return list(rows)
    kept = {keys[i] for i in rng(seed, "facts").choice(len(keys), size=limit, replace=False)}
    return [row for row in rows if row.key in kept]


def refuse_few(corpus: Corpus, source: Path) -> None:
    """Refuse facts of which too few are left to tune on and to test, before a base is built that nothing can be done with.

    Raises:
        UserError: fewer than :data:`FEWEST`.
    """
    left = len(set(corpus.known) - set(corpus.asked))
    if left < FEWEST:
        raise UserError(
            f"{source}: {len(corpus.known)} facts, of which the base is asked {len(corpus.asked)}; {FEWEST} others are needed to "
            "tune and to test it; give more facts or lower --asked"
        )


def _triples(path: Path, names: dict[str, tuple[str, ...]]) -> Iterator[Triple]:
    """Rows of a separated file with a header, or of a SimpleQuestions file."""
    text = read_text(path)
    first = text.lstrip().split("\n", 1)[0].rstrip("\r")
    delimiter = "\t" if "\t" in first else ","
    header = [column.strip().strip('"').lower() for column in first.split(delimiter)]
    if not set(_COLUMNS) <= set(header):
        if delimiter == "," and not first.startswith(("{", "[")):
            raise UserError(f"{path} line 1: no columns subject, relation, object; give them in a header line")
        yield from read_triples(path, names)
        return
    for i, (number, fields) in enumerate(separated_rows(path, text, delimiter)):
        if i == 0:
            continue
        if len(fields) != len(header):
            raise UserError(f"{path} line {number}: {len(fields)} columns, the header has {len(header)}; correct the line")
        row = dict(zip(header, fields, strict=True))
        yield named_triple(f"{stem(path)}:{number}", f"{path} line {number}", row, names)
