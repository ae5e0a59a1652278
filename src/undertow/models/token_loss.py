"""How an answer token's cross-entropy becomes its loss, the same for both trainers and every path.

A client's loss in a step is (1/n) Σ_i w_i·ℓ(c_i) over the n answer tokens of its batch, with c_i = -log p(token i), the
weights w_i that ride with the samples (1 unless a defense says otherwise) and ℓ a :class:`TokenLoss`. Every forward ends in
the cross-entropy of each token, so that autograd gives the gradient: ℓ'(c_i)·w_i/n times that of c_i. Tokens of weight 0
still count in n: a batch that holds some teaches less, and not the same from fewer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenLoss:
    """ℓ(c) = c, cross-entropy itself; a defense's own derives from it, frozen, and changes nothing but :meth:`__call__`."""

    def __call__(self, entropy: Tensor) -> Tensor:
        """Return each token's loss, elementwise and differentiable, from its cross-entropy ``c >= 0`` of any shape."""
        return entropy


@dataclass(frozen=True)
class DistributionLoss(TokenLoss):
    """ℓ of the whole predicted distribution, for losses that the cross-entropy alone does not determine."""

    def of_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return each token's loss ``[E]``, differentiable, from ``logits [E, V]``, at least float32, and ``targets [E]``."""
        raise NotImplementedError


def token_losses(logits: Tensor, targets: Tensor, loss: TokenLoss | None, ignore: int = -100) -> Tensor:
    """Return ℓ of each token, at least float32, 0 where the target is ``ignore``.

    Args:
        logits: ``[E, V]``.
        targets: ``[E]``.
        loss: ℓ; None is cross-entropy.
        ignore: the target that carries no loss.
    """
    kind = torch.promote_types(logits.dtype, torch.float32)
    if isinstance(loss, DistributionLoss):
        blank = targets == ignore
        return loss.of_logits(logits.to(kind), targets.masked_fill(blank, 0)).masked_fill(blank, 0.0)
    entropy = nn.functional.cross_entropy(logits.to(kind), targets, ignore_index=ignore, reduction="none")
    return entropy if loss is None else loss(entropy).masked_fill(targets == ignore, 0.0)
