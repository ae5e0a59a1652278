"""Mean of the updates, by sample counts or plain."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import weighted_mean
from undertow.defenses.contexts import ServerContext
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("mean", source="McMahan et al. 2017, Communication-Efficient Learning of Deep Networks, Algorithm 1")
class Mean(Aggregator):
    """Average the updates; by sample counts it is FedAvg.

    delta = sum_k w_k U_k / sum_k w_k, with w_k = n_k or 1. Defined for K >= 1.

    Args:
        weighted: whether w_k is the client's sample count n_k; otherwise all clients count the same.
    """

    sums = True

    def __init__(self, weighted: bool = True) -> None:
        self.weighted = weighted

    @property
    def spreads(self) -> bool:
        """True: every row has a weight above 0."""
        return True

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the mean ``[D]`` of ``updates [K, D]``."""
        return weighted_mean(updates, context.counts if self.weighted else [1] * updates.shape[0]), {}
