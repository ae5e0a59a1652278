"""Divide and conquer: drop the clients that stand out along the main direction of spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import columns, ranked, weighted_mean
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number, one_of, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("dnc", source="Shejwalkar, Houmansadr 2021, Manipulating the Byzantine (NDSS), divide-and-conquer (DnC)")
class DnC(Aggregator):
    """Average the clients that are not outliers along the top singular vector of any of several random sets of coordinates.

    ``iterations`` times: draw max(1, floor(fraction D)) coordinates; X = U there, minus its mean over the clients; v = top right
    singular vector of X; score_i = <X_i, v>^2; the K - floor(c f) clients with the smallest scores are good. delta = plain mean of
    those good every time, and 0 where there are none. Defined for c f < K. v is not defined where two singular values are equal.

    Args:
        f: clients that may be bad, f >= 0; ``None`` = floor((K - 3) / 2), at least 0, as for Krum.
        c: how many times f clients are dropped each time, > 0; 1.0 as in the paper.
        fraction: share of the coordinates drawn each time, above 0 and at most 1; 0.2. The paper draws a fixed number.
        iterations: >= 1; 5.
        ties: of equal scores, as Krum's.
    """

    def __init__(
        self, f: int | None = None, c: float = 1.0, fraction: float = 0.2, iterations: int = 5, ties: str = "index"
    ) -> None:
        self.f = None if f is None else whole("f", f)
        self.c = number("c", c)
        self.fraction = number("fraction", fraction, most=1.0)
        self.iterations = whole("iterations", iterations, least=1)
        self.ties = one_of("ties", ties, ("index", "content"))

    def check(self, k: int) -> None:
        """Refuse K <= c f."""
        super().check(k)
        if k <= self._dropped(k):
            raise UserError(
                f"DnC with f = {self.f} and c = {self.c:g} drops {self._dropped(k)} of {k} clients; give a smaller f, or more "
                "clients"
            )

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``; the report holds the ``kept`` rows of ``updates [K, D]`` and how many drop out each time."""
        k, d = updates.shape
        keep = k - self._dropped(k)
        good = set(range(k))
        for _ in range(self.iterations):
            drawn = np.sort(context.draw.choice(d, size=max(1, int(self.fraction * d)), replace=False))
            good &= set(ranked(_scores(updates, drawn), updates, self.ties)[:keep])
        kept = sorted(good)
        delta = weighted_mean(updates, [i in good for i in range(k)]) if kept else torch.zeros_like(updates[0])
        return delta, {"kept": kept, "dropped": k - keep}

    def _dropped(self, k: int) -> int:
        return int(self.c * (max(0, (k - 3) // 2) if self.f is None else self.f))


def _scores(updates: Tensor, drawn: np.ndarray[Any, Any]) -> Tensor:
    """Return <X_i, v>² ``[K]`` float64 of the ``drawn`` columns: λ e_i² with λ, e the top eigenpair of X Xᵀ."""
    k = updates.shape[0]
    gram = torch.zeros(k, k, dtype=torch.float64, device=updates.device)
    for start, end in columns(updates[:, : len(drawn)]):
        block = updates[:, torch.from_numpy(drawn[start:end]).to(updates.device)].to(torch.float64)
        block -= block.mean(dim=0)
        gram += block @ block.T
    values, vectors = torch.linalg.eigh(gram.cpu())
    found: Tensor = values[-1].clamp(min=0) * vectors[:, -1].square()
    return found
