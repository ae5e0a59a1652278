"""Generation with a Llama-family model as plain tensors: a prompt prefix that all rows share is held once.

The same forward as ``packed.py``, one adapter, no gradient. Rows stand at the left of their cache and each knows how
many of its places are filled, so a row can go back to any earlier length by forgetting: a guess that was wrong costs
nothing but its own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.models.llama.attention import turn_table, turned
from undertow.models.llama.packed import PackedLlama, apply_norm, feed_forward


@dataclass
class _Cache:
    """One layer's keys and values: ``[N, Hk, S, d]`` of the rows, ``[Hk, P, d]`` of the prefix."""

    keys: Tensor
    values: Tensor
    prefix_keys: Tensor
    prefix_values: Tensor


class CachedRows:
    """N rows of tokens behind a common prefix.

    Args:
        model: the packed base.
        adapter: ``[D]`` in the model's layout, or None for the base alone.
        prefix: tokens that every row begins with; may be empty.
        rows: N.
        places: tokens that a row may hold behind the prefix.
    """

    def __init__(self, model: PackedLlama, adapter: Tensor | None, prefix: Sequence[int], rows: int, places: int) -> None:
        self.model, self.head = model, model.head
        device = model.embedding.device
        self.factors = {} if adapter is None else {name: (a, b) for name, a, b in model.layout.pairs(adapter[None].to(device))}
        self.filled = torch.zeros(rows, dtype=torch.long, device=device)
        self.start = len(prefix)
        first: list[_Cache] | None = None
        if prefix:
            alone = CachedRows(model, adapter, [], 1, len(prefix))
            ids = torch.tensor([list(prefix)], device=device)
            alone.feed(ids, torch.zeros_like(ids[:, :1]))
            first = alone.caches
        self.caches: list[_Cache] = []
        for i, block in enumerate(model.blocks):
            shape = (rows, block.kv_heads, places, block.head_dim)
            # Zeros: a place not yet filled is masked, but 0 x NaN would still be NaN.
            keys, values = (torch.zeros(shape, dtype=model.embedding.dtype, device=device) for _ in range(2))
            none = keys.new_zeros(block.kv_heads, 0, block.head_dim)
            before = (none, none) if first is None else (first[i].keys[0], first[i].values[0])
            self.caches.append(_Cache(keys, values, *before))

    def feed(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Append tokens ``[N, q]`` to every row; return what the head reads, ``[N, w, d]``, at ``wanted [N, w]`` of the q columns.

        Padding stands on the right; :meth:`forget` it afterwards.
        """
        model, scale = self.model, self.model.layout.scale
        n, q = tokens.shape
        place = self.filled[:, None] + torch.arange(q, device=tokens.device)  # [N, q]
        x = model.embedding[tokens]
        cos, sin = model.rotary(x, self.start + place)
        half = cos.shape[-1] // 2
        cos, sin = cos[..., :half], sin[..., :half]
        at = turn_table(cos, sin)
        self.filled = self.filled + q
        reach = int(self.filled.max())
        hidden = torch.arange(reach, device=tokens.device) > place[..., None]  # [N, q, S]
        row = torch.arange(n, device=tokens.device)[:, None]
        last = len(model.blocks) - 1
        for i, (block, cache) in enumerate(zip(model.blocks, self.caches, strict=True)):
            h = apply_norm(x, block.attention_norm)
            seen, turns = hidden, at
            if i < last:
                query, key, value = block.attention_in[0](h, self.factors, scale).split(block.qkv_sizes, -1)
            else:
                key, value = block.attention_in[1](h, self.factors, scale).split(block.qkv_sizes[1:], -1)
                index = wanted[..., None]
                query = block.attention_in[0](h.gather(1, index.expand(-1, -1, h.shape[-1])), self.factors, scale)
                turns = turn_table(*(t.gather(1, index.expand(-1, -1, half)) for t in (cos, sin)))
                seen = hidden.gather(1, index.expand(-1, -1, reach))
                x = x.gather(1, index.expand(-1, -1, x.shape[-1]))
            query = query.view(n, -1, block.heads, block.head_dim)
            key = key.view(n, q, block.kv_heads, block.head_dim)
            if block.q_norm is not None and block.k_norm is not None:
                query, key = apply_norm(query, block.q_norm), apply_norm(key, block.k_norm)
            cache.keys[row, :, place] = turned(key.transpose(1, 2), at).transpose(1, 2)
            cache.values[row, :, place] = value.view(n, q, block.kv_heads, block.head_dim)
            mixed = _attend(turned(query.transpose(1, 2), turns), cache, reach, seen, block.scaling)
            x = x + block.o(mixed, self.factors, scale)
            x = feed_forward(block, x, [x.shape[1]] * n, 1, self.factors, scale)
        return apply_norm(x, model.norm)

    def forget(self, filled: Tensor) -> None:
        """Let the rows hold only their first ``filled [N]`` tokens."""
        self.filled = filled

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.filled = self.filled[rows]
        for cache in self.caches:
            cache.keys, cache.values = cache.keys[rows], cache.values[rows]


def _attend(query: Tensor, cache: _Cache, reach: int, hidden: Tensor, scaling: float) -> Tensor:
    """Return ``[N, w, H·d]`` for queries ``[N, H, w, d]`` over the prefix and the first ``reach`` places of each row."""
    n, heads, w, d = query.shape
    kv_heads, shared = cache.prefix_keys.shape[:2]
    group = heads // kv_heads
    query = query.reshape(n, kv_heads, group * w, d)
    scores = torch.matmul(query, cache.keys[:, :, :reach].transpose(2, 3)).view(n, kv_heads, group, w, reach)
    scores = (scores * scaling).masked_fill_(hidden[:, None, None], torch.finfo(scores.dtype).min)
    if shared:
        # One product for all rows: the prefix's keys are the same for everybody.
        flat = query.transpose(0, 1).reshape(kv_heads, -1, d)
        front = torch.bmm(flat, cache.prefix_keys.transpose(1, 2)) * scaling  # [Hk, N·g·w, P]
        front = front.view(kv_heads, n, group, w, shared).transpose(0, 1)
        scores = torch.cat([front, scores], -1)
    share = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    own = share[..., shared:].reshape(n, kv_heads, group * w, reach)
    out = torch.matmul(own, cache.values[:, :, :reach])
    if shared:
        front = share[..., :shared].transpose(0, 1).reshape(kv_heads, -1, shared)
        out = out + torch.bmm(front, cache.prefix_values).view(kv_heads, n, group * w, d).transpose(0, 1)
    return out.view(n, heads, w, d).transpose(1, 2).reshape(n, w, heads * d)
