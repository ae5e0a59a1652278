"""The output head of a frozen model, at the rows where a token is predicted; many logits are never held whole.

A head of 262,144 words gives a megabyte of float32 for every row. So words go through in runs whose logits stay in a processor's
cache; softmax and largest logit are carried from run to run (Milakov and Gimelshein 2018, arXiv:1805.02867, Alg. 3). Because the
weight is frozen, a row's whole backward is made on the way: what the gradient's own factor multiplies is kept, ``[E, d]``.
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

#: Words of a run, at least; and rows that go through together on a CPU, whose logits are then 2 MB at most.
WORDS, ROWS = 1 << 11, 1 << 8


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
        return self._bent(nn.functional.linear(x.contiguous(), self.weight, self.bias))

    def _bent(self, found: Tensor) -> Tensor:
        """Return logits of ``x Wᵀ + b``."""
        if self.multiplier != 1.0:
            found = found * self.multiplier
        return torch.tanh(found / self.cap) * self.cap if self.cap else found

    def losses(self, x: Tensor, targets: Tensor, loss: TokenLoss | None = None) -> Tensor:
        """Return ℓ of each row's target, ``[E]``, at least float32, differentiable by ``x [E, d]``."""
        whole = 4 * len(x) * len(self.weight) <= WHOLE and (len(self.weight) < LARGE or x.device.type != "cpu")
        if whole:
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
        raw = self.logits(x)
        kind = torch.promote_types(raw.dtype, torch.float32)
        # Not softmax, which loses digits over many words: findings/cross-entropy-loses-digits-in-large-vocabularies.sh.
        errors = torch.exp(raw.to(kind) - raw.to(kind).logsumexp(1, keepdim=True))
        errors.scatter_add_(1, targets[:, None], torch.full_like(targets[:, None], -1, dtype=kind))
        if self.cap:
            errors.mul_(1 - (raw.to(kind) / self.cap).square())
        return errors.mul_(self.multiplier) if self.multiplier != 1.0 else errors

    def likeliest(self, x: Tensor) -> Tensor:
        """Return the first token of the largest logit for each row of ``x [..., d]``, ``[...]``; no gradient."""
        rows = x.reshape(-1, x.shape[-1])
        if self._screen is None:
            return torch.cat([self._first(rows[part]) for part in self._row_pieces(rows)]).view(x.shape[:-1])
        return torch.cat([self._screened(rows[part]) for part in self._pieces(len(rows), 2)]).view(x.shape[:-1])

    def _screened(self, rows: Tensor) -> Tensor:
        found = None if self._screen is None else self._screen.likeliest(rows)
        return self._first(rows) if found is None else found

    def _first(self, rows: Tensor) -> Tensor:
        if len(self.weight) < LARGE:
            return self.logits(rows).argmax(1)
        best = rows.new_full((len(rows),), -torch.inf)
        token = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        for start, run in self._runs(rows):
            logits = run.logits(rows)
            at = largest(logits)
            top = logits.gather(1, at[:, None])[:, 0]
            token = torch.where(top > best, at + start, token)
            best = torch.maximum(top, best)
        return token

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
        found = [self._scores(rows[part], asked[part]) for part in self._row_pieces(rows)]
        own, best, chance = (torch.cat(each).view(tokens.shape) for each in zip(*found, strict=True))
        return own, best, chance

    def _scores(self, rows: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kind = torch.promote_types(rows.dtype, torch.float32)
        best = torch.full((len(rows),), -torch.inf, dtype=kind, device=rows.device)
        total, own, token = torch.zeros_like(best), torch.zeros_like(best), torch.zeros_like(asked)
        for start, run in self._runs(rows):
            logits = run.logits(rows).to(kind)
            at = largest(logits)
            top = torch.maximum(logits.gather(1, at[:, None])[:, 0], best)
            token = torch.where(top > best, at + start, token)
            place = asked - start
            inside = (place >= 0) & (place < logits.shape[1])
            own = torch.where(inside, logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0], own)
            total = total * torch.exp(best - top) + torch.exp(logits - top[:, None]).sum(1)
            best = top
        chance = -total.log()
        return own - best + chance, token, chance

    def _row_pieces(self, x: Tensor) -> Iterator[slice]:
        """Cut rows ``[n, d]`` so that the logits of a run of words are at most what :meth:`_runs` holds."""
        size = ROWS if x.device.type == "cpu" else max(ROWS, PIECE // (4 * WORDS))
        return (slice(start, start + size) for start in range(0, max(1, len(x)), size))

    def _runs(self, x: Tensor) -> Iterator[tuple[int, Head]]:
        """Yield the first token of each run of words, and the head of these words.

        On a CPU a run's logits are used while they are in its cache; elsewhere a run is as long as its piece of memory lets it be.
        """
        size = WORDS if x.device.type == "cpu" else max(WORDS, PIECE // (4 * max(1, len(x))))
        for start in range(0, len(self.weight), size):
            bias = None if self.bias is None else self.bias[start : start + size]
            yield start, Head(self.weight[start : start + size], bias, self.multiplier, self.cap)

    def _pieces(self, rows: int, each: int = 4) -> Iterator[slice]:
        """Cut rows, a logit of which takes ``each`` bytes, into near-equal pieces."""
        count = max(1, -(-each * rows * len(self.weight) // PIECE))
        size = -(-rows // count)
        return (slice(start, min(start + size, rows)) for start in range(0, rows, size))

    def entropies(self, x: Tensor, targets: Tensor, slopes: bool) -> tuple[Tensor, Tensor | None]:
        """Return each row's cross-entropy ``[E]`` and, if asked for, its gradient by ``x [E, d]``."""
        found = [self._entropies(x[part], targets[part], slopes) for part in self._row_pieces(x)]
        gradients = [slope for _, slope in found if slope is not None]
        return torch.cat([entropy for entropy, _ in found]), torch.cat(gradients) if slopes else None

    def _entropies(self, x: Tensor, targets: Tensor, slopes: bool) -> tuple[Tensor, Tensor | None]:
        """The same of a few rows. With the target's logit t and the others' z_v, o = Σ e^z_v over the others: the entropy is
        log(e^t + o) - t, and its gradient (Σ e^z_v w_v - o·w_t) / (e^t + o). So nothing is the difference of two large numbers
        where the target is almost certain, not even in bfloat16.
        """
        kind = torch.promote_types(x.dtype, torch.float32)
        words, bias = self.weight[targets], 0.0 if self.bias is None else self.bias[targets]
        own = self._bent(((x.to(kind) * words.to(kind)).sum(1) + bias).to(x.dtype)).to(kind)
        top, others, drawn = own, torch.zeros_like(own), torch.zeros_like(x, dtype=kind)
        for start, run in self._runs(x):
            logits = run.logits(x).to(kind)
            higher = torch.maximum(top, logits.amax(1))
            chance = torch.exp(logits - higher[:, None])
            at = (targets - start).clamp(0, logits.shape[1] - 1)[:, None]
            chance.scatter_(1, at, torch.where(at + start == targets[:, None], 0.0, chance.gather(1, at)))
            fallen = torch.exp(top - higher)
            others = others * fallen + chance.sum(1)
            if slopes:
                if self.cap:
                    chance.mul_(1 - (logits / self.cap).square_())
                drawn.mul_(fallen[:, None])
                if kind == self.weight.dtype:
                    drawn.addmm_(chance, run.weight)
                else:
                    drawn.add_(chance.to(self.weight.dtype) @ run.weight)
            top = higher
        total = others + torch.exp(own - top)
        entropy = top - own + torch.log(total)
        if not slopes:
            return entropy, None
        away = others / total * (1 - (own / self.cap).square() if self.cap else 1.0)
        slope = (drawn / total[:, None] - away[:, None] * words) * self.multiplier
        return entropy, slope.to(x.dtype)


class GivenLogits(Head):
    """Stands for the head of an architecture that has no plain linear there: ``x`` is the logits themselves."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0, 0))

    def _runs(self, x: Tensor) -> Iterator[tuple[int, Head]]:
        return iter([(0, self)])

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
