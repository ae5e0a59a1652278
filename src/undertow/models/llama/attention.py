"""Attention over short token tries on a CPU, written out: rotary positions, scores, softmax, values, and back.

torch's own attention keeps no T x T matrix, which is what long sequences need. Tries are short: keeping the
probabilities costs less than computing them twice, rotating while the heads are laid out saves a pass, and because a
trie's node sees no later node, blocks of queries leave out the keys behind them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

#: Queries per block: short enough to leave out most invisible keys, long enough for the matrix products.
_BLOCK = 64

#: Beyond this many keys the kept probabilities outgrow the rest of a layer.
LONGEST = 1024

Turn = tuple[Tensor, Tensor]


def turn_table(cos: Tensor, sin: Tensor) -> Turn:
    """Lay rotary tables ``[N, T, r/2]`` out beside heads: ``[N, 1, T, r]`` (cos twice) and ``[N, 1, T, r/2]``.

    The first r of a head's d numbers turn, the others stay; r = 0 turns nothing.
    """
    return torch.cat([cos, cos], -1)[:, None], sin[:, None].contiguous()


class Rotate(torch.autograd.Function):
    """Rotary positions on ``x [N, H, T, d]`` with a :func:`turn_table` (halves, as transformers)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, (cos, sin), 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return turned(grad, (cos, sin), -1), None, None


def turned(x: Tensor, at: Turn, sign: int = 1) -> Tensor:
    """Return ``x [N, H, T, d]`` turned by its positions (``sign`` -1: turned back), heads apart in memory."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _turn(x, at, sign, out)
    return out


class ShortAttention(torch.autograd.Function):
    """out = softmax(s·R(q)·R(k)ᵀ + mask)·v for every head, R = rotary positions (halves, as transformers).

    Args of ``apply``:
        q: ``[N, Q, H·d]``.
        k, v: ``[N, T, Hk·d]``; H is a multiple of Hk (grouped queries).
        mask: ``[N, 1, Q, T]``, added to the scores; ``-inf``-like where a query must not look.
        at_q, at_k: :func:`turn_table` of the queries' and the keys' positions (cos, sin).
        heads: (H, Hk).
        scale: s.
        ordered: query i sees no key after i (then Q = T), so blocks of queries can leave keys out.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        at_q: Turn,
        at_k: Turn,
        heads: tuple[int, int],
        scale: float,
        ordered: bool,
    ) -> Tensor:
        n, queries, width = q.shape
        d, group, keys = width // heads[0], heads[0] // heads[1], k.shape[1]
        turned = q.new_empty(n, heads[1], queries, group, d)
        _turn(q.view(n, queries, heads[1], group, d).permute(0, 2, 1, 3, 4), at_q, 1, turned)
        both = q.new_empty(2, n, heads[1], keys, 1, d)
        _turn(k.view(n, keys, heads[1], 1, d).permute(0, 2, 1, 3, 4), at_k, 1, both[0])
        both[1].copy_(v.view(n, keys, heads[1], 1, d).permute(0, 2, 1, 3, 4))
        rows = turned.view(-1, queries * group, d)
        key, value = both.view(2, -1, keys, d)
        out = torch.empty_like(rows)
        cuts = _cuts(queries, keys, ordered)
        kept = []
        for start, stop, end in cuts:
            scores = q.new_empty(n, heads[1], stop - start, group, end)
            scores.copy_(mask[:, :, start:stop, None, :end])
            scores = scores.view(-1, (stop - start) * group, end)
            block = slice(start * group, stop * group)
            scores.baddbmm_(rows[:, block], key[:, :end].transpose(1, 2), alpha=scale)
            torch.ops.aten._softmax.out(scores, -1, False, out=scores)
            out[:, block] = torch.bmm(scores, value[:, :end])
            kept.append(scores)
        ctx.save_for_backward(turned, both, *at_q, *at_k, *kept)
        ctx.cuts, ctx.scale = cuts, scale
        return out.view(n, heads[1], queries, group, d).transpose(1, 2).reshape(n, queries, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        turned, both, cos_q, sin_q, cos_k, sin_k, *kept = ctx.saved_tensors
        n, kv_heads, queries, group, d = turned.shape
        keys = both.shape[3]
        rows = turned.view(-1, queries * group, d)
        key, value = both.view(2, -1, keys, d)
        above = grad.view(n, queries, kv_heads, group, d).transpose(1, 2).reshape(-1, queries * group, d)
        row_grad, both_grad = torch.empty_like(rows), torch.empty_like(both)
        key_grad, value_grad = both_grad.view(2, -1, keys, d)
        fresh = True
        # Last block first: it reaches every key, so its products start the sums.
        for (start, stop, end), share in zip(reversed(ctx.cuts), reversed(kept), strict=True):
            block = slice(start * group, stop * group)
            part = torch.bmm(above[:, block], value[:, :end].transpose(1, 2))
            torch.ops.aten._softmax_backward_data.out(part, share, -1, share.dtype, grad_input=part)
            part.mul_(ctx.scale)
            row_grad[:, block] = torch.bmm(part, key[:, :end])
            if fresh:
                torch.bmm(part.transpose(1, 2), rows[:, block], out=key_grad)
                torch.bmm(share.transpose(1, 2), above[:, block], out=value_grad)
                fresh = False
            else:
                key_grad[:, :end] += torch.bmm(part.transpose(1, 2), rows[:, block])
                value_grad[:, :end] += torch.bmm(share.transpose(1, 2), above[:, block])
        q_out = grad.new_empty(n, queries, kv_heads, group, d)
        _turn(row_grad.view_as(turned), (cos_q, sin_q), -1, q_out.permute(0, 2, 1, 3, 4))
        k_out, v_out = grad.new_empty(2, n, keys, kv_heads, 1, d)
        _turn(both_grad[0], (cos_k, sin_k), -1, k_out.permute(0, 2, 1, 3, 4))
        v_out.permute(0, 2, 1, 3, 4).copy_(both_grad[1])
        return q_out.view(n, queries, -1), k_out.view(n, keys, -1), v_out.view(n, keys, -1), None, None, None, None, None, None


def capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, cap: float) -> Tensor:
    """Return softmax(cap·tanh(s·q·kᵀ / cap) + mask)·v for ``q [N, H, Q, d]``, ``k, v [N, Hk, T, d]``, as Gemma 2 does."""
    n, heads, queries, d = q.shape
    group = heads // k.shape[1]
    scores = torch.matmul(q.reshape(n, k.shape[1], group * queries, d), k.transpose(2, 3)) * scale
    scores = (torch.tanh(scores / cap) * cap).view(n, heads, queries, -1) + mask
    share = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
    return torch.matmul(share.view(n, k.shape[1], group * queries, -1), v).view(n, heads, queries, d)


def _cuts(queries: int, keys: int, ordered: bool) -> list[tuple[int, int, int]]:
    """Return ``(start, stop, keys)`` of near-equal blocks of queries."""
    count = -(-queries // _BLOCK) if ordered else 1
    edges = [queries * i // count for i in range(count + 1)]
    return [(a, b, b if ordered else keys) for a, b in pairwise(edges)]


def _turn(x: Tensor, at: Turn, sign: int, out: Tensor) -> None:
    """Write ``x`` turned by its positions (``sign`` -1: turned back) into ``out``; ``[N, H, T, d]`` or ``[N, Hk, T, g, d]``."""
    cos, sin = at if x.ndim == 4 else (at[0][:, :, :, None], at[1][:, :, :, None])
    turns = cos.shape[-1]
    if turns < x.shape[-1]:
        out[..., turns:] = x[..., turns:]
        x, out = x[..., :turns], out[..., :turns]
        if not turns:
            return
    torch.mul(x, cos, out=out)
    first, second = x.chunk(2, -1)
    left, right = out.chunk(2, -1)
    left.addcmul_(second, sin, value=-sign)
    right.addcmul_(first, sin, value=sign)
