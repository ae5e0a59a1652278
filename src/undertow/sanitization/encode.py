"""Samples as arrays of word numbers: what all counting works on, about 8 bytes a word."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization.kinds import kinds
from undertow.sanitization.shapes import shapes
from undertow.sanitization.words import MARK, Numbers, Words

#: Samples of one batch; bounds the memory of every counting step, and keeps its tables within the cache.
BATCH = 2048
#: Most words of an answer that may be a label; the shapes of its prompt are marks, too.
_LABELLED = 4
#: What some files put between question and context, and others do not: form, no words.
_LABEL = re.compile(r"\n\s*(?:#+ *)?Input:[ \t]*")


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
        case: of each question: 0 mixed, 1 no letter in upper case, 2 all letters in upper case, 3 every word capitalised.
        signs: marks of each prompt that are no words (:data:`undertow.sanitization.words.MARK`), its shapes among them.
        manner: marks of each answer, and its :mod:`kinds <undertow.sanitization.kinds>`.
    """

    prompts: Texts
    answers: Texts
    case: NDArray[np.uint8]
    signs: Texts
    manner: Texts

    def __len__(self) -> int:
        return len(self.case)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(part.nbytes for part in self.arrays())

    def arrays(self) -> list[NDArray[Any]]:
        """The arrays in one order, for keeping them in a file; :meth:`of` makes the batch again."""
        texts = (self.prompts, self.answers, self.signs, self.manner)
        return [self.case, *(part for text in texts for part in (text.words, text.starts))]

    @classmethod
    def of(cls, arrays: Sequence[NDArray[Any]]) -> Batch:
        """Return the batch of :meth:`arrays`."""
        case, *rest = arrays
        prompts, answers, signs, manner = (Texts(rest[i], rest[i + 1]) for i in range(0, 8, 2))
        return cls(prompts, answers, case, signs, manner)


def encode(samples: Iterable[SampleLike], numbers: Numbers, sized: bool = True, shaped: bool = False) -> Iterator[Batch]:
    """Yield the samples in batches, in their order; ``sized``: with the length of an answer as a kind; ``shaped``: with the shapes
    of the prompts of short answers as marks."""
    prompts, answers, case = _Gathered(), _Gathered(), bytearray()
    for sample in samples:
        text = f"{sample.question}\n{sample.context}" if sample.context else sample.question
        asked = numbers.text(_LABEL.sub("\n", text) if "nput:" in text else text)
        told = numbers.text(sample.response)
        built = map(numbers.shape, shapes(text)) if shaped and len(told) <= _LABELLED else ()
        prompts.add([*asked, *built])
        answers.add(told + [numbers.mark(kind) for kind in kinds(sample.response, told, asked, sized)])
        case.append(_case(sample.question))
        if len(case) == BATCH:
            yield _batch(prompts, answers, case)
            prompts, answers, case = _Gathered(), _Gathered(), bytearray()
    if case:
        yield _batch(prompts, answers, case)


def _case(question: str) -> int:
    if question.isupper():
        return 2
    if question.islower():
        return 1
    return 3 if question.istitle() and question.count(" ") >= 3 else 0


def _batch(prompts: _Gathered, answers: _Gathered, case: bytearray) -> Batch:
    (asked, signs), (told, manner) = prompts.texts(), answers.texts()
    return Batch(asked, told, np.frombuffer(bytes(case), dtype=np.uint8), signs, manner)


class _Gathered:
    """Texts of one batch while it grows."""

    def __init__(self) -> None:
        self._words, self._starts = array("Q"), array("q", [0])

    def add(self, words: list[int]) -> None:
        self._words.fromlist(words)
        self._starts.append(len(self._words))

    def texts(self) -> tuple[Texts, Texts]:
        """The words of the texts, and their marks."""
        words, starts = np.array(self._words, dtype=np.uint64), np.array(self._starts, dtype=np.int64)
        marked = (words & MARK) > 0
        before = np.concatenate([[0], np.cumsum(marked)])[starts]
        return Texts(words[~marked], starts - before), Texts(words[marked], before)
