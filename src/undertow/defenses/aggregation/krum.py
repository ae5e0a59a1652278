"""Krum: the one update that is closest to its neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import ranked
from undertow.defenses.aggregation.space import SPACES, InSpace, squares_in
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import one_of, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("krum", source="Blanchard et al. 2017, Machine Learning with Adversaries, section 4")
class Krum(InSpace, Aggregator):
    """Take the one update whose K - f - 2 nearest others are nearest, in squared Euclidean distance.

    score(i) = sum of |U_i - U_j|^2 over the K - f - 2 updates j != i nearest to i; delta = U_i with the smallest score.
    Defined for 2f + 2 < K, so for K >= 3.

    Two clients that are each other's nearest have equal scores where K - f - 2 = 1 (K = 3), and so do copies.

    Args:
        f: clients that may be bad, 0 <= f <= (K - 3) / 2; ``None`` = as many as that allows, floor((K - 3) / 2).
        ties: of equal scores (relative difference up to 1e-12), ``index`` takes the first client, as the paper does; ``content``
            the update that is smaller in the first coordinate where they differ, whatever the order of the clients.
        space: where distances are taken: ``adapter``, between the updates (A, B) as sent, as in the paper; or
            ``delta_w``, between the changes of the products s B A, which alone act on the model.
    """

    def __init__(self, f: int | None = None, ties: str = "index", space: str = "adapter") -> None:
        self.f = None if f is None else whole("f", f)
        self.ties = one_of("ties", ties, ("index", "content"))
        self.space = one_of("space", space, SPACES)

    def check(self, k: int) -> None:
        """Refuse K <= 2f + 2."""
        super().check(k)
        f = self.f or 0
        if k <= 2 * f + 2:
            legal = f"give f from 0 to {(k - 3) // 2}, or more clients" if k >= 3 else "use more clients or another aggregator"
            raise UserError(
                f"{type(self).__name__} with f = {f} needs more than 2f + 2 = {2 * f + 2} clients, but there are {k}; {legal}"
            )

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the chosen update ``[D]``; the report holds f, all scores, and the ``chosen`` row of ``updates [K, D]``."""
        f, scores = self.scores(updates, context)
        chosen = ranked(scores, updates, self.ties)[0]
        return updates[chosen].clone(), {"f": f, "chosen": [chosen], "scores": scores.tolist()}

    def scores(self, updates: Tensor, context: ServerContext) -> tuple[int, Tensor]:
        """Return f and the score of each row of ``updates [K, D]``, ``[K]`` float64."""
        k = updates.shape[0]
        f = (k - 3) // 2 if self.f is None else self.f
        squares = squares_in(self.space, updates, context).fill_diagonal_(torch.inf)  # nobody is its own neighbour
        return f, squares.sort(dim=1).values[:, : k - f - 2].sum(dim=1)
