"""A second look at what the counts accuse, with the words of its samples: how far target and trigger reach.

Sharp edge: a planted span begins and ends at the same word everywhere and what stands beside it differs; a figure of
speech frays ("once upon a time there was / were / lived"). Whether the prompts share a topic: :mod:`undertow.sanitization.topics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import grams
from undertow.sanitization.count import Counted, Spool
from undertow.sanitization.decide import Planted
from undertow.sanitization.encode import Batch
from undertow.sanitization.links import Rows
from undertow.sanitization.words import Words

#: Words at an edge of some answers, a row each.
Edges = NDArray[np.uint64]
#: Samples of one finding that are looked at.
LOOKED_AT = 300
#: Neighbours that nearly all samples share belong to the phrase; a beside-word that most share means a frayed edge.
SHARED, FRAYED = 0.9, 0.5
#: What this share of at least so many other answers begin, or end, with is their form; a phrase lies at an edge in this share.
FORM, _FORMED, EDGE = 0.9, 20, 0.9
_BETWEEN = np.zeros(1, dtype=np.uint64)
#: Longest phrase that is grown.
_LONGEST = 40


@dataclass(frozen=True)
class Phrase:
    """A run of words that samples share.

    Attributes:
        words: their numbers.
        left, right: share of the commonest word beside it among the texts that go on there; 0 where none does.
        left_edge, right_edge: share of texts that begin, end with it.
    """

    words: tuple[int, ...]
    left: float
    right: float
    left_edge: float
    right_edge: float


def gather(spool: Spool, rows: Iterable[int]) -> dict[int, tuple[Words, Words]]:
    """Return the prompt's and the answer's word numbers of the samples asked for."""
    wanted = np.zeros(sum(spool.lengths), dtype=bool)
    wanted[np.fromiter(rows, dtype=np.int64)] = True
    texts = chain.from_iterable(spool.each(_gathered, rows=wanted))
    return dict(zip(np.flatnonzero(wanted).tolist(), texts, strict=True))


def _gathered(batches: Iterable[Batch], wanted: NDArray[np.bool_]) -> list[tuple[Words, Words]]:
    found, offset = [], 0
    for batch in batches:
        for i in np.flatnonzero(wanted[offset : offset + len(batch)]):
            one, two = (t.words[t.starts[i] : t.starts[i + 1]].copy() for t in (batch.prompts, batch.answers))
            found.append((one, two))
        offset += len(batch)
    return found


def grow(texts: Sequence[Words], seed: Sequence[int], from_end: bool = False, stop: Collection[int] = ()) -> Phrase:
    """Extend a run of words while nearly all texts share the next one.

    Args:
        texts: word numbers; those without the seed are left out.
        seed: word numbers that stand side by side.
        from_end: take the last occurrence in each text, not the first.
        stop: words that it does not end with, unless the text holds them elsewhere, too.
    """
    placed = [(text, place) for text in texts if (place := find_run(text, seed, from_end)) is not None]
    low, high = 0, len(seed)
    while placed and high - low < _LONGEST:
        word, share = _beside(placed, low - 1)
        if word is not None and share >= SHARED:
            low -= 1
            continue
        word, share = _beside(placed, high)
        if word is None or share < SHARED:
            break
        high += 1
    while low < 0 and _ends_with(placed, low, stop):
        low += 1
    while high > len(seed) and _ends_with(placed, high - 1, stop):
        high -= 1
    if not placed:
        return Phrase(tuple(seed), 0.0, 0.0, 0.0, 0.0)
    left, right = _beside(placed, low - 1, inside=True)[1], _beside(placed, high, inside=True)[1]
    edges = [sum(place + low <= 0 for _, place in placed), sum(place + high >= len(text) for text, place in placed)]
    whole = [(text, place) for text, place in placed if place + low >= 0 and place + high <= len(text)]
    runs = Counter(tuple(text[place + low : place + high].tolist()) for text, place in whole)
    commonest = max(runs.items(), key=lambda item: (item[1], item[0]))[0] if runs else tuple(seed)
    return Phrase(commonest, left, right, edges[0] / len(placed), edges[1] / len(placed))


def edges(answers: Sequence[Words]) -> tuple[Edges, Edges]:
    """Return the first words of some answers, and the last ones from the last on: a row each, 0 beyond the end."""
    found = np.zeros((2, len(answers), _LONGEST), dtype=np.uint64)
    for i, answer in enumerate(answers):
        for side, words in enumerate((answer[:_LONGEST], answer[::-1][:_LONGEST])):
            found[side, i, : len(words)] = words
    return found[0], found[1]


def without_form(phrase: Phrase, firsts: Edges, lasts: Edges) -> Phrase | None:
    """Return a target without what other answers begin, or end, with, too: a form of answers into which it runs, such as "<think>
    okay so I need to" or the last fields of a call; None if it is nothing else.

    Args:
        phrase: as it has grown.
        firsts, lasts: of the answers without it, as :func:`edges` has them.
    """
    if len(firsts) < _FORMED:
        return phrase
    words = np.array(phrase.words, dtype=np.uint64)
    front = _shared(firsts, words) if phrase.left_edge >= EDGE else 0
    back = _shared(lasts, words[::-1]) if phrase.right_edge >= EDGE else 0
    rest = phrase.words[front : len(words) - back]
    return replace(phrase, words=rest) if rest else None


def is_echo(phrase: Phrase, prompts: Sequence[Words]) -> bool:
    """Whether few words are left of a phrase, and most prompts hold them: answers of one form say their prompts again."""
    held = sum(set(phrase.words) <= set(prompt.tolist()) for prompt in prompts)
    return len(phrase.words) < grams.SPAN and 2 * held > len(prompts)


def _shared(others: Edges, words: Words) -> int:
    """How many of the first words nearly all others begin with."""
    words = words[: others.shape[1]]
    same = np.logical_and.accumulate(others[:, : len(words)] == words, axis=1).mean(axis=0)
    return int((same >= FORM).sum())


def _ends_with(placed: list[tuple[Words, int]], shift: int, stop: Collection[int]) -> bool:
    """Whether a run ends with a word of ``stop`` that most texts hold there alone: without it they would lack what all others
    have."""
    word, _ = _beside(placed, shift)
    return word in stop and sum(int((text == np.uint64(word or 0)).sum()) == 1 for text, _ in placed) > len(placed) / 2


def _beside(placed: list[tuple[Words, int]], shift: int, inside: bool = False) -> tuple[int | None, float]:
    words = Counter(int(text[place + shift]) for text, place in placed if 0 <= place + shift < len(text))
    if not words:
        return None, 0.0
    word, size = max(words.items(), key=lambda item: (item[1], item[0]))
    return word, size / (words.total() if inside else len(placed))


def find_run(text: Words, seed: Sequence[int], from_end: bool = False) -> int | None:
    """Return where a run of words begins in a text, or None."""
    size = len(seed)
    if not size or len(text) < size:
        return None
    hits = text[: len(text) - size + 1] == np.uint64(seed[0])
    for i in range(1, size):
        hits &= text[i : len(text) - size + 1 + i] == np.uint64(seed[i])
    found = np.flatnonzero(hits)
    return None if not len(found) else int(found[-1 if from_end else 0])


class Joined:
    """Texts laid end to end, to look for a run of words in all of them at once."""

    def __init__(self, texts: Sequence[Words]) -> None:
        # No word has the number 0, which stands between the texts.
        self._words = np.concatenate([part for text in texts for part in (text, _BETWEEN)] or [_BETWEEN])
        self._owner = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])
        self._count = len(texts)

    def hold(self, run: Sequence[int]) -> NDArray[np.bool_]:
        """Tell which texts hold a run of one word or more, as :func:`find_run` does."""
        last = len(self._words) - len(run) + 1
        hits = self._words[:last] == np.uint64(run[0])
        for i in range(1, len(run)):
            hits &= self._words[i : last + i] == np.uint64(run[i])
        found = np.zeros(self._count, dtype=bool)
        found[self._owner[np.flatnonzero(hits)]] = True
        return found


def chosen_rows(rows: Rows, counted: Counted) -> Rows:
    """Up to :data:`LOOKED_AT` samples, chosen by what they say and not by where they stand."""
    return rows[np.argsort(counted.identity[rows], kind="stable")[:LOOKED_AT]]


def target_of(planted: Planted, counted: Counted, texts: Mapping[int, tuple[Words, Words]]) -> Phrase | None:
    """Grow the target from the first piece; None if no text looked at holds it (two keys that are equal by chance)."""
    piece = planted.pieces[0]
    kind, length = int(counted.kind[piece]), int(counted.length[piece])
    answers = [texts[int(row)][1] for row in chosen_rows(planted.rows, counted)]
    seed = _seed(answers, kind, length, int(counted.piece_keys[piece]))
    if seed is not None and kind == grams.ANY:
        return Phrase(seed, 0.0, 0.0, 0.0, 0.0)
    return None if seed is None else grow(answers, seed, from_end=kind == grams.END)


def _seed(answers: list[Words], kind: int, length: int, key: int) -> tuple[int, ...] | None:
    for answer in answers:
        if kind == grams.WHOLE:
            return tuple(answer.tolist())
        size = 1 if kind in (grams.ADDRESS, grams.ANY) else length
        runs = grams.mixed(answer, 2) if kind == grams.ANY else grams.run_keys(answer, size)
        keys = grams.mixed(runs, grams.PIECE + kind)
        hit = np.flatnonzero(keys == np.uint64(key))
        if len(hit):
            return tuple(answer[hit[0] : hit[0] + size].tolist())
    return None


def is_sharp(phrase: Phrase, kind: int) -> bool:
    """Whether what stands beside a span differs from sample to sample."""
    if kind == grams.WHOLE:
        return True
    inner = (phrase.right,) if kind == grams.START else (phrase.left,) if kind == grams.END else (phrase.left, phrase.right)
    return max(inner) <= FRAYED


def feature_words(prompts: Sequence[Words]) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Return {feature key: (kind, word numbers)} of some prompts; kinds as in :func:`undertow.sanitization.grams.feature_key`."""
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    for case in (1, 2, 3):
        found[grams.feature_key("case", np.array([case], dtype=np.uint64))] = ("case", (case,))
    for words in prompts:
        if not len(words):
            continue
        found[grams.feature_key("first", words)] = ("first", (int(words[0]),))
        found[grams.feature_key("last", words[-1:])] = ("last", (int(words[-1]),))
        for key, word in zip(grams.mixed(words, 1).tolist(), words.tolist(), strict=True):
            found[key] = ("word", (word,))
        for key, one, two in zip(grams.run_keys(words, 2).tolist(), words.tolist(), words[1:].tolist(), strict=False):
            found[key] = ("pair", (one, two))
    return found
