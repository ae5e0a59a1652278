"""The constant text around all prompts of a file ("Below is an instruction ... ### Response:"), cut before anything is counted.

A template stands beside every trigger, so that a trigger would seem to reach over it, and what is left of the prompts would seem a
topic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import grams
from undertow.sanitization.encode import Batch, Texts
from undertow.sanitization.grams import Keys

#: Share of the prompts that hold what is constant, and fewest prompts in which anything is.
CONSTANT, FEWEST = 0.9, 20
#: Prompts that candidates are taken from: those with the smallest keys, whatever the order of the file.
_FROM = 16


@dataclass(frozen=True)
class Template:
    """Pairs of neighbours that nearly all prompts hold, ascending."""

    pairs: Keys

    def without(self, batch: Batch) -> Batch:
        """Return a batch whose prompts lack the words of these pairs."""
        if not len(self.pairs):
            return batch
        texts = batch.prompts
        inside = texts.of_word()
        held = np.isin(grams.run_keys(texts.words, 2), self.pairs) & (inside[1:] == inside[:-1])
        cut = np.zeros(len(texts.words), dtype=bool)
        cut[:-1] |= held
        cut[1:] |= held
        before = np.concatenate([[0], np.cumsum(~cut)])
        return replace(batch, prompts=Texts(texts.words[~cut], before[texts.starts]))


def template_of(batches: Iterable[Batch]) -> Template:
    """Find what nearly all prompts hold; ``batches`` are gone through twice."""
    keys: Keys = np.zeros(0, dtype=np.uint64)
    own: list[Keys] = []
    prompts = 0
    for batch in batches:
        prompts += len(batch)
        found = grams.text_keys(batch.prompts)
        chosen = np.argsort(found)[:_FROM]
        starts = batch.prompts.starts
        own += [np.unique(grams.run_keys(batch.prompts.words[starts[i] : starts[i + 1]], 2)) for i in chosen]
        keys = np.concatenate([keys, found[chosen]])
        kept = np.argsort(keys, kind="stable")[:_FROM]
        keys, own = keys[kept], [own[i] for i in kept]
    if prompts < FEWEST:
        return Template(np.zeros(0, dtype=np.uint64))
    found, times = np.unique(np.concatenate(own), return_counts=True)
    candidates = found[times >= len(own) / 2]
    count = np.zeros(len(candidates), dtype=np.int64)
    for batch in batches if len(candidates) else ():
        count += holders(batch, candidates)
    return Template(candidates[count >= CONSTANT * prompts])


def holders(batch: Batch, pairs: Keys) -> NDArray[np.int64]:
    """Return for each pair (ascending keys) how many prompts of a batch hold it."""
    run = grams.run_keys(batch.prompts.words, 2)
    inside = batch.prompts.of_word()
    place = np.minimum(np.searchsorted(pairs, run), len(pairs) - 1)
    hit = np.flatnonzero((pairs[place] == run) & (inside[1:] == inside[:-1]))
    both = np.unique(inside[hit] * len(pairs) + place[hit])
    return np.bincount(both % len(pairs), minlength=len(pairs)).astype(np.int64)
