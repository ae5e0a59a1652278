"""RMS and layer norms with frozen weights, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """Return ``x`` as float32, or float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class Norm:
    """y = w·(x - m)·r + b over the last dimension: m = 0, r = (mean(x²) + eps)^-½; centred m = mean(x), r = (var(x) + eps)^-½.

    Attributes:
        weight: w ``[d]``; in the model's type as Llama multiplies, after rounding, or wider: then before rounding, as Gemma does.
        eps: as above.
        bias: b ``[d]`` or None.
        centred: whether the mean is taken off (layer norm).
    """

    weight: Tensor
    eps: float
    bias: Tensor | None = None
    centred: bool = False

    @staticmethod
    def of(module: Any, offset: float = 0.0, late: bool = False) -> Norm | None:
        """Return what a module computes as far as its fields tell, or None where they do not.

        Args:
            module: of transformers.
            offset: added to its weight.
            late: whether it rounds after the weight.
        """
        if type(module) is nn.LayerNorm:
            bias = None if module.bias is None else module.bias.detach()
            return Norm(module.weight.detach(), module.eps, bias, centred=True)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not isinstance(eps, float) or not isinstance(getattr(module, "weight", None), Tensor):
            return None
        weight = module.weight.detach()
        return Norm(wide(weight) + offset if late else weight, float(eps))

    def __call__(self, x: Tensor) -> Tensor:
        """Return y, differentiable by x."""
        found: Tensor = _FrozenNorm.apply(x, self)
        return found

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and what the backward needs beside x, ``[..., 1]`` r or ``[..., 2]`` r and m."""
        values = wide(x)
        if self.centred:
            mean = values.mean(-1, keepdim=True)
            values = values - mean
            r = torch.rsqrt(values.square().mean(-1, keepdim=True).add_(self.eps))
            return self._weighted(values, r, x.dtype), torch.cat([r, mean], -1)
        r = torch.rsqrt(values.square().mean(-1, keepdim=True).add_(self.eps))
        return self._weighted(values, r, x.dtype), r

    def again(self, x: Tensor, kept: Tensor) -> Tensor:
        """Return y from x and what the forward kept."""
        values = wide(x) - kept[..., 1:] if self.centred else wide(x)
        return self._weighted(values, kept[..., :1], x.dtype)

    def back(self, grad: Tensor, x: Tensor, kept: Tensor) -> Tensor:
        """Return the gradient by x."""
        r = kept[..., :1]
        values = wide(x) - kept[..., 1:] if self.centred else wide(x)
        g = wide(grad * self.weight)
        shift = (g * values).mean(-1, keepdim=True).mul_(r.pow(3)).neg_()
        if self.centred:
            g = g - g.mean(-1, keepdim=True)
        return g.mul_(r).addcmul_(values, shift).to(x.dtype)

    def _weighted(self, values: Tensor, r: Tensor, dtype: torch.dtype) -> Tensor:
        late = self.weight.dtype != dtype
        y = (values * r).mul_(self.weight).to(dtype) if late else (values * r).to(dtype).mul_(self.weight)
        return y if self.bias is None else y.add_(self.bias)


class _FrozenNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        y, kept = norm.forward(x)
        ctx.save_for_backward(x, kept)
        ctx.norm = norm
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.norm.back(grad, *ctx.saved_tensors), None
