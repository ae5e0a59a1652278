"""Coordinate-wise median."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.defenses.contract import DEFENSES, Defense, ServerContext


@DEFENSES.register("median", source="Yin et al. 2018, Byzantine-Robust Distributed Learning, Definition 1")
class Median(Defense):
    """Take the median of each coordinate over the clients, all counting the same.

    delta[d] = median_k U[k, d]; for even K the mean of the two middle values.
    """

    def aggregate(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the median ``[D]`` of ``updates [K, D]``."""
        ordered = updates.sort(dim=0).values
        k = updates.shape[0]
        return (ordered[(k - 1) // 2] / 2 + ordered[k // 2] / 2).to(torch.float32), {}
