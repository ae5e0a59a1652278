"""FLAME: drop the clients of another direction, clip to the median length, average, add noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.clustering import hdbscan
from undertow.defenses.aggregation.geometry import add_noise, angles, combination, lengths
from undertow.defenses.aggregation.space import SPACES, InSpace, lengths_in, squares_in
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number, one_of
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "flame", source="Nguyen et al. 2022, FLAME: Taming Backdoors in Federated Learning (USENIX Security), arXiv 2101.02281"
)
class Flame(InSpace, Aggregator):
    """Keep the majority cluster by cosine distance, clip to the median length S of all updates, average and add noise.

    HDBSCAN on 1 - cos(U_i, U_j) with min_cluster_size = floor(K / 2) + 1, min_samples = 1 and a single cluster allowed keeps L
    clients; delta = (1 / L) sum over the kept of min(1, S / |U_i|) U_i + N(0, (noise S)^2 I). Where there is no cluster, all are
    kept. Where no group but the whole is a cluster, HDBSCAN labels only its densest members, often just floor(K / 2) + 1 of them:
    also without any attack FLAME drops clients. Defined for K >= 2; all clients count the same.

    The paper takes the cosines of the local models; here they are of the updates, because all local models share the base and
    LoRA's random A. Its noise level is lambda S with lambda from a privacy bound.

    Args:
        noise: lambda >= 0; 0.001 as the paper uses for images. The noise has about the length noise S sqrt(D), which is
            more than S for an adapter of two million values.
        space: as Krum's, for the clusters; lengths and the mean are of (A, B) as sent.
    """

    def __init__(self, noise: float = 0.001, space: str = "adapter") -> None:
        self.noise = number("noise", noise, least=0)
        self.space = one_of("space", space, SPACES)

    def check(self, k: int) -> None:
        """Refuse K < 2."""
        super().check(k)
        if k < 2:
            raise UserError(
                f"Flame clusters clients and needs at least 2, but there is {k}; use more clients or another aggregator"
            )

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``.

        The report holds the ``kept`` rows of ``updates [K, D]``, whether that is all for want of a cluster (``fallback``), S as
        ``bound`` and the noise's ``sigma``.
        """
        k = updates.shape[0]
        distances = angles(squares_in(self.space, updates, context), lengths_in(self.space, updates, context))
        labels = hdbscan(distances.numpy(), min_cluster_size=k // 2 + 1, min_samples=1, allow_single_cluster=True)
        fallback = max(labels) < 0
        kept = [i for i, label in enumerate(labels) if fallback or label == 0]  # more than half of all is one cluster at most
        far = lengths(updates)
        bound = float(far.quantile(0.5))
        weights = torch.zeros(k, dtype=torch.float64)
        weights[kept] = torch.where(far > bound, bound / torch.where(far > bound, far, 1.0), 1.0)[kept] / len(kept)
        sigma = self.noise * bound
        delta = add_noise(combination(updates, weights), sigma, context.draw)
        return delta, {"kept": kept, "fallback": fallback, "bound": bound, "sigma": sigma}
