"""Texts with one class each, dealt to clients: what every text data set becomes once its files are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from undertow.config import ClassificationData
from undertow.data.examples import Examples, Written
from undertow.data.pool import Dealt, PoolPopulation, Source, deal_samples
from undertow.data.text_codes import TextCodes, TokenCodes, WordCodes
from undertow.data.words import at_least, count_words, tokenise


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
    """Clients that share one pool of texts, as rows of numbers.

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


@dataclass(frozen=True)
class Coding:
    """How texts become rows of numbers.

    Attributes:
        length: numbers a text, marks of begin and end included, at least 2; longer texts are cut.
        vocabulary: words of the dictionary, at least 1.
        buckets: numbers for all other words, at least 1.
        tokenizer: of a transformers model, a folder, hub id or ``builtin``; then ``vocabulary`` and ``buckets`` are not used.
    """

    length: int
    vocabulary: int
    buckets: int
    tokenizer: str = ""

    def codes(self, public: Sequence[str]) -> TextCodes:
        """Return the codes with a dictionary made of ``public`` texts.

        Raises:
            UserError: no such tokenizer.
        """
        if self.tokenizer:
            return TokenCodes(self.tokenizer, self.length)
        counts = count_words(map(tokenise, public))
        words = sorted(counts, key=lambda word: (-counts[word], word))[: self.vocabulary]
        return WordCodes(words, self.buckets if words else self.vocabulary + self.buckets, self.length)


def deal_texts(options: ClassificationData, seed: int, clients: int, source: Source[Texts], coding: Coding) -> TextPopulation:
    """Draw ``data.train`` and ``data.test`` texts and deal the former to the clients (:func:`undertow.data.pool.deal_samples`).

    A text that occurs twice is taken once, and none of the test is among the training texts; case and blanks do not count.
    The dictionary is made of public texts alone, since a server may not look into those of clients. Without any public
    texts all words are hashed, into as many numbers as dictionary and buckets would have had.

    Args:
        options: of the data.
        seed: of the run.
        clients: how many.
        source: the data set.
        coding: how texts become rows of numbers.

    Raises:
        UserError: a parameter outside its range, no such tokenizer, or what :func:`undertow.data.pool.deal_samples` refuses.
    """
    at_least(length=(coding.length, 2), vocabulary=(coding.vocabulary, 1), buckets=(coding.buckets, 1))
    seen: set[str] = set()
    train, test = source.train, source.test
    tested = None if test is None else test.distinct(seen)
    unique = train.distinct(set())
    kept = train.distinct(seen)
    facts = {
        **source.notes,
        "duplicates_dropped": len(train) - len(unique) + (0 if test is None or tested is None else len(test) - len(tested)),
        "in_test_dropped": len(unique) - len(kept),
    }
    dealt = deal_samples(options, seed, clients, replace(source, train=kept, test=tested, notes=facts))
    return TextPopulation(dealt, source.names, coding.codes(dealt.pool.take(dealt.public).texts), source.about)
