"""FoundationFL: copies of one central update, then a coordinate-wise aggregator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import columns, ranked, trimmed
from undertow.defenses.aggregation.trimmed_mean import SHARE
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import one_of, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("foundationfl", source="Fang et al. 2025, Do We Really Need to Design New Byzantine-robust Aggregation Rules?")
class FoundationFL(Aggregator):
    """Add m copies of the update that is farthest from both envelopes, then take the median or the trimmed mean.

    top[d] = max_k U[k, d], bottom[d] = min_k U[k, d]; s_i = min(|U_i - top|, |U_i - bottom|); the row with the largest
    s is copied m times; delta = the coordinate-wise median or trimmed mean of the K + m rows, all counting the same.
    Defined for K >= 1 and 2b < K + m.

    The defaults are our reading and not checked against the paper: m as it is quoted elsewhere, b as for ``trimmed-mean``.

    Args:
        base: ``median`` or ``trimmed-mean``.
        m: copies, m >= 0; ``None`` = floor(K / 2).
        b: for ``trimmed-mean``, values dropped at each end, b >= 0; ``None`` = floor(0.2 (K + m)), which is 3 for K = 10.
        ties: of equal scores (relative difference up to 1e-12), ``index`` takes the first client; ``content`` the update that is
            smaller in the first coordinate where they differ, whatever the order of the clients.

    Raises:
        ValueError: a parameter out of its range, or b with ``median``.
    """

    def __init__(self, base: str = "median", m: int | None = None, b: int | None = None, ties: str = "index") -> None:
        self.base = one_of("base", base, ("median", "trimmed-mean"))
        self.m = None if m is None else whole("m", m)
        self.b = None if b is None else whole("b", b)
        self.ties = one_of("ties", ties, ("index", "content"))
        if b is not None and base == "median":
            raise ValueError(f"b = {b} is for base = trimmed-mean; leave it out for the median")

    def check(self, k: int) -> None:
        """Refuse K + m <= 2b."""
        super().check(k)
        rows = k + self._copies(k)
        if self.b is not None and rows <= 2 * self.b:
            raise UserError(
                f"FoundationFL with b = {self.b} needs more than 2b = {2 * self.b} rows, but {k} clients and {rows - k} copies "
                f"are {rows}; give b from 0 to {(rows - 1) // 2}, a larger m, or more clients"
            )

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``; the report holds all scores, the ``copied`` row of ``updates [K, D]``, m and ``trimmed``."""
        k = updates.shape[0]
        scores = _distance_to_envelopes(updates)
        copied = ranked(-scores, updates, self.ties)[0]
        m = self._copies(k)
        b = (k + m - 1) // 2 if self.base == "median" else int(SHARE * (k + m)) if self.b is None else self.b
        report = {"copied": copied, "copies": m, "trimmed": b, "scores": scores.tolist()}
        return trimmed(updates, b, again=[copied] * m), report

    def _copies(self, k: int) -> int:
        return k // 2 if self.m is None else self.m


def _distance_to_envelopes(updates: Tensor) -> Tensor:
    """Return min(|U_i - top|, |U_i - bottom|) for each row of ``updates [K, D]``: ``[K]`` float64 on the CPU."""
    squares = torch.zeros(2, updates.shape[0], dtype=torch.float64, device=updates.device)
    for start, end in columns(updates):
        block = updates[:, start:end].to(torch.float64)
        squares[0] += (block - block.amax(0)).square().sum(1)
        squares[1] += (block - block.amin(0)).square().sum(1)
    return squares.amin(dim=0).sqrt().cpu()
