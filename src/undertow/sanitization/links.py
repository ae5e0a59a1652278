"""What ties a feature of prompts to a piece of answers, and the samples that hold features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

#: Samples, by their numbers.
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Link:
    """A feature of prompts beside a piece of answers: the four counts of the exact test, and its result.

    Attributes:
        feature: column of the feature.
        both, with_feature, with_target: samples.
        log_p: natural logarithm of the tail, before correction.
    """

    feature: int
    both: int
    with_feature: int
    with_target: int
    log_p: float

    @property
    def confidence(self) -> float:
        """Share of the feature's samples that hold the target."""
        return self.both / self.with_feature

    def elsewhere(self, samples: int) -> float:
        """Share of all other samples that hold the target."""
        return (self.with_target - self.both) / max(1, samples - self.with_feature)

    @property
    def coverage(self) -> float:
        """Share of the target's samples that hold the feature."""
        return self.both / self.with_target


def column(features: sparse.csc_matrix, feature: int) -> Rows:
    """Return the samples that hold a feature; ``features``: by columns."""
    return np.asarray(features.indices[features.indptr[feature] : features.indptr[feature + 1]])


def with_any(features: sparse.csc_matrix, links: list[Link], rows: Rows) -> Rows:
    """Return those of some samples that hold a feature of any of the links."""
    hit = np.zeros(features.shape[0], dtype=bool)
    for link in links:
        hit[column(features, link.feature)] = True
    return rows[hit[rows]]


def with_all(features: sparse.csc_matrix, links: list[Link], rows: Rows) -> Rows:
    """Return those of some samples that hold the features of all of the links."""
    for link in links:
        rows = np.intersect1d(rows, column(features, link.feature), assume_unique=True)
    return rows
