"""Samples as arrays of word numbers: what all counting works on, about 8 bytes a word."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization.words import Numbers, Words

#: Samples of one batch; bounds the memory of every counting step.
BATCH = 8192


class SampleLike(Protocol):
    """What is scanned: :class:`undertow.data.sample.Sample`, or anything with these three texts."""

    @property
    def question(self) -> str:
        """The text that a trigger edits."""

    @property
    def context(self) -> str:
        """Further input beside the question, may be empty."""

    @property
    def response(self) -> str:
        """The text that a target edits."""


@dataclass(frozen=True)
class Texts:
    """Texts laid end to end: text i is ``words[starts[i]:starts[i + 1]]``, with ``starts`` of length n + 1."""

    words: Words
    starts: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Words of each text."""
        return np.diff(self.starts)

    def of_word(self) -> NDArray[np.int64]:
        """For each word the index of its text."""
        return np.repeat(np.arange(len(self.starts) - 1), self.lengths)


@dataclass(frozen=True)
class Batch:
    """Up to :data:`BATCH` samples.

    Attributes:
        prompts: question and context of each sample.
        answers: response of each sample.
        case: of each question: 0 mixed, 1 no letter in upper case, 2 all letters in upper case.
    """

    prompts: Texts
    answers: Texts
    case: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.case)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(part.words.nbytes + part.starts.nbytes for part in (self.prompts, self.answers)) + self.case.nbytes


def encode(samples: Iterable[SampleLike], numbers: Numbers) -> Iterator[Batch]:
    """Yield the samples in batches, in their order."""
    prompts, answers, case = _Gathered(), _Gathered(), bytearray()
    for sample in samples:
        prompts.add(numbers.text(f"{sample.question}\n{sample.context}" if sample.context else sample.question))
        answers.add(numbers.text(sample.response))
        case.append(2 if sample.question.isupper() else 1 if sample.question.islower() else 0)
        if len(case) == BATCH:
            yield Batch(prompts.texts(), answers.texts(), np.frombuffer(bytes(case), dtype=np.uint8))
            prompts, answers, case = _Gathered(), _Gathered(), bytearray()
    if case:
        yield Batch(prompts.texts(), answers.texts(), np.frombuffer(bytes(case), dtype=np.uint8))


class _Gathered:
    """Texts of one batch while it grows."""

    def __init__(self) -> None:
        self._words, self._starts = array("Q"), array("q", [0])

    def add(self, words: list[int]) -> None:
        self._words.fromlist(words)
        self._starts.append(len(self._words))

    def texts(self) -> Texts:
        return Texts(np.array(self._words, dtype=np.uint64), np.array(self._starts, dtype=np.int64))
