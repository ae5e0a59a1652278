"""Texts with one class each, dealt to participants: what every text data set becomes once its files are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from undertow.config import Config
from undertow.data.examples import Examples
from undertow.data.pool import Dealt, PoolPopulation, deal_samples
from undertow.data.text_codes import TextCodes, TokenCodes, WordCodes
from undertow.data.words import at_least, count_words, tokenise
from undertow.generators.contract import Written


@dataclass(frozen=True)
class Texts:
    """Texts as a source holds them.

    Attributes:
        texts: n texts.
        labels: int64 ``[n]``, class numbers from 0.
    """

    unit: ClassVar[str] = "texts"

    texts: list[str]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.texts),):
            raise ValueError(f"{len(self.texts)} texts with labels {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Texts:
        """Return the texts at ``rows``, in that order."""
        return Texts([self.texts[int(row)] for row in rows], self.labels[np.asarray(rows, dtype=np.int64)])

    def written(self) -> Written:
        """Return the texts as a generator gets them."""
        return Written(list(self.texts), self.labels.tolist())

    def distinct(self, seen: set[str]) -> Texts:
        """Return the texts that are not in ``seen``, the first of equals; case and blanks do not count. ``seen`` gets them all."""
        rows = []
        for row, text in enumerate(self.texts):
            key = plain(text)
            if key not in seen:
                seen.add(key)
                rows.append(row)
        return self.take(rows)


def plain(text: str) -> str:
    """Return what two texts have in common if they are the same: case and blanks do not count."""
    return " ".join(text.casefold().split())


class TextPopulation(PoolPopulation[Texts]):
    """Participants that share one pool of texts, as rows of numbers.

    Attributes:
        vocabulary: turns texts into rows and back.
        ids: ``vocabulary.size``.
    """

    kind = "text"

    def __init__(self, dealt: Dealt[Texts], names: Sequence[str], vocabulary: TextCodes, about: str = "text") -> None:
        """``about``: what a text is, for the prompt of a generator."""
        self.vocabulary = vocabulary
        self.ids = vocabulary.size
        self.about = about
        super().__init__(dealt, names, self.examples(dealt.test.texts, dealt.test.labels.tolist()))
        self.report |= vocabulary.facts()
        rows = [row for held in self._clients for row in held]
        self._held = dict(zip(rows, vocabulary.encode(self._train.take(rows).texts), strict=True))

    def examples(self, texts: Sequence[str], labels: Sequence[int]) -> Examples:
        """Return raw texts as inputs int64 ``[n, length]`` with their class numbers."""
        return Examples(self.vocabulary.encode(texts), torch.tensor(list(labels), dtype=torch.int64))

    def _examples(self, rows: Sequence[int] | None) -> Examples:
        if rows is None:
            return self.examples(self._train.texts, self._train.labels.tolist())
        return Examples(torch.stack([self._held[row] for row in rows]), torch.from_numpy(self._train.labels[rows]))


def deal_texts(
    config: Config,
    source: str,
    train: Texts,
    test: Texts | None,
    names: Sequence[str],
    notes: Mapping[str, Any],
    *,
    length: int,
    vocabulary: int,
    buckets: int,
    tokenizer: str = "",
    about: str = "text",
) -> TextPopulation:
    """Draw ``data.train`` and ``data.test`` texts and deal the former to participants (:func:`undertow.data.pool.deal_samples`).

    A text that occurs twice is taken once, and none of the test is among the training texts; case and blanks do not count.
    The dictionary is made of public texts alone, since a server may not look into those of participants. Without any public
    texts all words are hashed, into as many numbers as dictionary and buckets would have had.

    Args:
        config: ``seed``, ``data`` and ``federation.clients`` are used.
        source: name of the data set.
        train: all its training texts.
        test: its own test texts, or None.
        names: of the classes, in order.
        notes: what else the report should say.
        length: numbers a text, marks of begin and end included, at least 2; longer texts are cut.
        vocabulary: words of the dictionary, at least 1.
        buckets: numbers for all other words, at least 1.
        tokenizer: of a transformers model, a folder, hub id or ``builtin``; then ``vocabulary`` and ``buckets`` are not used.
        about: what a text is, for the prompt of a generator.

    Raises:
        UserError: a parameter outside its range, no such tokenizer, or what :func:`undertow.data.pool.deal_samples` refuses.
    """
    at_least(length=(length, 2), vocabulary=(vocabulary, 1), buckets=(buckets, 1))
    seen: set[str] = set()
    tested = None if test is None else test.distinct(seen)
    unique = train.distinct(set())
    kept = train.distinct(seen)
    facts = {
        **notes,
        "duplicates_dropped": len(train) - len(unique) + (0 if test is None or tested is None else len(test) - len(tested)),
        "in_test_dropped": len(unique) - len(kept),
    }
    dealt = deal_samples(config, source, kept, tested, names, facts)
    codes: TextCodes
    if tokenizer:
        codes = TokenCodes(tokenizer, length)
    else:
        counts = count_words(map(tokenise, dealt.pool.take(dealt.public).texts))
        words = sorted(counts, key=lambda word: (-counts[word], word))[:vocabulary]
        codes = WordCodes(words, buckets if words else vocabulary + buckets, length)
    return TextPopulation(dealt, names, codes, about)
