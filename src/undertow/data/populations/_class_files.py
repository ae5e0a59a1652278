"""Populations of texts with classes that are read from files: one file, and one for the test if the source has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from undertow.config import ClassificationData
from undertow.core.errors import UserError
from undertow.data.pool import Source
from undertow.data.population import Population
from undertow.data.reading import existing_file
from undertow.data.texts import Coding, Texts, deal_texts

#: Reads a file into texts and their class numbers, and says in which form it was.
Read = Callable[[Path], tuple[list[str], list[int], str]]


def of_files(
    options: ClassificationData, seed: int, clients: int, read: Read, names: Sequence[str], about: str, coding: Coding
) -> Population:
    """Make the population of ``data.path``, and ``data.test_path`` where it is given (:func:`undertow.data.texts.deal_texts`).

    Raises:
        UserError: no path, whatever ``read`` raises, or whatever dealing refuses.
    """
    source = options.name.partition(":")[0]
    if not options.path:
        raise UserError(f"data.name={source} reads a file and data.path is not set; set data.path=FILE")
    files = [existing_file(Path(options.path))]
    if options.test_path:
        files.append(existing_file(Path(options.test_path), "data.test_path"))
    found = [read(path) for path in files]
    sides = [Texts(texts, np.array(labels, dtype=np.int64)) for texts, labels, _ in found]
    notes = {"files": [path.name for path in files], "forms": [form for _, _, form in found]}
    test = sides[1] if len(sides) > 1 else None
    return deal_texts(options, seed, clients, Source(source, sides[0], test, names, notes, about), coding)
