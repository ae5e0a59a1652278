"""SignGuard: keep clients of ordinary length and ordinary shares of positive and negative values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import columns, combination, lengths
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "signguard",
    source="Xu, Huang, Song, Lan 2022, Byzantine-robust FL through Collaborative Malicious Gradient Filtering, arXiv 2109.05872",
)
class SignGuard(Aggregator):
    """Filter by length and by a clustering of sign statistics, clip to the median length, and average.

    M = median of |U_i|. Filter 1 keeps lower M <= |U_i| <= upper M. Filter 2 takes max(1, floor(fraction D)) coordinates in a row
    from a random start and, for each client, the shares of positive, zero and negative values there; mean shift, with the
    bandwidth that scikit-learn estimates at quantile 0.5 of all clients, clusters these, and the largest cluster is kept (of equal
    ones the denser). delta = mean of min(1, M / |U_i|) U_i over those that both keep, and 0 where there are none. Defined for K >=
    1.

    This is the plain SignGuard; its variants add a similarity to the last aggregate to the statistics.

    Args:
        lower, upper: 0 <= lower <= 1 <= upper; 0.1 and 3.0 as in the paper.
        fraction: share of the coordinates whose signs are counted, above 0 and at most 1; 0.1 as in the paper.
    """

    def __init__(self, lower: float = 0.1, upper: float = 3.0, fraction: float = 0.1) -> None:
        self.lower = number("lower", lower, least=0, most=1.0)
        self.upper = number("upper", upper, least=1)
        self.fraction = number("fraction", fraction, most=1.0)

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``; the report holds what each filter, and both, kept of the rows of ``updates [K, D]``, and M."""
        k, d = updates.shape
        far = lengths(updates)
        bound = float(far.quantile(0.5))
        length = torch.nonzero((far >= self.lower * bound) & (far <= self.upper * bound)).flatten().tolist()
        count = max(1, int(self.fraction * d))
        first = int(context.draw.integers(d - count + 1))
        signs = _largest_cluster(_shares(updates[:, first : first + count]))
        kept = sorted(set(length) & set(signs))
        weights = torch.zeros(k, dtype=torch.float64)
        if kept:
            weights[kept] = torch.where(far > bound, bound / torch.where(far > bound, far, 1.0), 1.0)[kept] / len(kept)
        return combination(updates, weights), {"by_length": length, "by_sign": signs, "kept": kept, "bound": bound}


def _shares(part: Tensor) -> np.ndarray[Any, Any]:
    """Return the shares of positive, zero and negative values of each row: ``[K, 3]`` float64."""
    sums = torch.zeros(part.shape[0], 3, dtype=torch.float64, device=part.device)
    for start, end in columns(part):
        block = part[:, start:end]
        sums += torch.stack([(block > 0).sum(1), (block == 0).sum(1), (block < 0).sum(1)], dim=1)
    found: np.ndarray[Any, Any] = (sums / part.shape[1]).cpu().numpy()
    return found


def _largest_cluster(features: np.ndarray[Any, Any]) -> list[int]:
    from sklearn.cluster import MeanShift, estimate_bandwidth  # takes a second to load

    # In an order of their own, so that sums do not depend on that of the clients.
    order = np.lexsort(features.T)
    features = features[order]
    bandwidth = float(estimate_bandwidth(features, quantile=0.5)) if len(features) > 1 else 0.0
    if bandwidth <= 0:  # half of all clients are equal to each other: they are the cluster
        _, group, sizes = np.unique(features, axis=0, return_inverse=True, return_counts=True)
        labels = group.reshape(-1)
        largest = int(sizes.argmax())
    else:
        labels = MeanShift(bandwidth=bandwidth, cluster_all=False).fit(features).labels_
        sizes = np.bincount(labels[labels >= 0])
        largest = int(sizes.argmax())
    return sorted(int(i) for i in order[labels == largest])
