"""A loss that no single token can dominate: what the model finds nearly impossible teaches it next to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undertow.defenses.loss.base import LossDefense
from undertow.defenses.parameters import number, whole
from undertow.defenses.registry import DEFENSES
from undertow.models.token_loss import TokenLoss


class _Bounded(torch.autograd.Function):
    """(1 - e^(-qc)) / q and its derivative e^(-qc), each without the rounding of the other: 1 - p^q near 0, p^q near 0."""

    @staticmethod
    def forward(ctx: Any, entropy: Tensor, q: float) -> Tensor:
        ctx.save_for_backward(entropy)
        ctx.q = q
        return torch.expm1(-q * entropy) / -q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (entropy,) = ctx.saved_tensors
        return grads[0] * torch.exp(-ctx.q * entropy), None


@dataclass(frozen=True)
class GeneralisedCrossEntropy(TokenLoss):
    """ℓ(c) = (1 - p^q) / q with p = e^(-c), q in (0, 1]: bounded by 1/q (Zhang & Sabuncu 2018, eq. 6).

    Its gradient is that of cross-entropy times p^q (their eq. 7): dℓ/dlogits = p^q (softmax - onehot). q -> 0 is
    cross-entropy, q = 1 is 1 - p, half the mean absolute error.
    """

    q: float

    def __call__(self, entropy: Tensor) -> Tensor:
        """Return ℓ of each token."""
        found: Tensor = _Bounded.apply(entropy, self.q)
        return found


@DEFENSES.register("bounded-loss", source="Zhang & Sabuncu 2018, Generalized Cross Entropy Loss, eq. 6; as a defense in FIT: ours")
class BoundedLoss(LossDefense):
    """Clients train with (1 - p^q) / q per answer token in place of -log p.

    A token that the model finds nearly impossible, such as the first of a planted sentence, gets a gradient smaller by p^q.
    So does every fact that is new to the base. Needs no trusted data and drops nothing.

    Args:
        q: 0 < q <= 1, in round 1; larger values teach surprising tokens less.
        end: q in the last round of the schedule, reached in equal steps; None = q stays, as it should: where q fell to 0.5 or 0.3
            the backdoor came in (docs/results/defending.md, "Facts that are new to the base").
        over: rounds of the schedule, >= 1, after which q stays at ``end``; None = all rounds of the run.

    Raises:
        ValueError: a parameter out of its range, or ``over`` without ``end``.
    """

    def __init__(self, q: float = 0.7, end: float | None = None, over: int | None = None) -> None:
        self.q = number("q", q, most=1)
        self.end = self.q if end is None else number("end", end, most=1)
        self.over = None if over is None else whole("over", over, 1)
        if end is None and over is not None:
            raise ValueError(f"over = {over} needs end, the value of q that the schedule goes to")

    def token_loss(self, round: int, rounds: int) -> TokenLoss:
        """Return the loss of a round, with the round's q."""
        last = rounds if self.over is None else self.over
        share = min(1.0, (round - 1) / (last - 1)) if last > 1 else 1.0
        return GeneralisedCrossEntropy(self.q + share * (self.end - self.q))
