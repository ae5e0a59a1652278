"""HDBSCAN with the settings of the hdbscan package, on scikit-learn's implementation."""

from __future__ import annotations

from typing import Any

import numpy as np


def hdbscan(
    distances: np.ndarray[Any, Any], *, min_cluster_size: int, min_samples: int, allow_single_cluster: bool = False
) -> list[int]:
    """Return the cluster of each row of ``distances [K, K]``, -1 for outliers.

    Args:
        distances: symmetric, diagonal 0, float64.
        min_cluster_size: >= 2.
        min_samples: >= 1: neighbours that make a point dense, itself not counted.
        allow_single_cluster: whether all may be one cluster.
    """
    from sklearn.cluster import HDBSCAN  # takes a second to load

    model = HDBSCAN(
        metric="precomputed",
        min_cluster_size=min_cluster_size,
        min_samples=min_samples + 1,  # scikit-learn counts the point itself, the hdbscan package does not
        allow_single_cluster=allow_single_cluster,
        copy=True,
    )
    # Density makes equal reachabilities of distinct distances, and ties go by the order of the rows: give them one of
    # their own, so that the order of the clients does not matter.
    order = np.argsort(np.sort(distances, axis=1).sum(axis=1), kind="stable")
    labels = np.empty(len(distances), dtype=int)
    labels[order] = model.fit(distances[np.ix_(order, order)]).labels_
    return [int(label) for label in labels]
