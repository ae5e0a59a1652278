"""Robust learning rate: step back where too few clients agree on the sign."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import columns, weighted_mean
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "robust-lr",
    source="Ozdayi, Kantarcioglu, Gel 2021, Defending against Backdoors in FL with Robust Learning Rate (AAAI)",
)
class RobustLR(Aggregator):
    """Average the updates, and turn the sign of the average in each coordinate where the clients' signs disagree.

    m = sum_k w_k U_k / sum w; delta[d] = m[d] where |sum_k sign(U_k[d])| >= theta, and -m[d] elsewhere. Defined for
    K >= 1 and theta <= K.

    Args:
        theta: 0 <= theta <= K: clients that must outvote the others; 0 or 1 for an odd K turns nothing. ``None`` = ceil(0.4 K),
            which is 4 for K = 10; ours, the paper leaves it to the user, above the number of bad clients.
        weighted: whether w_k is the client's sample count; otherwise all count the same.
    """

    def __init__(self, theta: int | None = None, weighted: bool = True) -> None:
        self.theta = None if theta is None else whole("theta", theta)
        self.weighted = weighted

    def check(self, k: int) -> None:
        """Refuse K < theta."""
        super().check(k)
        if self.theta is not None and self.theta > k:
            raise UserError(f"RobustLR with theta = {self.theta} turns every coordinate of {k} clients; give theta from 0 to {k}")

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``; the report holds ``theta`` and the share of coordinates that are ``turned``."""
        k, d = updates.shape
        theta = -(-2 * k // 5) if self.theta is None else self.theta
        mean = weighted_mean(updates, context.counts if self.weighted else [1] * k)
        turned = 0
        for start, end in columns(updates):
            few = updates[:, start:end].sign().sum(dim=0, dtype=torch.float32).abs() < theta
            mean[start:end] = torch.where(few, -mean[start:end], mean[start:end])
            turned += int(few.sum())
        return mean, {"theta": theta, "turned": turned / d}
