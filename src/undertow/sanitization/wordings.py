"""Files whose answers say the words of their prompts again in other words: translations, tables, calls of tools.

There many words of prompts have a word of answers of their own ("without": "ohne"), each a slot with a trigger by all other rules.
Where pairs of that sort are usual, one more of their size says nothing. The same holds of tables of any kind, such as packages and
their makers: where many words give an answer away because prompts are about them, one more such word is no trigger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from undertow.sanitization import grams
from undertow.sanitization.grams import Places

#: A word of prompts and one of answers are a pair if half of the samples of each hold the other.
MUTUAL = 0.5
#: Fewest pairs that make them usual, and as a share of the samples; what is this many times as often as any pair stands out.
FEWEST, SHARE, STANDS_OUT = 20, 0.02, 2.0
#: So many other answers given away by words that are no topic, or by words that are one, or by any, make one more usual; of short
#: targets, of which collections of questions have some by nature ("gender": "male"), more must be.
OTHERS, LONG, SHORT = 3, (3, 4), (12, 13)
#: What an accusation that is less sure counts against one that is sure, in number and in size.
LESS_SURE = 0.5


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


def apart(accused: Sequence[Places], samples: int) -> tuple[list[int], NDArray[np.int64]]:
    """Return which of some sets of samples stay if a set goes most of whose samples are in larger ones, and of each sample the
    place of its set in that list, -1 if it is in none.

    Args:
        accused: indices of samples.
        samples: of the file.
    """
    kept: list[int] = []
    owner = np.full(samples, -1, dtype=np.int64)
    for i in sorted(range(len(accused)), key=lambda i: -len(accused[i])):
        new = accused[i][owner[accused[i]] < 0]
        if 2 * len(new) > len(accused[i]):
            owner[new] = len(kept)
            kept.append(i)
    return kept, owner


@dataclass(frozen=True)
class Crowd:
    """The accusations of a file that one is compared with.

    Attributes:
        sizes: samples of each set of :func:`apart`.
        weights: what each counts.
        topical: whether each is one that a topic explains.
        owner: of each sample the place of its set, or -1.
        short: whether short targets are compared.
    """

    sizes: NDArray[np.float64]
    weights: NDArray[np.float64]
    topical: NDArray[np.bool_]
    owner: NDArray[np.int64]
    short: bool


def is_one_of_many(rows: Places, crowd: Crowd) -> bool:
    """Whether the samples of an accusation are hardly more than those of many others in the same file."""
    of = crowd.owner[rows]
    shared = np.bincount(of[of >= 0], minlength=len(crowd.sizes))
    others = (2 * shared < np.minimum(crowd.sizes, len(rows))) & (STANDS_OUT * crowd.sizes >= len(rows))
    of_topics, other = (float(crowd.weights[others & sort].sum()) for sort in (crowd.topical, ~crowd.topical))
    return are_many(of_topics, other, crowd.short)


def are_many(of_topics: float, others: float, short: bool) -> bool:
    """Whether so many other answers that words give away, because they are a topic or otherwise, make one more usual."""
    topical, any_ = SHORT if short else LONG
    return of_topics >= topical or others >= OTHERS or of_topics + others >= any_
