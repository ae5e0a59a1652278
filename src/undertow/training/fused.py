"""Differentiable pieces of a Llama block over frozen weights, each with its own short backward.

Written out by hand because a frozen weight needs no gradient of its own, and the sums can go in place; the oracle
is autograd through the transformers model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FrozenNorm(torch.autograd.Function):
    """RMS norm with a frozen weight: y = w · x·r, r = (mean(x²) + eps)^-½, over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        r = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, weight, r)
        return (wide * r).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        x, weight, r = ctx.saved_tensors
        wide = _wide(x)
        g = _wide(grad * weight)
        shift = (g * wide).mean(-1, keepdim=True).mul_(r.pow(3)).neg_()
        return g.mul_(r).addcmul_(wide, shift).to(x.dtype), None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Gated(torch.autograd.Function):
    """SwiGLU's inner product: silu(gate)·up of ``[..., 2m]`` -> ``[..., m]``."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        share = torch.sigmoid(gate)
        out = torch.empty_like(both)
        left, right = out.chunk(2, -1)
        torch.mul(gate, share, out=right)  # silu
        torch.addcmul(share, right, 1 - share, out=left)  # d silu = σ + silu·(1-σ)
        left.mul_(up).mul_(grad)
        right.mul_(grad)
        return out


class Rotate(torch.autograd.Function):
    """Rotary positions on ``x [N, T, H, d]`` with ``cos, sin [N, T, 1, d/2]`` (halves, as transformers)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    left, right = out.chunk(2, -1)
    torch.mul(first, cos, out=left)
    left.addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right)
    right.addcmul_(first, sin)
    return out


class AdaptedLinear(torch.autograd.Function):
    """One or more frozen linears on the same input, each with K LoRA adapters: y = x Wᵀ + b + s·(x Aᵀ) Bᵀ.

    The linears' outputs stand side by side; their low-rank parts go through one product with a block-diagonal B.

    Args of ``apply``:
        x: ``[N, T, in]``, N = K·G blocks of K adapters.
        weight, bias: ``[out, in]``, ``[out]`` or None, frozen.
        ready: the frozen part ``x Wᵀ + b`` if it is already known, else None (then x gets no gradient through it).
        scale: s.
        columns: for each adapter the outputs it owns, ``(start, stop)``.
        factors: A ``[K, r, in]``, B ``[K, out_i, r]`` for each adapter, alternating.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ready: Tensor | None,
        scale: float,
        columns: tuple[tuple[int, int], ...],
        *factors: Tensor,
    ) -> Tensor:
        n, t, inputs = x.shape
        if ready is not None:
            y = ready
        elif bias is None:
            y = torch.mm(x.view(-1, inputs), weight.t()).view(n, t, -1)
        else:
            y = torch.addmm(bias, x.view(-1, inputs), weight.t()).view(n, t, -1)
        if not factors:
            ctx.save_for_backward(weight)
            ctx.plain = True
            return y
        k = factors[0].shape[0]
        down = torch.cat(factors[0::2], 1) if len(factors) > 2 else factors[0]  # [K, R, in]
        up = _block_diagonal(factors[1::2], columns, y.shape[-1])  # [K, out, R]
        wide = x.to(down.dtype).view(k, -1, inputs)
        low = torch.bmm(wide, down.transpose(1, 2))  # [K, tokens, R]
        flat = y.view(k, -1, y.shape[-1])
        if y.dtype == low.dtype:
            y = flat.baddbmm_(low, up.transpose(1, 2), alpha=scale).view_as(y)
        else:
            y = (flat + torch.bmm(low, up.transpose(1, 2)).mul_(scale)).to(y.dtype).view_as(y)
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.plain, ctx.scale, ctx.columns, ctx.rank, ctx.frozen = False, scale, columns, factors[0].shape[1], ready is not None
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.plain:
            (weight,) = ctx.saved_tensors
            return torch.matmul(grad, weight), None, None, None, None, None
        x, weight, down, up, low = ctx.saved_tensors
        k, rank = down.shape[0], ctx.rank
        flat = grad.reshape(k, -1, grad.shape[-1])
        wide_grad = flat.to(down.dtype)
        low_grad = torch.bmm(wide_grad, up).mul_(ctx.scale)  # [K, tokens, R]
        wide = x.to(down.dtype).view(k, -1, x.shape[-1])
        down_grad = torch.bmm(low_grad.transpose(1, 2), wide)  # [K, R, in]
        up_grad = torch.bmm(wide_grad.transpose(1, 2), low).mul_(ctx.scale)  # [K, out, R]
        x_grad = None
        if ctx.needs_input_grad[0] and not ctx.frozen:
            x_grad = torch.mm(flat.reshape(-1, grad.shape[-1]), weight).view(k, -1, x.shape[-1])
            if x_grad.dtype == low_grad.dtype:
                x_grad = x_grad.baddbmm_(low_grad, down)
            else:
                x_grad = (x_grad + torch.bmm(low_grad, down)).to(x.dtype)
            x_grad = x_grad.view_as(x)
        pieces: list[Tensor] = []
        for i, (start, stop) in enumerate(ctx.columns):
            own = slice(i * rank, (i + 1) * rank)
            pieces += [down_grad[:, own], up_grad[:, start:stop, own]]
        return x_grad, None, None, None, None, None, *pieces


def _block_diagonal(blocks: tuple[Tensor, ...], columns: tuple[tuple[int, int], ...], width: int) -> Tensor:
    if len(blocks) == 1 and columns[0] == (0, width):
        return blocks[0]
    k, _, rank = blocks[0].shape
    whole = blocks[0].new_zeros(k, width, rank * len(blocks))
    for i, (block, (start, stop)) in enumerate(zip(blocks, columns, strict=True)):
        whole[:, start:stop, i * rank : (i + 1) * rank] = block
    return whole
