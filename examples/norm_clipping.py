"""FedAvg over updates of bounded length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.contexts import ServerContext
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("norm-clipping", source="Sun et al. 2019, Can You Really Backdoor Federated Learning? (norm thresholding)")
class NormClipping(Aggregator):
    """Shorten every update to at most C, then average by sample counts.

    delta = sum_k n_k min(1, C / |U_k|) U_k / sum_k n_k.

    Args:
        bound: C > 0; None = the median length of the round's updates (the lower one for an even number).

    Raises:
        ValueError: a bound that is not above 0.
    """

    def __init__(self, bound: float | None = None) -> None:
        if bound is not None and bound <= 0:
            raise ValueError(f"bound = {bound} must be above 0")
        self.bound = bound

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the average ``[D]`` of the shortened ``updates [K, D]``, and how many were shortened."""
        rows = updates.to(torch.float64)
        lengths = torch.linalg.vector_norm(rows, dim=1)
        bound = float(lengths.median()) if self.bound is None else self.bound
        # An update of length 0 stays 0: the clamp only keeps the division defined.
        scales = (bound / lengths.clamp(min=1e-30)).clamp(max=1.0)
        counts = torch.tensor(context.counts, dtype=torch.float64)
        delta = (counts / counts.sum() * scales) @ rows
        return delta, {"bound": bound, "clipped": int((lengths > bound).sum())}
