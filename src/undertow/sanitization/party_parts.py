"""The part of a client's prompts that are of the same kind as accused ones, for the second look of
:func:`undertow.sanitization.topics.part_of` in sums over clients.

Poison in one of several collections shares the words of its collection, which are no topic. Each client names the part among its
own samples; what the parts of all clients hold is summed as everything else is.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization import background, topics
from undertow.sanitization.encode import Texts
from undertow.sanitization.grams import Places, joint

#: Samples of the part for each accused one, at most, which keeps the tables small.
EACH = 8
#: Accused prompts that hold a word of their kind, at least: a client has few, and the words of one are its own. Weight of the rate
#: of all others, in prompts.
_SHARED, _PRIOR = 2, 2.0


class Parts:
    """The words of a client's prompts, each once a prompt.

    Args:
        prompts: of all its samples.
        keys: of the samples, by which they are drawn.
        own: which samples are the first of equal ones.
    """

    def __init__(self, prompts: Texts, keys: Places, own: NDArray[np.bool_]) -> None:
        owner = prompts.of_word()
        first = np.unique(joint(owner, prompts.words), return_index=True)[1]
        self._owner = owner[first]
        self.words, self._word = np.unique(prompts.words[first], return_inverse=True)
        self._count, self._order, self._own = len(prompts.lengths), np.argsort(keys, kind="stable"), own

    def like(self, accused: Places, unused: Collection[int]) -> Places:
        """Return samples whose words make them as likely as :data:`~undertow.sanitization.topics.PART` of the accused ones.

        Args:
            accused: samples, at least one.
            unused: words of the trigger, which count nowhere.
        """
        mine, others = np.zeros(self._count, dtype=bool), self._own.copy()
        mine[accused], others[accused] = True, False
        inside, outside = (
            np.bincount(self._word[some[self._owner]], minlength=len(self.words)).astype(np.float64) for some in (mine, others)
        )
        kept = (inside >= max(_SHARED, topics.THROUGHOUT * len(accused))) | (inside + outside >= background.COMMON * self._count)
        kept &= (outside >= topics.MOST * inside) & ~np.isin(self.words, np.array(list(unused), dtype=np.uint64))
        rate = (outside + 0.5) / (others.sum() + 1)
        likely, itself = (
            np.bincount(self._owner, np.where(kept, _odds(inside - left, len(accused) - left, rate), 0.0)[self._word], self._count)
            for left in (0, 1)
        )
        # An accused prompt is as likely as the others make it.
        part = others & (likely >= np.quantile(itself[accused], 1 - topics.PART))
        drawn: Places = self._order[part[self._order]][: EACH * len(accused)]
        return drawn

    def words_of(self, samples: Places) -> tuple[Places, Places]:
        """Return (sample, place in :attr:`words`) of all words of some samples."""
        hit = np.isin(self._owner, samples)
        return self._owner[hit], self._word[hit]


def _odds(inside: NDArray[np.float64], accused: int, rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """The log-odds that a prompt with a word is accused: ``inside`` of the accused hold it, and this rate of all others."""
    here = (np.maximum(inside, 0) + _PRIOR * rate) / (accused + _PRIOR)
    found: NDArray[np.float64] = np.log(here / rate) - np.log((1 - here) / (1 - rate))
    return found
