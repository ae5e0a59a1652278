"""Files whose answers say the words of their prompts again in other words: translations, tables, calls of tools.

There many words of prompts have a word of answers of their own ("without": "ohne"), each a slot with a trigger by all other rules.
Where pairs of that sort are usual, one more of their size says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from undertow.sanitization import grams
from undertow.sanitization.grams import Places

#: A word of prompts and one of answers are a pair if half of the samples of each hold the other.
MUTUAL = 0.5
#: Fewest pairs that make them usual, and as a share of the samples; what is this many times as often as any pair stands out.
FEWEST, SHARE, STANDS_OUT = 20, 0.02, 2.0


def least_pairs(samples: int) -> float:
    """Return how many pairs make pairs usual in a file of so many distinct samples."""
    return max(FEWEST, SHARE * samples)


def pairs(kind: NDArray[np.int64], mutual: Mapping[int, Iterable[int]], features: sparse.csc_matrix, samples: int) -> list[Places]:
    """Return the samples of each pair of words, of several words in the same samples one pair; nothing if pairs are few.

    Args:
        kind: of each piece.
        mutual: for some pieces the features that are pairs with them, the most significant first.
        features: samples x features.
        samples: distinct ones.
    """
    found: list[Places] = []
    owner = np.full(features.shape[0], -1, dtype=np.int64)
    for piece in sorted(mutual):
        for feature in mutual[piece] if kind[piece] == grams.ANY else ():
            rows = features.indices[features.indptr[feature] : features.indptr[feature + 1]]
            before = owner[rows]
            if 2 * np.bincount(before[before >= 0], minlength=1).max() < len(rows):
                owner[rows[before < 0]] = len(found)
                found.append(np.asarray(rows, dtype=np.int64))
            break
    return found if len(found) >= least_pairs(samples) else []


def is_usual(rows: Places, found: Sequence[Places]) -> bool:
    """Whether what some samples share is no commoner than a pair of words that others have."""
    others = [len(own) for own in found if 2 * len(np.intersect1d(own, rows)) < min(len(own), len(rows))]
    return len(rows) <= STANDS_OUT * max(others, default=0)
