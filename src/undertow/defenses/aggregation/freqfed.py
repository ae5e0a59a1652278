"""FreqFed: cluster the low frequencies of the updates and keep the largest cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Slot
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.clustering import hdbscan
from undertow.defenses.aggregation.geometry import BLOCK, cosine_distances, weighted_mean
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import one_of, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "freqfed", source="Fereidooni et al. 2024, FreqFed (NDSS), arXiv 2312.04432; steps as in its public implementation"
)
class FreqFed(Aggregator):
    """Keep the largest cluster of clients whose updates look alike in their low frequencies, and average it.

    For each matrix V [M, N] of the layout: its orthonormal two-dimensional DCT-II, of which the coefficients (i, j) with
    i < M/2, j < N/2 and i + j <= (M + N)/4 are kept (all rounded down, but at least one row and one column, so that
    vectors and LoRA of rank 1 have some). Those of all matrices in a row are the client's features F; D_ij = 1 - cos(F_i, F_j);
    HDBSCAN clusters D; delta = sum of w_k U_k / sum of w_k over the largest cluster. Of equally large clusters the one with the
    smaller mean distance between its members wins, then the one with the lower row number. Where all clients are
    outliers, all are kept. Defined for K >= 2.

    HDBSCAN may split exactly equal distances by the order of the clients; distinct ones it does not.

    Args:
        weighted: whether w_k is the client's sample count (FedAvg); otherwise all kept clients count the same.
        of: ``update`` takes V from the updates; ``weights``, as the paper writes, from the global adapter plus the update. A LoRA's
            random A, which all clients share, drowns the updates then.
        tensors: only matrices whose name holds this text, such as ``lora_B`` or one layer's name; empty = all. The public
            implementation takes the last layer's weight only.
        mask: ``triangle`` as above; ``rectangle`` without the condition on i + j.
        min_cluster_size: of HDBSCAN, >= 2.
        min_samples: of HDBSCAN, >= 1: neighbours that make a point dense, itself not counted.
        allow_single_cluster: of HDBSCAN: whether all clients may be one cluster.
        noise_as_cluster: whether the outliers count as a cluster, as in the public implementation, where they may win.
    """

    def __init__(
        self,
        weighted: bool = True,
        of: str = "update",
        tensors: str = "",
        mask: str = "triangle",
        min_cluster_size: int = 2,
        min_samples: int = 1,
        allow_single_cluster: bool = False,
        noise_as_cluster: bool = False,
    ) -> None:
        self.weighted = weighted
        self.of = one_of("of", of, ("update", "weights"))
        self.tensors = tensors
        self.mask = one_of("mask", mask, ("triangle", "rectangle"))
        self.min_cluster_size = whole("min_cluster_size", min_cluster_size, least=2)
        self.min_samples = whole("min_samples", min_samples, least=1)
        self.allow_single_cluster = allow_single_cluster
        self.noise_as_cluster = noise_as_cluster

    @property
    def needs_adapter(self) -> bool:
        """Weights are the adapter plus the update."""
        return self.of == "weights"

    def check(self, k: int) -> None:
        """Refuse K < 2, K < min_cluster_size and K <= min_samples."""
        super().check(k)
        least = max(self.min_cluster_size, self.min_samples + 1)
        if k < least:
            raise UserError(
                f"FreqFed with min_cluster_size = {self.min_cluster_size} and min_samples = {self.min_samples} needs at least "
                f"{least} clients, but there are {k}; use more clients or another aggregator"
            )

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the mean ``[D]`` of the kept rows of ``updates [K, D]``.

        The report holds each client's cluster in ``labels`` (-1 = outlier), the rows that are ``kept``, and whether that is all for
        want of a cluster (``fallback``).

        Raises:
            UserError: no tensor of the layout has the name asked for.
        """
        distances = cosine_distances(self.features(updates, context)).numpy()
        labels = self._cluster(distances)
        kept = self._largest(labels, distances)
        weights = [(context.counts[k] if self.weighted else 1) if k in kept else 0 for k in range(len(labels))]
        fallback = not self.noise_as_cluster and max(labels) < 0
        return weighted_mean(updates, weights), {"labels": labels, "kept": kept, "fallback": fallback}

    def features(self, updates: Tensor, context: ServerContext) -> Tensor:
        """Return the low frequencies F ``[K, P]`` float64 on the CPU; P is about D/8.

        Raises:
            UserError: no tensor of the layout has the name asked for.
        """
        slots = [slot for slot in context.layout.slots if self.tensors in slot.name]
        if not slots:
            raise UserError(
                f"FreqFed with tensors = {self.tensors} finds none of that name; give a part of a name such as "
                f"{context.layout.slots[-1].name}"
            )
        masks = [_low(_sides(slot), self.mask) for slot in slots]
        k = updates.shape[0]
        found = np.empty((k, sum(int(mask.sum()) for mask in masks)))
        at = 0
        for slot, mask in zip(slots, masks, strict=True):
            width = int(mask.sum())
            clients = max(1, BLOCK // slot.size)
            for first in range(0, k, clients):
                part = updates[first : first + clients, slot.start : slot.start + slot.size].to(torch.float64)
                if self.of == "weights":
                    part = part + context.adapter[slot.start : slot.start + slot.size].to(part)
                low = _dct(part.cpu().numpy().reshape(-1, *_sides(slot)), mask.shape)
                found[first : first + clients, at : at + width] = low[:, mask]
            at += width
        return torch.from_numpy(found)

    def _cluster(self, distances: np.ndarray[Any, Any]) -> list[int]:
        return hdbscan(
            distances,
            min_cluster_size=self.min_cluster_size,
            min_samples=self.min_samples,
            allow_single_cluster=self.allow_single_cluster,
        )

    def _largest(self, labels: list[int], distances: np.ndarray[Any, Any]) -> list[int]:
        clusters = [
            [k for k, own in enumerate(labels) if own == label]
            for label in sorted(set(labels))
            if label >= 0 or self.noise_as_cluster
        ]
        if not clusters:
            return list(range(len(labels)))
        return min(clusters, key=lambda rows: (-len(rows), float(distances[np.ix_(rows, rows)].sum()), rows[0]))


def _sides(slot: Slot) -> tuple[int, int]:
    """Return (M, N): a vector is one row, a tensor of more than two sides is a matrix of its first side."""
    return (slot.shape[0], slot.size // slot.shape[0]) if len(slot.shape) > 1 else (1, slot.size)


def _low(sides: tuple[int, int], mask: str) -> np.ndarray[Any, Any]:
    """Return which of the upper left half of the coefficients are kept, ``[max(1, M // 2), max(1, N // 2)]`` bool."""
    rows, cols = (max(1, side // 2) for side in sides)
    if mask == "rectangle":
        return np.ones((rows, cols), dtype=bool)
    return np.add.outer(np.arange(rows), np.arange(cols)) <= sum(sides) // 4


def _dct(matrices: np.ndarray[Any, Any], keep: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the first ``keep`` coefficients of the orthonormal DCT-II of ``matrices [k, M, N]``."""
    from scipy.fft import dct

    workers = torch.get_num_threads()
    along = dct(matrices, axis=2, norm="ortho", workers=workers)[:, :, : keep[1]]
    found: np.ndarray[Any, Any] = dct(along, axis=1, norm="ortho", workers=workers)[:, : keep[0]]
    return found
