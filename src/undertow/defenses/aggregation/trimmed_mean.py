"""Coordinate-wise trimmed mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import trimmed
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import whole
from undertow.defenses.registry import DEFENSES

SHARE = 0.2  # Flower's FedTrimmedAvg; the paper leaves it to the user


@DEFENSES.register("trimmed-mean", source="Yin et al. 2018, Byzantine-Robust Distributed Learning, Definition 2")
class TrimmedMean(Aggregator):
    """Drop the b smallest and b largest values of each coordinate and average the rest, all clients counting the same.

    delta[d] = mean of the ordered values U_(b+1)[d] ... U_(K-b)[d]. Defined for K > 2b.

    Args:
        b: values dropped at each end, b >= 0; ``None`` = by share.
        share: of the clients, dropped at each end, 0 <= share < 0.5: b = floor(share K), the beta of the paper. ``None`` = 0.2
            where b is not given either.

    Raises:
        ValueError: a parameter out of its range, or both of them.
    """

    def __init__(self, b: int | None = None, share: float | None = None) -> None:
        if b is not None and share is not None:
            raise ValueError(f"b = {b} and share = {share} say the same twice; give one of them")
        self.b = None if b is None else whole("b", b)
        self.beta = SHARE if share is None else share
        if not 0 <= self.beta < 0.5:
            raise ValueError(f"share = {share} must be at least 0 and below 0.5")

    def check(self, k: int) -> None:
        """Refuse K <= 2b."""
        super().check(k)
        if self.b is not None and k <= 2 * self.b:
            raise UserError(
                f"TrimmedMean with b = {self.b} needs more than 2b = {2 * self.b} clients, but there are {k}; give b from 0 to "
                f"{(k - 1) // 2}, or more clients"
            )

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the trimmed mean ``[D]`` of ``updates [K, D]``; the report holds b as ``trimmed``."""
        b = int(self.beta * updates.shape[0]) if self.b is None else self.b
        return trimmed(updates, b), {"trimmed": b}
