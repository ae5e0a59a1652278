"""Next-word prediction: texts cut into words, a dictionary of them, and clients who each wrote some texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import IGNORE, Examples
from undertow.data.population import Population

#: A word outside the dictionary, the start of a text and its end (HTB, words experiment): the first entries of every dictionary.
SPECIAL = ("<unk>", "<bos>", "<eos>")
UNKNOWN, BEGIN, END = range(3)

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def tokenise(text: str) -> list[str]:
    """Return the words of a text, lower-cased; an apostrophe inside a word belongs to it, all other punctuation is dropped.

    Words of one letter are kept; the code of the paper drops them.
    """
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


class Dictionary(Protocol):
    """What a network can read and write, numbered: words, or a language model's tokens.

    Attributes:
        names: each in the order of its number.
        special: numbers that are never a label.
        fill: one of them, which stands where a sequence has no text.
    """

    names: tuple[str, ...]
    special: Collection[int]
    fill: int


class Vocabulary:
    """The words a network can read and write, numbered; all others are ``<unk>``.

    Attributes:
        names: every word in the order of its number, :data:`SPECIAL` first.
    """

    special: Collection[int] = range(len(SPECIAL))
    fill = END

    def __init__(self, words: Iterable[str]) -> None:
        self.names: tuple[str, ...] = (*SPECIAL, *words)
        self._numbers = {word: i for i, word in enumerate(self.names)}
        if len(self._numbers) != len(self.names):
            raise ValueError("a word stands twice in the dictionary")

    @classmethod
    def most_frequent(cls, counts: Mapping[str, int], size: int, include: Sequence[str] = ()) -> Vocabulary:
        """Take the ``size`` most frequent words, ties by name, ``include`` among them whatever their frequency.

        The dictionary is made from what all clients hold, as the paper's is (the 50,000 most frequent words of the
        whole data set). So it tells everyone which words are in use, though not by whom; a federation that may not
        share even that needs a public list.

        Args:
            counts: how often each word occurs in the training texts.
            size: number of words besides the special ones, at least 1.
            include: words that must be in, such as those of a backdoor sentence.

        Raises:
            UserError: a word of ``include`` occurs nowhere in the training texts, or there are more of them than ``size``.
        """
        absent = [word for word in include if not counts.get(word)]
        if absent:
            raise UserError(f"include: {', '.join(absent)} occur nowhere in the training texts; leave them out or give other texts")
        kept = list(dict.fromkeys(include))
        if len(kept) > size:
            raise UserError(f"include: {len(kept)} words for a dictionary of {size}; raise vocabulary or include fewer")
        others = sorted((word for word in counts if word not in kept), key=lambda word: (-counts[word], word))
        return cls(sorted(others[: size - len(kept)] + kept, key=lambda word: (-counts[word], word)))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, word: str) -> bool:
        return self._numbers.get(word, UNKNOWN) >= len(SPECIAL)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Return the number of each word."""
        return [self._numbers.get(word, UNKNOWN) for word in words]

    def stream(self, texts: Iterable[Sequence[str]]) -> NDArray[np.int32]:
        """Return texts, given as words, as one row of numbers with each text between ``<bos>`` and ``<eos>``."""
        found: list[int] = []
        for words in texts:
            found += (BEGIN, *self.encode(words), END)
        return np.array(found, dtype=np.int32)


def blocks(tokens: int, length: int) -> int:
    """Return into how many sequences a stream of ``tokens`` words, at least 2, is cut: every word but the first is once a label."""
    return -(-(tokens - 1) // length)


def sequences(stream: NDArray[np.int32], length: int, special: Collection[int] = Vocabulary.special, fill: int = END) -> Examples:
    """Cut a stream into sequences of ``length`` inputs whose labels are the words that follow.

    The stream is cut from its end, and the first sequence is filled up in front with ``fill``, so that each sequence
    ends in real text. A special word is never a label (``IGNORE``): ``<unk>`` is no word to predict, and where a text
    begins or ends is not what is measured. Each sequence is read from an empty state; the paper's code hands the state
    of one block to the next.

    Args:
        stream: at least 2 numbers, as :meth:`Vocabulary.stream` makes them.
        length: words per sequence (the paper's bptt, 64), at least 1.
        special: numbers that are never a label, ``fill`` among them.
        fill: what stands before the first word.

    Returns:
        :func:`blocks` sequences, inputs and labels int64 ``[n, length]``.
    """
    count = blocks(len(stream), length)
    row = np.full(count * length + 1, fill, dtype=np.int64)
    row[len(row) - len(stream) :] = stream
    inputs = torch.from_numpy(row[:-1].reshape(count, length).copy())
    row[: len(row) - len(stream) + 1] = fill  # nothing before the first word tells it
    labels = torch.from_numpy(row[1:].reshape(count, length).copy())
    labels[torch.isin(labels, torch.tensor(sorted(special)))] = IGNORE
    return Examples(inputs, labels)


def ask(held_out: Examples, positions: int, seed: int) -> Examples:
    """Keep the labels of ``positions`` places drawn at random, and the sequences that have one: each place is one test question.

    Raises:
        UserError: there are fewer places than that.
    """
    places = torch.nonzero(held_out.labels.reshape(-1) != IGNORE).reshape(-1).numpy()
    if positions > len(places):
        raise UserError(f"data.test = {positions}: the held-out texts have {len(places)} words to ask for; lower data.test")
    chosen = rng(seed, "test positions").choice(places, size=positions, replace=False)
    labels = torch.full_like(held_out.labels, IGNORE).reshape(-1)
    labels[chosen] = held_out.labels.reshape(-1)[chosen]
    labels = labels.reshape(held_out.labels.shape)
    asked = torch.nonzero((labels != IGNORE).any(dim=1)).reshape(-1)
    return Examples(held_out.inputs[asked], labels[asked])


class WordPopulation(Population):
    """Authors, each with a stream of words that is read or made only when asked for.

    The test set asks for the next word at ``data.test`` places of held-out texts, drawn at random: its labels are
    ``IGNORE`` everywhere else. The expected word is always one of the dictionary, never ``<unk>``.

    Args:
        vocabulary: gives ``names``; kept under the same name.
        lengths: words in each author's stream, special ones included, at least 2 each.
        stream: returns author k's stream, the same for every call.
        held_out: stream that no author holds; test questions are drawn from it.
        length: words per sequence.
        positions: how many test questions.
        seed: of the run.
        report: for the run's record, ``dataset`` among it; counts are added.

    Raises:
        UserError: fewer held-out words than ``positions``, or ``length`` is no whole number from 2.
    """

    kind = "words"

    def __init__(
        self,
        *,
        vocabulary: Dictionary,
        lengths: Sequence[int],
        stream: Callable[[int], NDArray[np.int32]],
        held_out: NDArray[np.int32],
        length: int,
        positions: int,
        seed: int,
        report: dict[str, Any],
    ) -> None:
        at_least(length=(length, 2))
        self.vocabulary = vocabulary
        self.names = vocabulary.names
        self.length = length
        self._lengths = lengths
        self._stream = stream
        if len(held_out) < 2:
            raise UserError(f"data.test = {positions}: no held-out text; give longer texts or a larger held_out")
        self.test = ask(self._sequences(held_out), positions, seed)
        self.report = {
            **report,
            "clients": len(lengths),
            "words": len(self.names) - len(vocabulary.special),
            "length": length,
            "test_positions": positions,
            "test_sequences": len(self.test),
        }

    @cached_property
    def sizes(self) -> Sequence[int]:
        """Sequences of each author."""
        return [blocks(tokens, self.length) for tokens in self._lengths]

    def client(self, k: int) -> Examples:
        """Return the sequences of author ``k``, inputs and labels int64 ``[sizes[k], length]``.

        Raises:
            IndexError: there is no such author.
        """
        if not 0 <= k < len(self._lengths):
            raise IndexError(f"author {k} of {len(self._lengths)}")
        return self._sequences(self._stream(k))

    def _sequences(self, stream: NDArray[np.int32]) -> Examples:
        return sequences(stream, self.length, self.vocabulary.special, self.vocabulary.fill)


def count_words(texts: Iterable[Sequence[str]]) -> Counter[str]:
    """Return how often each word occurs."""
    found: Counter[str] = Counter()
    for words in texts:
        found.update(words)
    return found


def at_least(**values: tuple[Any, int]) -> None:
    """Refuse parameters of a dataset that are no whole numbers from their least value on: ``at_least(name=(value, least))``.

    Raises:
        UserError: the first that is not.
    """
    for name, (value, least) in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"data.name: {name} = {value!r}, it must be a whole number from {least}; correct it")
