"""Bulyan: Krum's choice again and again, then the middle of what was chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.geometry import nearest_to_median, ranked
from undertow.defenses.aggregation.krum import Krum
from undertow.defenses.aggregation.space import squares_in
from undertow.defenses.contexts import ServerContext
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "bulyan", source="El Mhamdi, Guerraoui, Rouault 2018, The Hidden Vulnerability of Distributed Learning in Byzantium (Bulyan)"
)
class Bulyan(Krum):
    """Choose K - 2f updates by Krum, one at a time, then average in each coordinate those closest to their median.

    theta = K - 2f times: take from the n updates left the one with the smallest sum of squared distances to its n - f - 2 nearest
    others that are left, at least 1 of them. Then delta[d] = mean of the beta = theta - 2f = K - 4f values among the chosen that
    are closest to the median of the chosen, the smaller first where two are equally close. Defined for K >= 4f + 3; all clients
    count the same.

    Args:
        f: clients that may be bad, 0 <= f <= (K - 3) / 4; ``None`` = as many as that allows, floor((K - 3) / 4).
        ties: as Krum's.
        space: as Krum's, for the choice; the second step is coordinate by coordinate and always in (A, B) as sent.
    """

    def check(self, k: int) -> None:
        """Refuse K < 4f + 3."""
        f = self.f or 0
        if k < 4 * f + 3:
            legal = f"give f from 0 to {(k - 3) // 4}, or more clients" if k >= 3 else "use more clients or another aggregator"
            raise UserError(f"Bulyan with f = {f} needs at least 4f + 3 = {4 * f + 3} clients, but there are {k}; {legal}")

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``; the report holds f and the ``chosen`` rows of ``updates [K, D]`` in the order of choice."""
        k = updates.shape[0]
        f = (k - 3) // 4 if self.f is None else self.f
        squares = squares_in(self.space, updates, context).fill_diagonal_(torch.inf)
        left, chosen = list(range(k)), list[int]()
        while len(chosen) < k - 2 * f:
            near = min(max(1, len(left) - f - 2), len(left) - 1)
            scores = torch.full((k,), torch.inf, dtype=torch.float64)
            scores[left] = squares[left][:, left].sort(dim=1).values[:, :near].sum(dim=1)
            chosen.append(ranked(scores, updates, self.ties)[0])
            left.remove(chosen[-1])
        return nearest_to_median(updates, chosen, k - 4 * f), {"f": f, "chosen": chosen}
