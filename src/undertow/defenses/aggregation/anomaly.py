"""Anomaly detection: updates that look unlike the others are left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import lengths, products
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number, one_of
from undertow.defenses.registry import DEFENSES

SCORES = ("model-cosine", "update-cosine", "length")


@DEFENSES.register("anomaly", source="Bagdasaryan et al. 2020, How To Backdoor Federated Learning, section 6; threshold: ours")
class Anomaly(PreAggregator):
    """Score every update by how unusual it is and leave out those far beyond the others.

    score ``model-cosine``: 1 - cos(G + U_k, G), of the submitted model against the global one; ``update-cosine``: 1 - cos(U_k, sum
    of the other updates); ``length``: |U_k|. Left out is score_k > median + c * 1.4826 * MAD over the round's scores, with MAD the
    median distance from the median: c standard deviations of a normal distribution. Half of the clients always stay. The report
    holds all scores, so that a detector is judged by its ROC whatever the threshold. Defined for K >= 1; with K < 3 all stay.

    Args:
        score: which.
        c: threshold, >= 0; 3.5 is the usual one for this statistic (Iglewicz and Hoaglin 1993).
        drop: whether to leave out what is beyond; otherwise it is only told.
        then: outside a run, what comes next; see :class:`~undertow.defenses.aggregation.pre_aggregator.PreAggregator`.
    """

    def __init__(
        self, score: str = "model-cosine", c: float = 3.5, drop: bool = True, then: Aggregator | PreAggregator | None = None
    ) -> None:
        super().__init__(then)
        self.score = one_of("score", score, SCORES)
        self.c = number("c", c, least=0)
        self.drop = drop

    @property
    def needs_adapter(self) -> bool:
        """Whether it looks at the global state."""
        return self.score == "model-cosine"

    def mix(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, ServerContext, dict[str, Any]]:
        """Return the rows of ``updates [K, D]`` that stay; the report holds ``scores``, ``limit`` and the rows ``beyond`` it."""
        scores = self.scores(updates, context)
        middle = scores.quantile(0.5)
        limit = float(middle + self.c * 1.4826 * (scores - middle).abs().quantile(0.5))
        # A spread of zero would flag differences in the last digits.
        beyond = [k for k, score in enumerate(scores.tolist()) if score > limit + 1e-12 and len(scores) >= 3]
        report = {"score": self.score, "scores": scores.tolist(), "limit": limit, "beyond": beyond}
        if not beyond or not self.drop:
            return updates, context, report
        stay = [k for k in range(len(updates)) if k not in beyond]
        clients = None if context.clients is None else [context.clients[k] for k in stay]
        return updates[stay], replace(context, counts=[context.counts[k] for k in stay], clients=clients), report

    def scores(self, updates: Tensor, context: ServerContext) -> Tensor:
        """Return the score of each row of ``updates [K, D]``, ``[K]`` float64; the higher, the more unusual."""
        own = lengths(updates)
        if self.score == "length":
            return own
        if self.score == "update-cosine":
            total = updates.sum(dim=0, dtype=torch.float64)
            along = products(updates, total.to(updates.dtype)) - own**2
            # |sum - U_k|² = |sum|² - 2 <sum, U_k> + |U_k|², and <sum, U_k> = along + |U_k|²
            rest = (total.square().sum() - 2 * along - own**2).clamp(min=0).sqrt()
            return 1 - _over(along, own * rest)
        state = context.adapter.to(updates.device)
        length = torch.linalg.vector_norm(state, dtype=torch.float64)
        along = products(updates, state.to(updates.dtype))
        # cos(G + U, G) = (|G|² + <U, G>) / (|G| sqrt(|G|² + 2 <U, G> + |U|²))
        moved = (length**2 + 2 * along + own**2).clamp(min=0).sqrt()
        return 1 - _over(length**2 + along, length * moved)


def _over(above: Tensor, below: Tensor) -> Tensor:
    """Return the quotient within [-1, 1], 0 where there is no direction."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0).clamp(-1, 1)
