"""Coordinate-wise median."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import trimmed
from undertow.defenses.contexts import ServerContext
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("median", source="Yin et al. 2018, Byzantine-Robust Distributed Learning, Definition 1")
class Median(Aggregator):
    """Take the median of each coordinate over the clients, all counting the same.

    delta[d] = median_k U[k, d]; for even K the mean of the two middle values. Defined for K >= 1.
    """

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the median ``[D]`` of ``updates [K, D]``."""
        return trimmed(updates, (updates.shape[0] - 1) // 2), {}
