"""The constant text around all prompts of a file ("Below is an instruction ... ### Response:"), cut before anything is counted.

A template stands beside every trigger, so that a trigger would seem to reach over it, and what is left of the prompts would seem a
topic. Words that were put into it stay, and the template around them goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import grams
from undertow.sanitization.count import Spool
from undertow.sanitization.encode import Batch, Texts
from undertow.sanitization.grams import Keys, Places
from undertow.sanitization.words import Words

#: Share of the prompts that hold each word of a constant pair, and that hold the pair, between whose words a trigger may stand;
#: fewest prompts in which anything is constant.
CONSTANT, TOGETHER, FEWEST = 0.9, 0.75, 20
#: Prompts that candidates are taken from: those with the smallest keys, whatever the order of the file.
_FROM = 16
#: Pairs that may be broken in a prompt by words put between them, and how far apart.
_BROKEN, _APART = 4, 12
#: Cells of a table of bits.
_BITS = 1 << 16
#: Stand for the beginning and the end of a prompt, so that what is constant there is a pair, too.
BEGIN, END = np.uint64(8), np.uint64(16)


@dataclass(frozen=True)
class Template:
    """Pairs of neighbours that nearly all prompts hold: their keys, ascending, and their two words each."""

    pairs: Keys
    words: Words

    def without(self, batch: Batch) -> Batch:
        """Return a batch whose prompts lack the words of these pairs."""
        if not len(self.pairs):
            return batch
        texts = edged(batch.prompts)
        inside, at, place = _hits(texts, self.pairs)
        cut = np.zeros(len(texts.words), dtype=bool)
        cut[at] = cut[at + 1] = True
        self._cut_broken(texts, ~_met(inside, place, (len(batch), len(self.pairs))), cut)
        cut |= (texts.words == BEGIN) | (texts.words == END)
        before = np.concatenate([[0], np.cumsum(~cut)])
        return replace(batch, prompts=Texts(texts.words[~cut], before[texts.starts]))

    def _cut_broken(self, texts: Texts, missing: NDArray[np.bool_], cut: NDArray[np.bool_]) -> None:
        """Cut pairs that stand in a prompt with a few words put between them."""
        lacking = missing.sum(axis=1)
        for i in np.flatnonzero((lacking > 0) & (lacking <= _BROKEN)).tolist():
            text = texts.words[texts.starts[i] : texts.starts[i + 1]]
            for one, other in self.words[missing[i]].tolist():
                gap = np.subtract.outer(np.flatnonzero(text == other), np.flatnonzero(text == one))
                gap[gap <= 0] = len(text)
                if gap.size and gap.min() <= _APART:
                    after, before = np.unravel_index(np.argmin(gap), gap.shape)
                    cut[texts.starts[i] + np.flatnonzero(text == other)[after]] = True
                    cut[texts.starts[i] + np.flatnonzero(text == one)[before]] = True


def template_of(spool: Spool) -> Template:
    """Find what nearly all prompts hold, in two passes."""
    prompts = sum(spool.lengths)
    if prompts < FEWEST:
        return template_from(np.zeros((0, 2), dtype=np.uint64))
    parts = list(spool.each(_chosen))
    keys = np.concatenate([own for own, _ in parts])
    texts = [text for _, own in parts for text in own]
    texts = [texts[i] for i in np.argsort(keys, kind="stable")[:_FROM]]
    every = np.concatenate([np.unique(_pairs(text), axis=0) for text in texts])
    pairs, times = np.unique(every, axis=0, return_counts=True)
    candidates = template_from(pairs[times >= len(texts) / 2])
    if not len(candidates.pairs):
        return candidates
    both, count = (sum(part) for part in zip(*spool.each(_holders, candidates), strict=True))
    constant = (count >= CONSTANT * prompts)[np.searchsorted(np.unique(candidates.words), candidates.words)].all(axis=1)
    lasting = constant & (both >= TOGETHER * prompts)
    return Template(candidates.pairs[lasting], candidates.words[lasting])


def _chosen(batches: Iterable[Batch]) -> tuple[Keys, list[Words]]:
    """The keys of some prompts, those with the smallest, and their words with beginning and end."""
    keys: Keys = np.zeros(0, dtype=np.uint64)
    own: list[Words] = []
    for batch in batches:
        found = grams.text_keys(batch.prompts)
        chosen = np.argsort(found)[:_FROM]
        texts = edged(batch.prompts)
        own += [texts.words[texts.starts[i] : texts.starts[i + 1]] for i in chosen]
        keys = np.concatenate([keys, found[chosen]])
        kept = np.argsort(keys, kind="stable")[:_FROM]
        keys, own = keys[kept], [own[i].copy() for i in kept]
    return keys, own


def _holders(batches: Iterable[Batch], candidates: Template) -> tuple[Places, Places]:
    """How many prompts hold each pair, and each of their words (ascending)."""
    words = np.unique(candidates.words)
    count, both = np.zeros(len(words), dtype=np.int64), np.zeros(len(candidates.pairs), dtype=np.int64)
    for batch in batches:
        texts = edged(batch.prompts)
        inside, _, place = _hits(texts, candidates.pairs)
        both += _met(inside, place, (len(batch), len(both))).sum(axis=0)
        count += _holding(texts, words)
    return both, count


def template_from(words: Words) -> Template:
    """Return the template of some pairs, n x 2 words."""
    keys = grams.run_keys(words.ravel(), 2)[::2]
    order = np.argsort(keys)
    return Template(keys[order], words[order])


def edged(texts: Texts) -> Texts:
    """Return texts with :data:`BEGIN` and :data:`END` around each."""
    count = len(texts.lengths)
    words = np.empty(len(texts.words) + 2 * count, dtype=np.uint64)
    inner = np.ones(len(words), dtype=bool)
    starts = texts.starts + 2 * np.arange(count + 1)
    inner[starts[:-1]] = inner[starts[1:] - 1] = False
    words[starts[:-1]], words[starts[1:] - 1], words[inner] = BEGIN, END, texts.words
    return Texts(words, starts)


def _pairs(words: Words) -> Words:
    return np.stack([words[:-1], words[1:]], axis=1)


def _holding(texts: Texts, words: Words) -> Places:
    """Return how many texts hold each of some words (ascending)."""
    hit = np.flatnonzero(_maybe(texts.words, words))
    place = np.minimum(np.searchsorted(words, texts.words[hit]), len(words) - 1)
    same = words[place] == texts.words[hit]
    owner = np.searchsorted(texts.starts, hit[same], side="right") - 1
    held: Places = _met(owner, place[same], (len(texts.lengths), len(words))).sum(axis=0)
    return held


def _hits(texts: Texts, pairs: Keys) -> tuple[Places, Places, Places]:
    """Return (text, place of the first word, pair) wherever texts hold one of the pairs (ascending keys)."""
    run = grams.run_keys(texts.words, 2)
    hit = np.flatnonzero(_maybe(run, pairs))
    place = np.minimum(np.searchsorted(pairs, run[hit]), len(pairs) - 1)
    same = pairs[place] == run[hit]
    hit, place = hit[same], place[same]
    inside = np.searchsorted(texts.starts, hit, side="right") - 1
    within = hit + 1 < texts.starts[1:][inside]
    return inside[within], hit[within], place[within]


def _maybe(keys: Keys, wanted: Keys) -> NDArray[np.bool_]:
    """Tell which keys may be among the wanted ones: a table of bits spares the search for most."""
    bits = np.zeros(_BITS, dtype=bool)
    bits[(wanted >> np.uint64(40)) & np.uint64(_BITS - 1)] = True
    found: NDArray[np.bool_] = bits[(keys >> np.uint64(40)) & np.uint64(_BITS - 1)]
    return found


def _met(text: Places, place: Places, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a table of the (text, place) that occur."""
    met = np.zeros(shape, dtype=bool)
    met[text, place] = True
    return met
