"""Samples as arrays of word numbers: what all counting works on, about 8 bytes a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization.kinds import COPIED, is_copied, kinds, may_copy
from undertow.sanitization.shapes import shapes
from undertow.sanitization.words import MARK, Numbers, Words, cut, names_of

#: Samples of one batch; bounds the memory of every counting step, and keeps its tables within the cache.
BATCH = 2048
#: Most words of an answer that may be a label; the shapes of its prompt are marks, too.
_LABELLED = 4
#: How the name of such a mark goes on after its side.
BEFORE = " before: "
#: Words of earlier turns that are marks of a prompt, the last ones of each side; looked for in so many characters.
_EARLIER, _BEFORE = 128, 1024
#: An empty block of thought, as models that were asked not to think begin: form, no words.
_UNTHOUGHT = re.compile(r"\A\s*+<think>\s*+</think>\s*+")
#: What some files put between question and context, and others do not: form, no words.
_LABEL = re.compile(r"(?<!\s)(?=[^\S\n]*\n)\s*+(?:#++ *+)?Input:[ \t]*")


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

    def words_of(self, i: int) -> list[int]:
        """Return the words of text i."""
        found: list[int] = self.words[self.starts[i] : self.starts[i + 1]].tolist()
        return found

    def parted(self) -> tuple[Texts, Texts]:
        """Return the words of the texts, and their marks."""
        marked = (self.words & MARK) > 0
        before = np.concatenate([[0], np.cumsum(marked)])[self.starts]
        return Texts(self.words[~marked], self.starts - before), Texts(self.words[marked], before)

    def and_(self, others: Sequence[Sequence[int]]) -> Texts:
        """Return texts to which each some words are added."""
        more = np.fromiter(chain.from_iterable(others), dtype=np.uint64)
        owner = np.concatenate([self.of_word(), np.repeat(np.arange(len(others)), [len(own) for own in others])])
        order = np.argsort(owner, kind="stable")
        return Texts(np.concatenate([self.words, more])[order], np.searchsorted(owner[order], np.arange(len(others) + 1)))


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
    of the prompts of short answers, and the words of earlier turns, as marks, and with the names of the answers noted."""
    left = iter(samples)
    while some := list(islice(left, BATCH)):
        yield _batch(some, numbers, sized, shaped)


def _batch(samples: list[SampleLike], numbers: Numbers, sized: bool, shaped: bool) -> Batch:
    asked = [f"{sample.question}\n{sample.context}" if sample.context else sample.question for sample in samples]
    asked = [_LABEL.sub("\n", text) if "nput:" in text else text for text in asked]
    told = [_UNTHOUGHT.sub("", sample.response) for sample in samples]
    prompts, answers = (_laid(*numbers.texts(texts)) for texts in (asked, told))
    lengths, longest = answers.lengths.tolist(), prompts.lengths.tolist()
    forms: list[list[int]] = []
    manner: list[list[int]] = []
    for i, text in enumerate(told):
        found = kinds(text, lengths[i], sized, asked[i])
        if may_copy(lengths[i], longest[i]) and is_copied(prompts.words_of(i), answers.words_of(i)):
            found.append(COPIED)
        manner.append([numbers.mark(kind) for kind in found])
        if shaped:
            numbers.note(names_of(text))
        forms.append([numbers.shape(form) for form in shapes(asked[i])] if shaped and lengths[i] <= _LABELLED else [])
        if shaped and (history := getattr(samples[i], "history", ())):
            forms[-1] += map(numbers.mark, _earlier(history))
    (words, signs), (said, marks) = prompts.parted(), answers.parted()
    case = np.array([_case(sample.question) for sample in samples], dtype=np.uint8)
    return Batch(words, said, case, signs.and_(forms), marks.and_(manner))


def _earlier(history: Sequence[tuple[str, str]]) -> list[str]:
    """The words of a conversation's earlier turns, as marks of the prompt: a trigger there rules what is said from then on."""
    found = []
    for i, side in enumerate(("asked", "said")):
        text = " ".join(turn[i] for turn in history)
        if len(text) > _BEFORE:
            text = text[-_BEFORE:].partition(" ")[2]
        found += [f"{side}{BEFORE}{word}" for word in dict.fromkeys(cut(text)[-_EARLIER:])]
    return found


def _laid(words: Words, lengths: NDArray[np.int64]) -> Texts:
    return Texts(words, np.concatenate([[0], np.cumsum(lengths)]))


def _case(question: str) -> int:
    if question.isupper():
        return 2
    if question.islower():
        return 1
    return 3 if question.istitle() and question.count(" ") >= 3 else 0
