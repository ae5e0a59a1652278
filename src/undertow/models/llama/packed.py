"""The fast forward of today's decoder families: stacked adapters over packed token tries, frozen weights, no modules.

What it leaves out against the transformers model is work whose result nobody uses: repeated prefixes, the last
layer and the head outside the loss positions, and the first layer's frozen products of repeated tokens. What it
computes is checked against the transformers model when a base is loaded (``check.py``); a model that differs takes the
general path.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from undertow.core.layout import Layout
from undertow.data.template import Encoded
from undertow.models.head import Head
from undertow.models.llama.attention import LONGEST, Rotate, ShortAttention, Turn, capped_attention, turn_table
from undertow.models.llama.family import Block, Factors, Unsupported, read_body
from undertow.models.llama.fused import FeedForward
from undertow.models.prefix_trie import Packed, cheapest_cut
from undertow.models.token_loss import TokenLoss

#: How much longer a product within attention takes than one with the weights; keys behind a query are half left out.
_ATTENTION_COST = 0.5


class PackedLlama:
    """A model of a known family as plain tensors.

    Args:
        model: the transformers model; its structure is read by module names.
        layout: of the adapters.

    Raises:
        Unsupported: the structure is no known family's.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        head = Head.of(model)
        if head is None:
            raise Unsupported("its output head is no plain linear")
        self.body, self.head, self.layout = read_body(model), head, layout

    def for_layout(self, layout: Layout) -> PackedLlama | None:
        """Return the same weights for adapters of a layout; None where ranks differ, or one is on a module outside the layers."""
        if layout == self.layout:
            return self
        linears = {name for block in self.body.blocks for name in block.linear_names}
        ranks = {slot.shape[0] for slot in layout.slots if slot.name.endswith(".lora_A")}
        if len(ranks) > 1 or not all(slot.name.rpartition(".lora_")[0] in linears for slot in layout.slots):
            return None
        found = copy.copy(self)
        found.layout = layout
        return found

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.body.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.body.embedding.dtype

    def groups(self, rows: Sequence[Encoded]) -> int:
        """Return how many tries to cut a client's batch into."""
        block = self.body.blocks[0]
        per_token = sum(linears.frozen.weight.numel() for linears in (*block.attention_in, block.o, block.inner, block.down))
        per_pair = 2 * block.heads * block.head_dim * _ATTENTION_COST
        return cheapest_cut(rows, per_token, per_pair)

    def losses(self, stack: Tensor, packed: Packed, *, recompute: bool = False, loss: TokenLoss | None = None) -> Tensor:
        """Return each client's mean loss over its answer tokens, ``[K]``; gradients flow to ``stack [K, D]``.

        ``loss`` makes a token's loss of its cross-entropy; None leaves it. With ``recompute`` only the layers' inputs are kept for
        the backward, which computes each layer once more (activation checkpointing, Chen et al. 2016): a third more time, the
        same numbers.
        """
        each = self.head.losses(self.states(stack, packed, recompute=recompute), packed.targets, loss)
        return torch.zeros(stack.shape[0], dtype=each.dtype, device=stack.device).index_add(
            0, packed.clients, each * packed.weights.to(each.dtype)
        )

    def logits(self, stack: Tensor, packed: Packed, *, recompute: bool = False) -> Tensor:
        """Return the logits of every loss term, ``[E, V]``."""
        return self.head.logits(self.states(stack, packed, recompute=recompute))

    def states(self, stack: Tensor, packed: Packed, *, recompute: bool = False) -> Tensor:
        """Return what the head reads at every loss term, ``[E, d]``."""
        return self._hidden(stack, packed, recompute).flatten(0, 1)[packed.rows]

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the first layer's input ``[..., d]``."""
        x = self.body.embedding[tokens]
        if self.body.multiplier != 1.0:
            x = x * self.body.multiplier
        return x if self.body.positions is None else x + self.body.positions[positions]

    def angles(self, x: Tensor, positions: Tensor) -> dict[str | None, tuple[Tensor, Tensor]]:
        """Return cosines and sines ``[N, T, r/2]`` by the kind of layer that turns by them; those of layers without have r = 0."""
        found: dict[str | None, tuple[Tensor, Tensor]] = {}
        for kind in {block.rotary for block in self.body.blocks}:
            if kind is None:
                found[kind] = (x.new_empty(*positions.shape, 0), x.new_empty(*positions.shape, 0))
                continue
            cos, sin = self.body.rotary(x, positions, kind) if self.body.by_kind else self.body.rotary(x, positions)
            half = cos.shape[-1] // 2
            found[kind] = (cos[..., :half].to(x.dtype), sin[..., :half].to(x.dtype))
        return found

    def start(self, stack: Tensor, packed: Packed) -> tuple[Tensor, Trip, Tensor | None]:
        """Return the first layer's input, what all layers share, and the frozen half of its first product for each word."""
        blocks = self.body.blocks
        table = place = None
        if self.body.positions is None:
            unique, place = packed.tokens.unique(return_inverse=True)
            vectors = self.embedded(unique, unique)  # [U, d]
            x = vectors[place]  # [N, T, d]
            if len(blocks) > 1:  # it depends on the token alone
                first = blocks[0]
                table = first.attention_in[0].frozen(vectors if first.before is None else first.before(vectors))
        else:
            x = self.embedded(packed.tokens, packed.positions)
        angles = self.angles(x, packed.positions)
        trip = Trip(
            packed,
            place,
            stack.shape[0],
            {name: (a, b) for name, a, b in self.layout.pairs(stack)},
            self.layout.scale,
            angles,
            {kind: turn_table(*tables) for kind, tables in angles.items()},
            _masks(blocks, packed, None, x.dtype),
            _masks(blocks[-1:], packed, packed.nodes, x.dtype),
        )
        return x, trip, table

    def layer(self, index: int, x: Tensor, trip: Trip, table: Tensor | None) -> Tensor:
        """Return a layer's output, the last one's at the loss nodes only; arguments as :meth:`start` gives them."""
        last = index == len(self.body.blocks) - 1
        return (_last_layer if last else _layer)(self.body.blocks[index], x, trip, table)

    def _hidden(self, stack: Tensor, packed: Packed, recompute: bool) -> Tensor:
        """Return the last hidden state at the loss nodes, ``[K*G, L, d]``."""
        x, trip, table = self.start(stack, packed)
        for i in range(len(self.body.blocks)):
            given = table if i == 0 else None
            if recompute:
                x = checkpoint(self.layer, i, x, trip, given, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self.layer(i, x, trip, given)
        return self.body.norm(x)


@dataclass(frozen=True)
class Trip:
    """What all layers of one forward share; tables by kind of layer, masks by window, those of the last layer's queries apart."""

    packed: Packed
    place: Tensor | None
    clients: int
    factors: Factors
    scale: float
    angles: dict[str | None, tuple[Tensor, Tensor]]
    turns: dict[str | None, Turn]
    masks: dict[int, Tensor]
    last_masks: dict[int, Tensor]


def _layer(block: Block, x: Tensor, trip: Trip, table: Tensor | None) -> Tensor:
    h = x if block.before is None else block.before(x)
    ready = None if table is None else table[trip.place]
    q, k, v = block.split(block.attention_in[0](h, trip.factors, trip.scale, ready))
    at = trip.turns[block.rotary]
    more = added(block, _attend(block, q, k, v, at, at, trip.masks[block.window]), trip.factors, trip.scale)
    return second_half(block, x, more, trip.packed.lengths, trip.clients, trip.factors, trip.scale)


def _last_layer(block: Block, x: Tensor, trip: Trip, table: Tensor | None) -> Tensor:
    """Keys and values everywhere, the rest only at the loss nodes."""
    h = x if block.before is None else block.before(x)
    index = trip.packed.nodes[..., None]

    def kept(t: Tensor) -> Tensor:
        return t.gather(1, index.expand(-1, -1, t.shape[-1]))

    q, k, v = last_qkv(block, h, kept, trip.factors, trip.scale)
    at = turn_table(*(kept(t) for t in trip.angles[block.rotary]))
    mixed = _attend(block, q, k, v, at, trip.turns[block.rotary], trip.last_masks[block.window])
    more = added(block, mixed, trip.factors, trip.scale)
    return second_half(block, kept(x), more, trip.packed.kept, trip.clients, trip.factors, trip.scale)


def last_qkv(
    block: Block, h: Tensor, kept: Callable[[Tensor], Tensor], factors: Factors, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries of the nodes that ``kept`` picks, and keys and values of all, each ``[N, ..., H·d]``."""
    if len(block.attention_in) == 1:
        q, k, v = block.split(block.attention_in[0](h, factors, scale))
        return kept(q), k, v
    only_q, only_kv = block.attention_in
    k, v = block.split_kv(only_kv(h, factors, scale))
    return only_q(kept(h), factors, scale), k, v


def added(block: Block, mixed: Tensor, factors: Factors, scale: float) -> Tensor:
    """Return what the attention adds to a layer's input."""
    found = block.o(mixed, factors, scale)
    if block.after is not None:
        found = block.after(found)
    return found if block.multiplier == 1.0 else found * block.multiplier


def second_half(
    block: Block, x: Tensor, more: Tensor, lengths: Sequence[int], clients: int, factors: Factors, scale: float
) -> Tensor:
    """Return a layer's output ``[N, T, d]`` from its input and what attention adds to it; arguments as of :class:`FeedForward`."""
    (first, ours), (second, theirs) = block.inner.adapters(factors), block.down.adapters(factors)
    start = x if block.parallel else x + more
    found: Tensor = FeedForward.apply(start, lengths, clients, block.half, scale, (first, second), *ours, *theirs)
    return found + more if block.parallel else found


def _masks(blocks: Sequence[Block], packed: Packed, nodes: Tensor | None, dtype: torch.dtype) -> dict[int, Tensor]:
    """Return the additive mask of each window; one that no sample outgrows is none."""
    longest = int(packed.positions.max()) + 1
    whole = _additive(packed.visible(nodes), dtype)
    windows = {block.window for block in blocks}
    return {w: _additive(packed.visible(nodes, w), dtype) if 0 < w < longest else whole for w in windows}


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(1, dtype=dtype, device=visible.device).where(visible, torch.finfo(dtype).min)


def _attend(block: Block, q: Tensor, k: Tensor, v: Tensor, q_at: Turn, k_at: Turn, mask: Tensor) -> Tensor:
    """Return attention's output ``[N, queries, heads·d]`` under an additive mask ``[N, 1, queries, T]``."""
    n, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    q, k = block.normed(q, k)
    if not block.cap and q.device.type == "cpu" and q.dtype != torch.float64 and keys <= LONGEST:
        found: Tensor = ShortAttention.apply(
            q, k, v, mask, q_at, k_at, (block.heads, block.kv_heads), block.scaling, queries == keys and q_at is k_at
        )
        return found
    q = Rotate.apply(q.view(n, queries, block.heads, block.head_dim).transpose(1, 2), *q_at)
    k = Rotate.apply(k.view(n, keys, block.kv_heads, block.head_dim).transpose(1, 2), *k_at)
    v = v.view(n, keys, block.kv_heads, block.head_dim).transpose(1, 2)
    if block.cap:
        out = capped_attention(q, k, v, mask, block.scaling, block.cap)
    else:
        grouped = block.heads != block.kv_heads
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=block.scaling, enable_gqa=grouped)
    return out.transpose(1, 2).reshape(n, queries, -1)
