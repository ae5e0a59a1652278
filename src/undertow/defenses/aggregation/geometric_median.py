"""Geometric median of the updates by smoothed Weiszfeld steps (RFA)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import combination, lengths
from undertow.defenses.aggregation.space import SPACES, InSpace, lengths_in, squares_in
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number, one_of, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "geometric-median",
    source="Pillutla, Kakade, Harchaoui 2022, Robust Aggregation for Federated Learning (smoothed Weiszfeld algorithm)",
)
class GeometricMedian(InSpace, Aggregator):
    """Move towards the point with the smallest weighted sum of distances to the updates.

    From v = 0, or the weighted mean, repeat: b_i = a_i / max(nu, |U_i - v|), v = sum_i b_i U_i / sum_i b_i, with a_i = n_i / sum n
    or 1 / K. delta = v. Defined for K >= 1. The three default steps do not converge: give more for the geometric median itself.

    Args:
        weighted: whether a_i is the client's share of the samples, as in the paper; otherwise all count the same.
        iterations: steps, >= 1; 3 as in the paper's experiments.
        nu: smallest distance that is divided by, nu > 0, in the units of the updates.
        start: ``zero``, the model the clients started from, or ``mean``.
        space: where |U_i - v| is taken: as Krum's, with sum_i b_i dW_i / sum_i b_i for v in ``delta_w``; delta is the same mean of
            (A, B).
    """

    def __init__(
        self, weighted: bool = True, iterations: int = 3, nu: float = 1e-6, start: str = "zero", space: str = "adapter"
    ) -> None:
        self.weighted = weighted
        self.iterations = whole("iterations", iterations, least=1)
        self.nu = number("nu", nu)
        self.start = one_of("start", start, ("zero", "mean"))
        self.space = one_of("space", space, SPACES)

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return v ``[D]``; the report holds each client's share in it as ``weights``."""
        counts = torch.tensor(context.counts if self.weighted else [1] * len(updates), dtype=torch.float64)
        share = counts / counts.sum()
        squares = squares_in(self.space, updates, context) if self.space == "delta_w" else None
        weights = share
        for step in range(self.iterations):
            if step == 0 and self.start == "zero":
                far = lengths_in(self.space, updates, context)
            elif squares is None:
                far = lengths(updates, combination(updates, weights, exact=True))
            else:
                # |dW_i - v|² from the distances between the clients, because v is a mean of theirs
                far = (squares @ weights - weights @ squares @ weights / 2).clamp(min=0).sqrt()
            pull = share / far.clamp(min=self.nu)
            weights = pull / pull.sum()
        return combination(updates, weights), {"weights": weights.tolist()}
