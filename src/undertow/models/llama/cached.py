"""Generation with a model of a known family as plain tensors: a prompt prefix that all rows share is held once.

The same forward as ``packed.py``, one adapter, no gradient. Rows stand at the left of their cache and each knows how
many of its places are filled, so a row can go back to any earlier length by forgetting: a guess that was wrong costs
nothing but its own forward. Rows that begin alike after the prefix go through the products of the layers as one, as far as they do;
only attention, a small part of the work, is each row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from undertow.models.llama.attention import Turn, turn_table, turned
from undertow.models.llama.family import Block
from undertow.models.llama.packed import PackedLlama, added, last_qkv, second_half


@dataclass
class _Cache:
    """One layer's keys and values: ``[N, Hk, S, d]`` of the rows, ``[Hk, P, d]`` of the prefix."""

    keys: Tensor
    values: Tensor
    prefix_keys: Tensor
    prefix_values: Tensor


@dataclass(frozen=True)
class Feed:
    """New tokens on their way through the layers: T of them, which are the N·q columns of all rows, or less where rows begin alike.

    Attributes:
        place: where each column stands after the prefix, ``[N, q]``.
        wanted: columns that the head reads, ``[N, w]``.
        angles: cosines and sines of the columns by kind of layer, and as ``turns`` what they turn by.
        reach: places filled by now in the longest row.
        token: which of the T each column is, ``[N, q]``; None where each column is one of its own, and layers take ``[N, q, d]``.
        column: one of the N·q that each of the T stands in, ``[T]``.
    """

    place: Tensor
    wanted: Tensor
    angles: dict[str | None, tuple[Tensor, Tensor]]
    turns: dict[str | None, Turn]
    reach: int
    token: Tensor | None = None
    column: Tensor | None = None

    def once(self, t: Tensor) -> Tensor:
        """Return what layers take, ``[1, T, ...]``, of ``[N, q, ...]``."""
        return t if self.column is None else t.flatten(0, 1)[self.column][None]

    def spread(self, t: Tensor) -> Tensor:
        """Return ``[N, q, ...]`` of ``[1, T, ...]``."""
        return t if self.token is None else t[0][self.token]

    def kept(self, t: Tensor) -> Tensor:
        """Return ``[N, w, ...]`` of ``[1, T, ...]``: the columns that the head reads."""
        return self.columns(t) if self.token is None else t[0][self.token.gather(1, self.wanted)]

    def columns(self, t: Tensor) -> Tensor:
        """Return ``[N, w, ...]`` of ``[N, q, ...]``, likewise."""
        return t.gather(1, self.wanted[..., None].expand(-1, -1, t.shape[-1]))


class CachedRows:
    """N rows of tokens after a common prefix.

    Args:
        model: the packed base.
        adapter: ``[D]`` in the model's layout, or None for the base alone.
        rows: N.
        places: tokens that a row may hold after the prefix.
        prefix: one row, whose tokens all rows begin with; None: no tokens.
    """

    def __init__(
        self, model: PackedLlama, adapter: Tensor | None, rows: int, places: int, prefix: CachedRows | None = None
    ) -> None:
        self.model, self.head = model, model.head
        device = model.device
        self.factors = {} if adapter is None else {name: (a, b) for name, a, b in model.layout.pairs(adapter[None].to(device))}
        self.filled = torch.zeros(rows, dtype=torch.long, device=device)
        self.start = 0 if prefix is None else int(prefix.filled[0])
        self.caches: list[_Cache] = []
        for i, block in enumerate(model.body.blocks):
            shape = (rows, block.kv_heads, places, block.head_dim)
            # Zeros: a place not yet filled is masked, but 0 x NaN would still be NaN.
            keys, values = (torch.zeros(shape, dtype=model.dtype, device=device) for _ in range(2))
            none = keys.new_zeros(block.kv_heads, 0, block.head_dim)
            before = (none, none) if prefix is None else (prefix.caches[i].keys[0], prefix.caches[i].values[0])
            self.caches.append(_Cache(keys, values, *before))

    @staticmethod
    def after(model: PackedLlama, adapter: Tensor | None, prefix: Sequence[int], rows: int, places: int) -> CachedRows:
        """Return rows after these tokens, which may be none."""
        if not prefix:
            return CachedRows(model, adapter, rows, places)
        alone = CachedRows(model, adapter, 1, len(prefix))
        ids = torch.tensor([list(prefix)], device=model.device)
        alone.feed(ids, torch.zeros_like(ids[:, :1]))
        return CachedRows(model, adapter, rows, places, alone)

    def feed(self, tokens: Tensor, wanted: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Append tokens ``[N, q]`` to every row; return what the head reads, ``[N, w, d]``, at ``wanted [N, w]`` of the q columns.

        Padding stands on the right; :meth:`forget` it afterwards. ``lengths`` are the rows' own without it: what rows that hold
        nothing yet begin with in common is then computed once, and padding not at all.
        """
        x, feed = self.begin(tokens, wanted, lengths)
        for i in range(len(self.model.body.blocks)):
            x = self.layer(i, x, feed)
        return self.model.body.norm(x)

    def begin(self, tokens: Tensor, wanted: Tensor, lengths: Sequence[int] | None = None) -> tuple[Tensor, Feed]:
        """Take places for tokens ``[N, q]``; return the first layer's input and what all layers share."""
        q = tokens.shape[1]
        place = self.filled[:, None] + torch.arange(q, device=tokens.device)  # [N, q]
        token = column = None
        if lengths is not None and q > 1 and not bool(self.filled.any()):
            token, column = _alike(tokens, lengths)
        angles = self.model.angles(self.model.body.embedding, self.start + place)
        self.filled = self.filled + q
        turns = {kind: turn_table(*tables) for kind, tables in angles.items()}
        feed = Feed(place, wanted, angles, turns, int(self.filled.max()), token, column)
        return self.model.embedded(feed.once(tokens), feed.once(self.start + place)), feed

    def layer(self, i: int, x: Tensor, feed: Feed) -> Tensor:
        """Keep a layer's keys and values of what goes into it; return its output, the last one's in the wanted columns only."""
        block, cache, scale = self.model.body.blocks[i], self.caches[i], self.model.layout.scale
        n, q = feed.place.shape
        last = i == len(self.caches) - 1
        h = x if block.before is None else block.before(x)
        at = asked_at = feed.turns[block.rotary]
        from_place = feed.place
        if last:
            query, key, value = last_qkv(block, h, feed.kept, self.factors, scale)
            asked_at = turn_table(*(feed.columns(t) for t in feed.angles[block.rotary]))
            from_place, x = feed.place.gather(1, feed.wanted), feed.kept(x)
        else:
            query, key, value = block.split(block.attention_in[0](h, self.factors, scale))
        query, key = block.normed(query, key)
        key, value = (feed.spread(t).reshape(n, q, block.kv_heads, block.head_dim) for t in (key, value))
        row = torch.arange(n, device=x.device)[:, None]
        cache.keys[row, :, feed.place] = turned(key.transpose(1, 2), at).transpose(1, 2)
        cache.values[row, :, feed.place] = value
        query = query if last else feed.spread(query)
        query = query.reshape(n, -1, block.heads, block.head_dim).transpose(1, 2)
        mixed = _attend(block, turned(query, asked_at), cache, feed.reach, from_place, self.start)
        mixed = mixed if last else feed.once(mixed)
        return second_half(block, x, added(block, mixed, self.factors, scale), [x.shape[1]] * len(x), 1, self.factors, scale)

    def part(self, rows: slice) -> CachedRows:
        """Return some of the rows, for a feed of their own: what they take in, these hold too once :meth:`forget` says so."""
        found = copy(self)
        found.filled = self.filled[rows]
        found.caches = [replace(cache, keys=cache.keys[rows], values=cache.values[rows]) for cache in self.caches]
        return found

    def forget(self, filled: Tensor) -> None:
        """Let the rows hold only their first ``filled [N]`` tokens."""
        self.filled = filled

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.filled = self.filled[rows]
        for cache in self.caches:
            cache.keys, cache.values = cache.keys[rows], cache.values[rows]


def _alike(tokens: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return ``token [N, q]`` and ``column [T]`` of :class:`Feed` for rows of these lengths; None where no column can be spared."""
    n, q = tokens.shape
    seen: dict[tuple[int, int], int] = {}
    columns: list[int] = []
    which = []
    for i, (row, length) in enumerate(zip(tokens.tolist(), lengths, strict=True)):
        path, at = [], -1
        for j, token in enumerate(row[:length]):
            found = seen.setdefault((at, token), len(columns))
            if found == len(columns):
                columns.append(i * q + j)
            at = found
            path.append(at)
        which.append(path + [at] * (q - length))  # padding: any token, forgotten later
    if len(columns) == n * q:
        return None, None
    return torch.tensor(which, device=tokens.device), torch.tensor(columns, dtype=torch.long, device=tokens.device)


def _attend(block: Block, query: Tensor, cache: _Cache, reach: int, place: Tensor, start: int) -> Tensor:
    """Return ``[N, w, H·d]`` for queries ``[N, H, w, d]`` at ``place [N, w]`` over prefix and rows."""
    n, heads, w, d = query.shape
    kv_heads, shared = cache.prefix_keys.shape[:2]
    group = heads // kv_heads
    query = query.reshape(n, kv_heads, group * w, d)
    scores = torch.matmul(query, cache.keys[:, :, :reach].transpose(2, 3)).view(n, kv_heads, group, w, reach)
    scores = _capped(scores * block.scaling, block.cap)
    scores = scores.masked_fill_(
        _hidden(torch.arange(reach, device=place.device), place, block.window), torch.finfo(scores.dtype).min
    )
    if shared:
        # One product for all rows: the prefix's keys are the same for everybody.
        flat = query.transpose(0, 1).reshape(kv_heads, -1, d)
        front = torch.bmm(flat, cache.prefix_keys.transpose(1, 2)) * block.scaling  # [Hk, N·g·w, P]
        front = _capped(front, block.cap).view(kv_heads, n, group, w, shared).transpose(0, 1)
        if 0 < block.window < start + reach:
            hidden = _hidden(torch.arange(-start, 0, device=place.device), place, block.window)
            front = front.masked_fill(hidden, torch.finfo(front.dtype).min)
        scores = torch.cat([front, scores], -1)
    share = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    own = share[..., shared:].reshape(n, kv_heads, group * w, reach)
    out = torch.matmul(own, cache.values[:, :, :reach])
    if shared:
        front = share[..., :shared].transpose(0, 1).reshape(kv_heads, -1, shared)
        out = out + torch.bmm(front, cache.prefix_values).view(kv_heads, n, group * w, d).transpose(0, 1)
    return out.view(n, heads, w, d).transpose(1, 2).reshape(n, w, heads * d)


def _capped(scores: Tensor, cap: float) -> Tensor:
    return torch.tanh(scores / cap) * cap if cap else scores


def _hidden(keys: Tensor, place: Tensor, window: int) -> Tensor:
    """Return which keys queries at ``place [N, w]`` do not see, ``[N, 1, 1, w, keys]``: later ones, and those before the window."""
    found = keys > place[..., None]
    if window:
        found |= keys <= place[..., None] - window
    return found[:, None, None]
