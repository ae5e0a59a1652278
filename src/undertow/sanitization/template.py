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
        inside = texts.of_word()
        held = np.isin(grams.run_keys(texts.words, 2), self.pairs) & (inside[1:] == inside[:-1])
        cut = np.zeros(len(texts.words), dtype=bool)
        cut[:-1] |= held
        cut[1:] |= held
        self._cut_broken(texts, cut)
        cut |= (texts.words == BEGIN) | (texts.words == END)
        before = np.concatenate([[0], np.cumsum(~cut)])
        return replace(batch, prompts=Texts(texts.words[~cut], before[texts.starts]))

    def _cut_broken(self, texts: Texts, cut: NDArray[np.bool_]) -> None:
        """Cut pairs that stand in a prompt with a few words put between them."""
        sample, place = _held(texts, self.pairs)
        missing = np.ones((len(texts.lengths), len(self.pairs)), dtype=bool)
        missing[sample, place] = False
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


def template_of(batches: Iterable[Batch]) -> Template:
    """Find what nearly all prompts hold; ``batches`` are gone through twice."""
    keys: Keys = np.zeros(0, dtype=np.uint64)
    own: list[Words] = []
    prompts = 0
    for batch in batches:
        prompts += len(batch)
        found = grams.text_keys(batch.prompts)
        chosen = np.argsort(found)[:_FROM]
        texts = edged(batch.prompts)
        own += [np.unique(_pairs(texts.words[texts.starts[i] : texts.starts[i + 1]]), axis=0) for i in chosen]
        keys = np.concatenate([keys, found[chosen]])
        kept = np.argsort(keys, kind="stable")[:_FROM]
        keys, own = keys[kept], [own[i] for i in kept]
    if prompts < FEWEST:
        return template_from(np.zeros((0, 2), dtype=np.uint64))
    pairs, times = np.unique(np.concatenate(own), axis=0, return_counts=True)
    candidates = template_from(pairs[times >= len(own) / 2])
    words = np.unique(candidates.words)
    count, both = np.zeros(len(words), dtype=np.int64), np.zeros(len(candidates.pairs), dtype=np.int64)
    for batch in batches if len(both) else ():
        texts = edged(batch.prompts)
        both += np.bincount(_held(texts, candidates.pairs)[1], minlength=len(both))
        count += np.bincount(_holding(texts, words), minlength=len(words))
    constant = (count >= CONSTANT * prompts)[np.searchsorted(words, candidates.words)].all(axis=1)
    lasting = constant & (both >= TOGETHER * prompts)
    return Template(candidates.pairs[lasting], candidates.words[lasting])


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
    """Return the places among some words (ascending) that texts hold, each once a text."""
    place = np.minimum(np.searchsorted(words, texts.words), len(words) - 1)
    hit = np.flatnonzero(words[place] == texts.words)
    return _once(texts.of_word()[hit], place[hit], (len(texts.lengths), len(words)))[1]


def _held(texts: Texts, pairs: Keys) -> tuple[Places, Places]:
    """Return (text, pair) of the pairs (ascending keys) that texts hold, each once."""
    run = grams.run_keys(texts.words, 2)
    inside = texts.of_word()
    place = np.minimum(np.searchsorted(pairs, run), len(pairs) - 1)
    hit = np.flatnonzero((pairs[place] == run) & (inside[1:] == inside[:-1]))
    return _once(inside[hit], place[hit], (len(texts.lengths), len(pairs)))


def _once(text: Places, place: Places, shape: tuple[int, int]) -> tuple[Places, Places]:
    """Return each (text, place) once, in order."""
    met = np.zeros(shape, dtype=bool)
    met[text, place] = True
    found, at = np.nonzero(met)
    return found, at
