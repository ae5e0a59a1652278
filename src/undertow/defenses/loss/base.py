"""Defenses on the loss: what a client minimizes, and over which of its samples and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from undertow.core.errors import UserError
from undertow.data.template import Encoded
from undertow.defenses.base import NeedsModel
from undertow.defenses.contexts import TrainingContext
from undertow.models.token_loss import TokenLoss


class LossDefense(NeedsModel):
    """Base of the defenses on the loss: a subclass writes one or more of :meth:`weigh`, :meth:`select` and :meth:`token_loss`."""

    kind = "loss"

    def weigh(self, data: Sequence[Encoded], context: TrainingContext) -> tuple[Sequence[Sequence[float]], dict[str, Any]]:
        """Return a weight >= 0 in the loss for each answer token of each of the client's samples, and a report.

        Runs on every client once, before round 1, after the data are sanitized; weights of several defenses are multiplied.
        """
        return [(1.0,) * len(row.answer) for row in data], {}

    def select(self, data: Sequence[Encoded], adapter: Tensor, context: TrainingContext) -> tuple[Sequence[bool], dict[str, Any]]:
        """Return which of its samples a client trains on in ``context.round``, and a report.

        Runs on every chosen client in every round, after sanitizing and :meth:`weigh`; at least one sample must stay. A function of
        what it is given and of its state alone: BSNR's counterfactual updates go through it too.

        Args:
            data: the client's samples, all of them.
            adapter: the global adapter ``[D]`` that the client was sent.
            context: of the client in this round.
        """
        return [True] * len(data), {}

    def token_loss(self, round: int, rounds: int) -> TokenLoss | None:
        """Return how a token's cross-entropy becomes its loss in ``round`` (from 1) of ``rounds``; None: as it is. One defense."""
        return None

    @classmethod
    def check_class(cls) -> None:
        """Refuse, besides, a class that writes none of the three."""
        super().check_class()
        hooks = ("select", "token_loss", "weigh")
        if all(getattr(cls, hook) is getattr(LossDefense, hook) for hook in hooks):
            raise UserError(f"{cls.__name__} writes none of {', '.join(hooks)}; write at least one")

    @property
    def weighs(self) -> bool:
        """Whether the class writes :meth:`weigh`."""
        return type(self).weigh is not LossDefense.weigh

    @property
    def selects(self) -> bool:
        """Whether the class writes :meth:`select`."""
        return type(self).select is not LossDefense.select

    @property
    def replaces_loss(self) -> bool:
        """Whether the class writes :meth:`token_loss`."""
        return type(self).token_loss is not LossDefense.token_loss
