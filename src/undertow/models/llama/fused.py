"""Differentiable pieces of a Llama block over frozen weights, each with its own short backward.

Written out by hand because a frozen weight needs no gradient of its own, sums can go in place, and work on a few
clients at a time stays in a CPU's cache; the oracle is autograd through the transformers model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from undertow.models.llama.norms import Norm

#: Bytes of a block's widest activation in :class:`FeedForward` on a CPU (measured: 4 MB is best, 0.5 to 16 MB within 4 %).
_CACHE = 1 << 22


class Frozen(NamedTuple):
    """Frozen linears on the same input, side by side: ``weight [out, in]``, ``bias [out]`` or None."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return x Wᵀ + b for contiguous ``x [..., in]``."""
        flat = x.view(-1, x.shape[-1])
        if self.bias is None:
            y = torch.mm(flat, self.weight.t(), out=out)
        else:
            y = torch.addmm(self.bias, flat, self.weight.t(), out=out)
        return y.view(*x.shape[:-1], -1)

    def back(self, grad: Tensor) -> Tensor:
        """Return the input's gradient."""
        return torch.mm(grad.reshape(-1, grad.shape[-1]), self.weight).view(*grad.shape[:-1], -1)


@dataclass(frozen=True)
class LowRank:
    """K clients' adapters of linears that stand side by side: ``down [K, R, in]``, ``up [K, out, R]`` block-diagonal."""

    down: Tensor
    up: Tensor

    @staticmethod
    def of(factors: Sequence[Tensor], columns: Sequence[tuple[int, int]], width: int) -> LowRank | None:
        """Stack A ``[K, r, in]`` and B ``[K, out_i, r]`` of each adapter (alternating), which owns ``columns`` of the output."""
        if not factors:
            return None
        down = torch.cat(list(factors[0::2]), 1) if len(factors) > 2 else factors[0]
        return LowRank(down, _block_diagonal(factors[1::2], columns, width))

    def of_clients(self, own: slice) -> LowRank:
        """Return the adapters of some of the clients."""
        return LowRank(self.down[own], self.up[own])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return ``(down, up)``."""
        return self.down, self.up

    def add(self, y: Tensor, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return ``y + s·(x Aᵀ) Bᵀ`` (in place if the types agree) and ``A xᵀ``; ``x``, ``y`` lead with the clients' rows."""
        k = self.down.shape[0]
        low = torch.bmm(self.down, x.to(self.down.dtype).view(k, -1, x.shape[-1]).transpose(1, 2))  # [K, R, tokens]
        flat = y.view(k, -1, y.shape[-1])
        if y.dtype == low.dtype:
            return flat.baddbmm_(low.transpose(1, 2), self.up.transpose(1, 2), alpha=scale).view_as(y), low
        wide = torch.baddbmm(flat.to(low.dtype), low.transpose(1, 2), self.up.transpose(1, 2), alpha=scale)
        return wide.to(y.dtype).view_as(y), low

    def back(self, grad: Tensor, x: Tensor, low: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of ``A xᵀ`` (for :meth:`add_back`), A and B.

        The rank leads in every product: a matrix product with few rows is several times faster than one with few columns.
        """
        k = self.down.shape[0]
        wide = grad.reshape(k, -1, grad.shape[-1]).to(self.down.dtype)
        low_grad = torch.bmm(self.up.transpose(1, 2), wide.transpose(1, 2)).mul_(scale)  # [K, R, tokens]
        down_grad = torch.bmm(low_grad, x.to(self.down.dtype).view(k, -1, x.shape[-1]))
        return low_grad, down_grad, torch.bmm(low, wide).mul_(scale).transpose(1, 2)

    def add_back(self, x_grad: Tensor, low_grad: Tensor) -> Tensor:
        """Add the adapters' part to the input's gradient."""
        flat = x_grad.view(low_grad.shape[0], -1, x_grad.shape[-1])
        if flat.dtype == low_grad.dtype:
            return flat.baddbmm_(low_grad.transpose(1, 2), self.down).view_as(x_grad)
        return torch.baddbmm(flat.to(low_grad.dtype), low_grad.transpose(1, 2), self.down).to(x_grad.dtype).view_as(x_grad)


def _block_diagonal(blocks: Sequence[Tensor], columns: Sequence[tuple[int, int]], width: int) -> Tensor:
    if len(blocks) == 1 and columns[0] == (0, width):
        return blocks[0]
    k, _, rank = blocks[0].shape
    whole = blocks[0].new_zeros(k, width, rank * len(blocks))
    for i, (block, (start, stop)) in enumerate(zip(blocks, columns, strict=True)):
        whole[:, start:stop, i * rank : (i + 1) * rank] = block
    return whole


def _pieces(down_grad: Tensor, up_grad: Tensor, columns: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Cut the stacked gradients into those of each A and B."""
    rank = down_grad.shape[1] // len(columns)
    found: list[Tensor] = []
    for i, (start, stop) in enumerate(columns):
        own = slice(i * rank, (i + 1) * rank)
        found += [down_grad[:, own], up_grad[:, start:stop, own]]
    return found


class AdaptedLinear(torch.autograd.Function):
    """Frozen linears on the same input, each with K LoRA adapters or none: y = x Wᵀ + b + s·(x Aᵀ) Bᵀ.

    The linears' outputs stand side by side; their low-rank parts go through one product with a block-diagonal B.

    Args of ``apply``:
        x: ``[N, T, in]``, N = K·G blocks of K adapters.
        frozen: the linears.
        ready: the frozen part ``x Wᵀ + b`` if it is already known, else None (then x gets no gradient through it).
        scale: s.
        columns: for each adapter the outputs it owns, ``(start, stop)``.
        factors: A ``[K, r, in]``, B ``[K, out_i, r]`` for each adapter, alternating.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        frozen: Frozen,
        ready: Tensor | None,
        scale: float,
        columns: tuple[tuple[int, int], ...],
        *factors: Tensor,
    ) -> Tensor:
        y = frozen(x) if ready is None else ready
        ctx.linear, ctx.scale, ctx.columns, ctx.through = frozen, scale, columns, ready is None
        adapters = LowRank.of(factors, columns, y.shape[-1])
        if adapters is not None:
            y, low = adapters.add(y, x, scale)
            ctx.save_for_backward(x, *adapters.tensors(), low)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_grad = ctx.linear.back(grad) if ctx.needs_input_grad[0] and ctx.through else None
        if not ctx.columns:
            return x_grad, None, None, None, None
        x, down, up, low = ctx.saved_tensors
        adapters = LowRank(down, up)
        low_grad, down_grad, up_grad = adapters.back(grad, x, low, ctx.scale)
        if x_grad is not None:
            x_grad = adapters.add_back(x_grad, low_grad)
        return x_grad, None, None, None, None, *_pieces(down_grad, up_grad, ctx.columns)


@dataclass(frozen=True)
class Activation:
    """A feed-forward's elementwise half: a(G h)·(U h) with a gate, else a(U h).

    Attributes:
        kind: ``silu``, ``gelu`` or ``tanh`` (gelu by a tanh, as GPT-2 and Gemma have it).
        gated: whether there is a gate.
    """

    kind: str = "silu"
    gated: bool = True

    def forward(self, inner: Tensor) -> Tensor:
        """Return the result for ``[G h, U h]`` side by side, or for ``U h``."""
        share = self.share(inner)
        return self._of(inner) if share is None else share.mul_(inner.chunk(2, -1)[1])

    def share(self, inner: Tensor) -> Tensor | None:
        """Return a(G h), or None without a gate."""
        return self._of(inner.chunk(2, -1)[0]) if self.gated else None

    def back(self, grad: Tensor, inner: Tensor, share: Tensor | None) -> Tensor:
        """Return the gradient by ``inner``; ``grad`` is written over.

        Args:
            grad: by the result.
            inner: as of :meth:`forward`.
            share: a(G h), where there is a gate.
        """
        found = torch.empty_like(inner)
        if share is None:
            self._slope(grad, inner, found)
            return found
        gate, up = inner.chunk(2, -1)
        left, right = found.chunk(2, -1)
        torch.mul(grad, share, out=right)
        self._slope(grad.mul_(up), gate, left)
        return found

    def _of(self, x: Tensor) -> Tensor:
        if self.kind == "silu":
            return torch.nn.functional.silu(x)
        return torch.nn.functional.gelu(x, approximate="tanh" if self.kind == "tanh" else "none")

    def _slope(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        if self.kind == "silu":
            torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=out)
        else:
            torch.ops.aten.gelu_backward.grad_input(grad, x, approximate="tanh" if self.kind == "tanh" else "none", grad_input=out)


class Half(NamedTuple):
    """What a layer's second half is made of: y = x + m·P(D(a(N x))), with G and U side by side before a.

    Attributes:
        before: N, or None.
        inner: G and U side by side, or U alone.
        activation: a.
        down: D.
        after: P, or None.
        multiplier: m.
    """

    before: Norm | None
    inner: Frozen
    activation: Activation
    down: Frozen
    after: Norm | None
    multiplier: float


class FeedForward(torch.autograd.Function):
    """The second half of a layer (:class:`Half`), with adapters on any of its linears.

    On a CPU it works on a few tries at a time, so that everything between reading x and writing y stays in the cache
    and padding is left out. The backward starts from x and ``[G h, U h]`` and computes the rest again, which is
    elementwise.

    Args of ``apply``:
        x: ``[N, T, d]``, N = K·G.
        lengths: nodes of each trie; what stands after them is padding and passes through.
        clients: K.
        half: the layer's own.
        scale: s of the adapters.
        columns: the outputs that each adapter owns, for ``inner`` and for ``down``.
        factors: A and B of each adapter, alternating, those of ``inner`` first.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        lengths: Sequence[int],
        clients: int,
        half: Half,
        scale: float,
        columns: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]],
        *factors: Tensor,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = half.inner.weight.shape[0]
        first = LowRank.of(factors[: 2 * len(columns[0])], columns[0], inner)
        second = LowRank.of(factors[2 * len(columns[0]) :], columns[1], x.shape[-1])
        y, both = rows.clone(), rows.new_empty(rows.shape[0], inner)
        kept: list[Tensor] = []
        blocks = _blocks(x, lengths, clients, inner)
        for own, part in blocks:
            h = rows[part]
            if half.before is not None:
                h, r = half.before.forward(h)
                kept.append(r)
            wide = half.inner(h, both[part])
            if first is not None:
                wide, low = first.of_clients(own).add(wide, h, scale)
                both[part] = wide
                kept.append(low)
            mid = half.activation.forward(wide)
            out = half.down(mid)
            if second is not None:
                out, low = second.of_clients(own).add(out, mid, scale)
                kept.append(low)
            if half.after is not None:
                kept.append(out)
                out, r = half.after.forward(out)
                kept.append(r)
            y[part] += out if half.multiplier == 1.0 else out * half.multiplier
        adapters = [tensor for pair in (first, second) if pair is not None for tensor in pair.tensors()]
        ctx.save_for_backward(rows, both, *adapters, *kept)
        ctx.half, ctx.scale, ctx.columns, ctx.blocks = half, scale, columns, blocks
        return y.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved, half = iter(ctx.saved_tensors), ctx.half
        rows, both = next(saved), next(saved)
        first, second = (LowRank(next(saved), next(saved)) if columns else None for columns in ctx.columns)
        totals = [torch.zeros_like(tensor) for pair in (first, second) if pair is not None for tensor in pair.tensors()]
        above = grad.reshape(rows.shape)
        x_grad = above.clone()
        for own, part in ctx.blocks:
            r = next(saved) if half.before is not None else rows[:0]
            lows = [next(saved) for pair in (first, second) if pair is not None]
            out_grad = above[part] if half.multiplier == 1.0 else above[part] * half.multiplier
            if half.after is not None:
                out_grad = half.after.back(out_grad, next(saved), next(saved))
            share = half.activation.share(both[part])
            mid_grad = half.down.back(out_grad)
            if second is not None:
                mid = half.activation.forward(both[part]) if share is None else share * both[part].chunk(2, -1)[1]
                low_grad, *found = second.of_clients(own).back(out_grad, mid, lows[-1], ctx.scale)
                _accumulate(totals[-2:], own, found)
                mid_grad = second.of_clients(own).add_back(mid_grad, low_grad)
            wide_grad = half.activation.back(mid_grad, both[part], share)
            h_grad = half.inner.back(wide_grad)
            if first is not None:
                h = rows[part] if half.before is None else half.before.again(rows[part], r)
                low_grad, *found = first.of_clients(own).back(wide_grad, h, lows[0], ctx.scale)
                _accumulate(totals[:2], own, found)
                h_grad = first.of_clients(own).add_back(h_grad, low_grad)
            x_grad[part] += h_grad if half.before is None else half.before.back(h_grad, rows[part], r)
        pieces: list[Tensor] = []
        for columns in ctx.columns:
            if columns:
                pieces += _pieces(totals.pop(0), totals.pop(0), columns)
        return x_grad.view_as(grad), None, None, None, None, None, *pieces


def _accumulate(totals: Sequence[Tensor], own: slice, found: Sequence[Tensor]) -> None:
    for total, part in zip(totals, found, strict=True):
        total[own] += part


def _blocks(x: Tensor, lengths: Sequence[int], clients: int, inner: int) -> list[tuple[slice, slice]]:
    """Cut ``x [N, T, d]`` into blocks: which clients, which of the N·T rows.

    A trie that fills a good part of a CPU's cache is a block of its own, and its padding is left out; smaller ones
    share a block with the clients beside them. A GPU takes all at once.
    """
    n, length, _ = x.shape
    groups = n // clients
    if x.device.type != "cpu":
        return [(slice(0, clients), slice(0, n * length))]
    size = length * inner * x.element_size()
    if 4 * size >= _CACHE:
        return [(slice(i // groups, i // groups + 1), slice(i * length, i * length + lengths[i])) for i in range(n) if lengths[i]]
    step = max(1, _CACHE // (size * groups))
    starts = range(0, clients, step)
    ends = [min(start + step, clients) for start in starts]
    return [(slice(a, b), slice(a * groups * length, b * groups * length)) for a, b in zip(starts, ends, strict=True)]
