"""From feature vectors of samples to few coordinates and clusters, as the published data filters do it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.defenses.aggregation.clustering import hdbscan
from undertow.defenses.aggregation.geometry import cosine_distances

Matrix = NDArray[np.float64]

#: Principal directions of less than this share of the largest one's variance are rounding.
_ROUNDING = 1e-10


def gram(vectors: Matrix) -> Matrix:
    """Return all inner products of ``vectors [n, P]``: ``[n, n]``."""
    return vectors @ vectors.T


def principal(products: Matrix, rank: int) -> Matrix:
    """Return the first principal components ``[n, q]`` of n vectors from their inner products ``[n, n]``.

    q is ``rank``, or the number of directions in which the vectors differ at all where that is less. Components are
    centred and their signs arbitrary.
    """
    n = len(products)
    mean = products.mean(axis=0)
    centred = products - mean[:, None] - mean[None, :] + mean.mean()
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    scale = max(float(np.abs(np.diag(products)).max(initial=0.0)), 0.0) * n
    first = slice(None, -min(rank, n) - 1, -1)
    values, vectors = values[first], vectors[:, first]
    real = values > max(_ROUNDING * float(values[0]), 1e-14 * scale)
    return np.asarray(vectors[:, real] * np.sqrt(values[real]))


def standardised(points: Matrix) -> Matrix:
    """Return ``points [n, q]`` with mean 0 and variance 1 in every column; a column that is constant becomes 0."""
    shifted = points - points.mean(axis=0)
    spread = shifted.std(axis=0)
    return np.asarray(shifted / np.where(spread > 0, spread, 1.0))


def unit(vectors: Matrix) -> Matrix:
    """Return ``vectors [n, P]`` at length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))


def plane(vectors: Matrix, how: str, *, metric: str = "cosine") -> Matrix:
    """Return a standardised map ``[n, 2]`` of ``vectors [n, P]``.

    Args:
        vectors: n >= 2.
        how: ``umap``, as the sources do: 100 neighbours or all there are, minimal distance 0, seed 42; or ``pca``, the first two
            principal components.
        metric: ``cosine`` (with pca: of the vectors at length 1) or ``euclidean``.

    Raises:
        UserError: ``umap`` is not installed.
    """
    if how == "pca":
        found = principal(gram(unit(vectors) if metric == "cosine" else vectors), 2)
        return standardised(np.pad(found, ((0, 0), (0, 2 - found.shape[1]))))
    try:
        from umap import UMAP
    except ImportError as error:
        raise UserError(
            "map = umap needs umap-learn, which is not installed; run: pip install -e '.[umap]' in the clone, or set map=pca"
        ) from error
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of fewer samples than neighbours, and of one thread for the seed
        made = UMAP(n_neighbors=100, min_dist=0.0, n_components=2, random_state=42, transform_seed=42, metric=metric)
        # Three points are the fewest that umap can lay out.
        return (
            standardised(np.asarray(made.fit_transform(vectors), dtype=np.float64)) if len(vectors) > 3 else plane(vectors, "pca")
        )


def angles(vectors: Matrix) -> Matrix:
    """Return ``1 - cos(v_i, v_j)`` of ``vectors [n, P]``: ``[n, n]``; vectors of no coordinates are alike."""
    if not vectors.shape[1]:
        return np.zeros((len(vectors), len(vectors)))
    found: Matrix = cosine_distances(torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float64))).numpy()
    return found


def two_clusters(distances: Matrix) -> NDArray[np.int64]:
    """Return 0 or 1 for each of n >= 2 points: agglomerative clustering, average linkage, of ``distances [n, n]``.

    Where all distances are 0 there is nothing to split, and all are 0.
    """
    if not distances.any():
        return np.zeros(len(distances), dtype=np.int64)
    return _agglomerative(distances, n_clusters=2)


def cut_tree(distances: Matrix, height: float) -> NDArray[np.int64]:
    """Return the clusters of n >= 2 points that average linkage makes below ``height``."""
    return _agglomerative(distances, n_clusters=None, distance_threshold=height)


def dense_clusters(points: Matrix, min_cluster_size: int, min_samples: int) -> NDArray[np.int64]:
    """Return HDBSCAN's clusters of ``points [n, q]`` by Euclidean distance, -1 for outliers.

    ``min_samples`` counts the point's neighbours without itself, as the hdbscan package does. Where there are not more points than
    that, none is dense: all are outliers.
    """
    from scipy.spatial.distance import cdist

    if len(points) <= min_samples or len(points) < min_cluster_size:
        return np.full(len(points), -1)
    return np.array(hdbscan(cdist(points, points), min_cluster_size=min_cluster_size, min_samples=min_samples))


def most_common(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which points have the label that most have; of equally common ones the smallest."""
    names, counts = np.unique(labels, return_counts=True)
    return np.asarray(labels == names[np.argmax(counts)])


def _agglomerative(distances: Matrix, **options: Any) -> NDArray[np.int64]:
    from sklearn.cluster import AgglomerativeClustering  # takes a second to load

    return np.asarray(AgglomerativeClustering(metric="precomputed", linkage="average", **options).fit_predict(distances))
