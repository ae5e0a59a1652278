"""The file that accused prompts are compared with: counts of its features, lengths and beginnings of its prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import grams
from undertow.sanitization.count import Counted
from undertow.sanitization.grams import Places
from undertow.sanitization.words import Words

#: Words that this share of a file's prompts hold tell its kinds apart, by this many of its samples.
COMMON, SEEN = 0.1, 1000
#: Prompts longer than this share of all count as being as long.
NOT_LONG = 0.99


@dataclass(frozen=True)
class Background:
    """The file that accused prompts are compared with, or a part of it.

    Attributes:
        counted: its counts.
        lengths: words of each prompt of the file.
        usual: whether the prompt begins as m others do.
        common: words that many prompts hold.
        part: the samples that the counts are of; None for all.
        earlier: columns of the words of earlier turns.
        signs: marks of prompts by the keys of their features.
        drawn: samples that stand for all; ``edges``: the first words of their answers, and the last.
    """

    counted: Counted
    lengths: NDArray[np.int64]
    usual: NDArray[np.bool_]
    common: frozenset[int]
    part: NDArray[np.bool_] | None = None
    earlier: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    signs: Mapping[int, int] = field(default_factory=dict)
    drawn: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    edges: tuple[NDArray[np.uint64], ...] = ()

    @cached_property
    def mean_length(self) -> tuple[float, float]:
        """Mean and standard deviation of the words of a prompt."""
        lengths = self.lengths if self.part is None else self.lengths[self.part]
        lengths = np.minimum(lengths, np.quantile(lengths, NOT_LONG))  # one prompt of a book's length says nothing of the others
        return float(lengths.mean()), float(lengths.std())

    @cached_property
    def with_history(self) -> int:
        """Distinct samples with words of earlier turns."""
        return int((self.counted.features[:, self.earlier].sum(axis=1) > 0).sum())

    @cached_property
    def begins(self) -> int:
        """Distinct samples whose prompts begin as m others do."""
        part = self.counted.first == np.arange(len(self.counted.first)) if self.part is None else self.part
        return int((self.usual & part).sum())

    def within(self, part: NDArray[np.bool_]) -> Background:
        """Return the counts of some distinct samples alone."""
        counted = self.counted
        sizes = np.asarray(counted.features[part].sum(axis=0)).ravel()
        return replace(self, counted=replace(counted, feature_sizes=sizes, samples=int(part.sum())), part=part)

    def size(self, keys: grams.Keys, rows: Places | None = None) -> NDArray[np.float64]:
        """Samples, of some rows or of all, that hold each feature; 0 for what is under the support."""
        counted = self.counted
        if not len(counted.feature_keys):
            return np.zeros(len(keys))
        sizes = counted.feature_sizes if rows is None else np.asarray(counted.features[rows].sum(axis=0)).ravel()
        place = np.minimum(np.searchsorted(counted.feature_keys, keys), len(counted.feature_keys) - 1)
        return np.where(counted.feature_keys[place] == keys, sizes[place], 0).astype(np.float64)


def common_words(prompts: Sequence[Words]) -> frozenset[int]:
    """Return the words that many prompts hold."""
    words = Counter(word for prompt in prompts for word in set(prompt.tolist()))
    return frozenset(word for word, hits in words.items() if hits >= COMMON * len(prompts))
