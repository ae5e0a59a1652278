"""Multi-Krum: the mean of the updates that Krum ranks best."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.geometry import ranked, weighted_mean
from undertow.defenses.aggregation.krum import Krum
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("multi-krum", source="Blanchard et al. 2017, Machine Learning with Adversaries, section 4 (m-Krum)")
class MultiKrum(Krum):
    """Average the m updates with the smallest scores of Krum.

    delta = sum over the m chosen i of w_i U_i / sum w_i. Defined for 2f + 2 < K and 1 <= m <= K; m = 1 is Krum.

    Args:
        f: as Krum's.
        m: updates kept; ``None`` = K - f, all but the clients that may be bad.
        weighted: whether w_i is the client's sample count, as in Flower; in the paper all count the same.
        ties, space: as Krum's; in ``delta_w`` the updates are chosen there, and their mean is still that of (A, B).
    """

    def __init__(
        self, f: int | None = None, m: int | None = None, weighted: bool = False, ties: str = "index", space: str = "adapter"
    ) -> None:
        super().__init__(f, ties, space)
        self.m = None if m is None else whole("m", m, least=1)
        self.weighted = weighted

    def check(self, k: int) -> None:
        """Refuse K <= 2f + 2 and K < m."""
        super().check(k)
        if self.m is not None and self.m > k:
            raise UserError(f"MultiKrum with m = {self.m} keeps more clients than the {k} there are; give m from 1 to {k}")

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the mean ``[D]`` of the chosen rows of ``updates [K, D]``; the report has f, the scores and ``chosen``, best
        first."""
        f, scores = self.scores(updates, context)
        k = updates.shape[0]
        chosen = ranked(scores, updates, self.ties)[: k - f if self.m is None else self.m]
        weights = [(context.counts[i] if self.weighted else 1) if i in chosen else 0 for i in range(k)]
        return weighted_mean(updates, weights), {"f": f, "chosen": chosen, "scores": scores.tolist()}
