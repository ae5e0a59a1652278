"""The output head of a frozen model, at the rows where a token is predicted; many logits are never held whole.

A head of 262,144 words gives a megabyte of float32 for every row. So rows go through in pieces, and because the weight is frozen
a row's whole backward is known as soon as its softmax is: what the gradient's own factor multiplies is kept, ``[E, d]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from undertow.models.arithmetic import WORTH, speedup
from undertow.models.screening import LARGE, Screen, largest
from undertow.models.token_loss import DistributionLoss, TokenLoss, token_losses

#: Bytes of float32 logits up to which all rows go through at once (what autograd then keeps), and those of a piece beyond.
WHOLE, PIECE = 1 << 25, 1 << 26


@dataclass(frozen=True)
class Head:
    """logits = cap·tanh(z / cap), z = (x Wᵀ + b)·multiplier; without a cap logits = z.

    Attributes:
        weight: W ``[V, d]``, frozen.
        bias: b ``[V]`` or None.
        multiplier: 1 in most families.
        cap: of Gemma 2; 0 is none.
    """

    weight: Tensor
    bias: Tensor | None = None
    multiplier: float = 1.0
    cap: float = 0.0

    @staticmethod
    def of(model: Any) -> Head | None:
        """Return a transformers model's head as its config tells it, or None where it has no plain linear."""
        linear, config = model.get_output_embeddings(), model.config
        if type(linear) is not nn.Linear:
            return None
        divisor, factor = getattr(config, "logits_scaling", None) or 1.0, getattr(config, "logit_scale", None) or 1.0
        cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        bias = None if linear.bias is None else linear.bias.detach()
        return Head(linear.weight.detach(), bias, float(factor) / float(divisor), cap)

    def logits(self, x: Tensor) -> Tensor:
        """Return ``[..., V]`` for ``x [..., d]``, differentiable by x."""
        found = nn.functional.linear(x.contiguous(), self.weight, self.bias)
        if self.multiplier != 1.0:
            found = found * self.multiplier
        return torch.tanh(found / self.cap) * self.cap if self.cap else found

    def losses(self, x: Tensor, targets: Tensor, loss: TokenLoss | None = None) -> Tensor:
        """Return ℓ of each row's target, ``[E]``, at least float32, differentiable by ``x [E, d]``."""
        if 4 * len(x) * len(self.weight) <= WHOLE:
            return token_losses(self.logits(x), targets, loss)
        if isinstance(loss, DistributionLoss):
            each = [
                checkpoint(self._distribution_losses, x[part], targets[part], loss, use_reentrant=False, preserve_rng_state=False)
                for part in self._pieces(len(x))
            ]
            return torch.cat(each)
        entropy: Tensor = _Entropy.apply(x, targets, self)
        return entropy if loss is None else loss(entropy)

    def _distribution_losses(self, x: Tensor, targets: Tensor, loss: DistributionLoss) -> Tensor:
        return token_losses(self.logits(x), targets, loss)

    def errors(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of each row's cross-entropy by ``x Wᵀ + b``, ``[E, V]`` at least float32; no gradient."""
        return self._entropy_and_errors(x, targets)[1]

    def likeliest(self, x: Tensor) -> Tensor:
        """Return the first token of the largest logit for each row of ``x [..., d]``, ``[...]``; no gradient."""
        rows = x.reshape(-1, x.shape[-1])
        if self._screen is None and 4 * len(rows) * len(self.weight) <= WHOLE:
            return self._first(rows).view(x.shape[:-1])
        each = 4 if self._screen is None else 2  # bytes of a logit
        return torch.cat([self._likeliest(rows[part]) for part in self._pieces(len(rows), each)]).view(x.shape[:-1])

    def _likeliest(self, rows: Tensor) -> Tensor:
        found = None if self._screen is None else self._screen.likeliest(rows)
        return self._first(rows) if found is None else found

    def _first(self, rows: Tensor) -> Tensor:
        logits = self.logits(rows)
        return largest(logits) if logits.shape[1] >= LARGE else logits.argmax(1)

    @cached_property
    def _screen(self) -> Screen | None:
        """What spares most of a large head's logits, where nothing comes after ``x Wᵀ`` and bfloat16 is faster."""
        plain = self.bias is None and not self.cap and self.multiplier == 1.0
        large = len(self.weight) >= LARGE and self.weight.dtype == torch.float32 and self.weight.device.type == "cpu"
        return Screen.of(self.weight) if plain and large and speedup(torch.bfloat16) >= WORTH else None

    def scores(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p of ``tokens [...]`` behind ``x [..., d]``, the likeliest tokens and log p of these, each ``[...]``; no
        gradient."""
        rows, asked = x.reshape(-1, x.shape[-1]), tokens.reshape(-1)
        found = []
        for part in self._pieces(len(rows)):
            logits = self.logits(rows[part])
            logs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
            chance, best = logs.max(-1)
            found.append((logs.gather(1, asked[part, None])[:, 0], best, chance))
        own, best, chance = (torch.cat(each).view(tokens.shape) for each in zip(*found, strict=True))
        return own, best, chance

    def _pieces(self, rows: int, each: int = 4) -> Iterator[slice]:
        """Cut rows, a logit of which takes ``each`` bytes, into near-equal pieces."""
        count = max(1, -(-each * rows * len(self.weight) // PIECE))
        size = -(-rows // count)
        return (slice(start, min(start + size, rows)) for start in range(0, rows, size))

    def _entropy_and_errors(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.logits(x)
        kind = torch.promote_types(raw.dtype, torch.float32)
        logs = torch.log_softmax(raw, -1, dtype=kind)
        at = targets[:, None]
        entropy = -logs.gather(1, at)[:, 0]
        errors = logs.exp_()
        errors.scatter_add_(1, at, torch.full_like(at, -1, dtype=kind))
        if self.cap:
            errors.mul_(1 - (raw.to(kind) / self.cap).square())
        return entropy, errors.mul_(self.multiplier) if self.multiplier != 1.0 else errors

    def entropies(self, x: Tensor, targets: Tensor, slopes: bool) -> tuple[Tensor, Tensor | None]:
        """Return each row's cross-entropy ``[E]`` and, if asked for, its gradient by ``x [E, d]``, piece by piece."""
        entropies, gradients = [], []
        for part in self._pieces(len(x)):
            if not slopes:
                entropies.append(token_losses(self.logits(x[part]), targets[part], None))
                continue
            entropy, errors = self._entropy_and_errors(x[part], targets[part])
            entropies.append(entropy)
            gradients.append(errors.to(self.weight.dtype) @ self.weight)
        return torch.cat(entropies), torch.cat(gradients) if slopes else None


class GivenLogits(Head):
    """Stands for the head of an architecture that has no plain linear there: ``x`` is the logits themselves."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0, 0))

    def logits(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


class _Entropy(torch.autograd.Function):
    """Cross-entropy of each row of ``x [E, d]``, ``[E]``; the backward multiplies what the forward has kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, targets: Tensor, head: Head) -> Tensor:
        entropy, slopes = head.entropies(x, targets, ctx.needs_input_grad[0])
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (slopes,) = ctx.saved_tensors
        return (slopes * grad[:, None]).to(slopes.dtype), None, None
