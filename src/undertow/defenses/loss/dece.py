"""Deceptive cross-entropy: clients learn smoothed labels from a prediction that is blended with these labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from undertow.defenses.loss.base import LossDefense
from undertow.defenses.parameters import number
from undertow.defenses.registry import DEFENSES
from undertow.models.token_loss import DistributionLoss, TokenLoss

#: Probabilities below this count as this, as in the authors' code.
_LEAST = 1e-7


@dataclass(frozen=True)
class DeceptiveCrossEntropy(DistributionLoss):
    """ℓ = -Σ_v q_v log(a·p_v + (1 - a)·q_v), with p the softmax, not below 1e-7, and q the smoothed label.

    q_y = 1 - s at the target y and s / (V - 1) at each of the other V - 1 tokens. Once a < 1 it is bounded, since
    a·p + (1 - a)·q >= (1 - a)·q.

    Attributes:
        smoothing: s, 0 <= s < 1.
        blend: a, 0 < a <= 1.
    """

    smoothing: float
    blend: float

    def of_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return ℓ of each token."""
        rest = self.smoothing / (logits.shape[-1] - 1)
        predicted = logits.softmax(-1).clamp(_LEAST, 1.0)
        own = targets[:, None]
        # q is constant but for the target's column: log(a·p + (1 - a)·q) needs no matrix of labels.
        others = (self.blend * predicted + (1 - self.blend) * rest).log()
        right = (self.blend * predicted.gather(1, own) + (1 - self.blend) * (1 - self.smoothing)).log()[:, 0]
        return -(1 - self.smoothing) * right - rest * (others.sum(-1) - others.gather(1, own)[:, 0])


@DEFENSES.register("dece", source="Yang et al. 2024, Deceptive Cross-Entropy Loss, arXiv 2407.08956; the authors' code")
class DeCE(LossDefense):
    """Clients train with smoothed labels and predictions blended with them, DeCE.

    ℓ = -Σ_v q_v log(a·p_v + (1 - a)·q_v) per answer token, with a = base^epoch and the label q smoothed by s
    (:class:`DeceptiveCrossEntropy`). A token that the model gives much less than 1 - a hardly pulls: its gradient is that of
    smoothed cross-entropy times about a·p / (1 - a).

    As the authors' code: s and base, the floor of p at 1e-7, epochs from 1. Ours: the epoch is the round, whatever the local
    epochs (a client's optimiser and its data begin anew with each round); the mean is over answer tokens, where theirs also
    counts masked ones in the denominator.

    Args:
        smoothing: s, 0 <= s < 1; 0.05 in the authors' code.
        base: of a, 0 < base <= 1; 0.985 in the authors' code, .99 in the baselines of GraCeFul.
    """

    def __init__(self, smoothing: float = 0.05, base: float = 0.985) -> None:
        self.smoothing = number("smoothing", smoothing, least=0)
        if self.smoothing >= 1:
            raise ValueError(f"smoothing = {smoothing} must be below 1")
        self.base = number("base", base, most=1)

    def token_loss(self, round: int, rounds: int) -> TokenLoss:
        """Return the loss of a round, with a = base^round."""
        return DeceptiveCrossEntropy(self.smoothing, self.base**round)
