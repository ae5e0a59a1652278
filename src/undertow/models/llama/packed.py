"""The fast forward of Llama-family models: stacked adapters over packed token tries, frozen weights, no modules.

What it leaves out against the transformers model is work whose result nobody uses: repeated prefixes, the last
layer and the head outside the loss positions, and the first layer's frozen products of repeated tokens. What it
computes is checked against the transformers model when a base is loaded; a model that differs takes the general
path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.data.template import Encoded
from undertow.models.head import Head
from undertow.models.llama.attention import LONGEST, Rotate, ShortAttention, Turn, turn_table
from undertow.models.llama.fused import AdaptedLinear, FeedForward, Frozen, FrozenNorm
from undertow.models.prefix_trie import Packed, cheapest_cut, pack
from undertow.models.token_loss import TokenLoss

#: How much longer a product within attention takes than one with the weights; keys behind a query are half left out.
_ATTENTION_COST = 0.5


Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Linears:
    """Linears on the same input, their frozen weights side by side."""

    names: tuple[str, ...]
    frozen: Frozen
    columns: tuple[tuple[int, int], ...]

    @staticmethod
    def of(named: Sequence[tuple[str, Any]]) -> _Linears:
        columns: list[tuple[int, int]] = []
        for _, linear in named:
            start = columns[-1][1] if columns else 0
            columns.append((start, start + linear.out_features))
        weight, bias = named[0][1].weight.detach(), None
        if len(named) > 1:
            weight = torch.cat([linear.weight for _, linear in named]).detach()
            for (_, linear), (start, stop) in zip(named, columns, strict=True):
                linear.weight.data = weight[start:stop]  # the model keeps a view: no second copy of the base
        if any(linear.bias is not None for _, linear in named):
            biases = [weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for _, linear in named]
            bias = torch.cat(biases).detach()
        return _Linears(tuple(name for name, _ in named), Frozen(weight, bias), tuple(columns))

    def __call__(self, x: Tensor, factors: Factors, scale: float, ready: Tensor | None = None) -> Tensor:
        columns, flat = self.adapters(factors)
        found: Tensor = AdaptedLinear.apply(x, self.frozen, ready, scale, columns, *flat)
        return found

    def adapters(self, factors: Factors) -> tuple[tuple[tuple[int, int], ...], list[Tensor]]:
        """Return the columns of the linears that have adapters, and these adapters' A and B, alternating."""
        named = [(columns, factors[name]) for name, columns in zip(self.names, self.columns, strict=True) if name in factors]
        return tuple(columns for columns, _ in named), [tensor for _, pair in named for tensor in pair]


@dataclass(frozen=True)
class _Block:
    """One decoder layer; ``attention_in`` is (qkv) side by side, or in the last layer (q), (kv)."""

    attention_norm: tuple[Tensor, float]
    attention_in: tuple[_Linears, ...]
    q_norm: tuple[Tensor, float] | None
    k_norm: tuple[Tensor, float] | None
    o: _Linears
    mlp_norm: tuple[Tensor, float]
    gate_up: _Linears
    down: _Linears
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float

    @property
    def qkv_sizes(self) -> list[int]:
        """Columns of q, k and v."""
        return [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]


class PackedLlama:
    """A Llama-family model as plain tensors.

    Args:
        model: the transformers model; its structure is read by module names.
        layout: of the adapters.

    Raises:
        Unsupported: the structure is not the Llama family's.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        reason, head = _why_not(model), Head.of(model)
        if reason or head is None:
            raise Unsupported(reason or "its output head is no plain linear")
        self.layout = layout
        inner = model.model
        self.embedding: Tensor = inner.embed_tokens.weight
        self.rotary = inner.rotary_emb
        self.norm = _norm(inner.norm)
        self.head = head
        last = len(inner.layers) - 1
        self.blocks = [_block(f"model.layers.{i}", layer, i == last) for i, layer in enumerate(inner.layers)]

    def groups(self, rows: Sequence[Encoded]) -> int:
        """Return how many tries to cut a client's batch into."""
        block = self.blocks[0]
        per_token = sum(linears.frozen.weight.numel() for linears in (*block.attention_in, block.o, block.gate_up, block.down))
        per_pair = 2 * block.heads * block.head_dim * _ATTENTION_COST
        return cheapest_cut(rows, per_token, per_pair)

    def losses(self, stack: Tensor, packed: Packed, *, recompute: bool = False, loss: TokenLoss | None = None) -> Tensor:
        """Return each client's mean loss over its answer tokens, ``[K]``; gradients flow to ``stack [K, D]``.

        ``loss`` makes a token's loss of its cross-entropy; None leaves it. With ``recompute`` only the layers' inputs are kept for the backward, which computes each layer once more
        (activation checkpointing, Chen et al. 2016): a third more time, the same numbers.
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

    def _hidden(self, stack: Tensor, packed: Packed, recompute: bool) -> Tensor:
        """Return the last hidden state at the loss nodes, ``[K*G, L, d]``."""
        unique, place = packed.tokens.unique(return_inverse=True)
        vectors = self.embedding[unique]  # [U, d]
        x = vectors[place]  # [N, T, d]
        cos, sin = self.rotary(x, packed.positions)
        half = cos.shape[-1] // 2
        trip = _Trip(
            packed,
            place,
            stack.shape[0],
            {name: (a, b) for name, a, b in self.layout.pairs(stack)},
            self.layout.scale,
            (cos[..., :half], sin[..., :half]),
            turn_table(cos[..., :half], sin[..., :half]),
            _additive(packed.visible(), x.dtype),
        )
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            table = None
            if i == 0 and i < last:  # the frozen half of the first layer depends on the token alone
                table = block.attention_in[0].frozen(apply_norm(vectors, block.attention_norm))
            layer = self._layer if i < last else self._last_layer
            if recompute:
                x = checkpoint(layer, block, x, trip, table, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(block, x, trip, table)
        return apply_norm(x, self.norm)

    def _layer(self, block: _Block, x: Tensor, trip: _Trip, table: Tensor | None) -> Tensor:
        h = apply_norm(x, block.attention_norm)
        ready = None if table is None else table[trip.place]
        q, k, v = block.attention_in[0](h, trip.factors, trip.scale, ready).split(block.qkv_sizes, -1)
        x = x + block.o(_attend(block, q, k, v, trip.turns, trip.turns, trip.mask), trip.factors, trip.scale)
        return feed_forward(block, x, trip.packed.lengths, trip.clients, trip.factors, trip.scale)

    def _last_layer(self, block: _Block, x: Tensor, trip: _Trip, table: Tensor | None) -> Tensor:
        """Keys and values everywhere, the rest only at the loss nodes."""
        h = apply_norm(x, block.attention_norm)
        index = trip.packed.nodes[..., None]
        only_q, only_kv = block.attention_in
        k, v = only_kv(h, trip.factors, trip.scale).split(block.qkv_sizes[1:], -1)
        q = only_q(h.gather(1, index.expand(-1, -1, h.shape[-1])), trip.factors, trip.scale)
        at = turn_table(*(t.gather(1, index.expand(-1, -1, t.shape[-1])) for t in trip.angles))
        mixed = _attend(block, q, k, v, at, trip.turns, _additive(trip.packed.visible(trip.packed.nodes), x.dtype))
        x = x.gather(1, index.expand(-1, -1, x.shape[-1]))
        x = x + block.o(mixed, trip.factors, trip.scale)
        return feed_forward(block, x, trip.packed.kept, trip.clients, trip.factors, trip.scale)


@dataclass(frozen=True)
class _Trip:
    """What all layers of one forward share."""

    packed: Packed
    place: Tensor
    clients: int
    factors: Factors
    scale: float
    angles: tuple[Tensor, Tensor]
    turns: Turn
    mask: Tensor


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(1, dtype=dtype, device=visible.device).where(visible, torch.finfo(dtype).min)


class Unsupported(Exception):
    """Why a model takes the general path."""


def packed_llama(model: Any, layout: Layout, pad_id: int) -> PackedLlama:
    """Return the packed form of a model, after comparing it with the transformers model.

    Raises:
        Unsupported: not of the Llama family, or its logits differ.
    """
    if model.dtype == torch.float64:
        # transformers norms in float32 even then, once per repeat of a shared prefix; only repeating it rounds alike.
        raise Unsupported("float64 is for comparing to the last digits")
    made = PackedLlama(model, layout)
    # bfloat16 has three significant digits; a wrong rope or a missing bias is off by far more.
    _check(made, model, pad_id, 1e-4 if model.dtype == torch.float32 else 3e-2)
    return made


def _check(packed_model: PackedLlama, model: Any, pad_id: int, tolerance: float) -> None:
    """Compare logits with the transformers model on random tokens and a random adapter."""
    from undertow.models.lora import adapted

    draw = rng(0, "packed model check")
    vocabulary, device = packed_model.embedding.shape[0], packed_model.embedding.device
    stem = tuple(draw.integers(0, vocabulary, 5).tolist())
    rows = [
        Encoded((*stem, *draw.integers(0, vocabulary, n).tolist()), tuple(draw.integers(0, vocabulary, m).tolist()))
        for n, m in ((1, 2), (4, 1), (3, 3))
    ]
    rows.sort(key=lambda row: (*row.prompt, *row.answer))  # the order in which a trie lists its losses
    values = draw.standard_normal((1, packed_model.layout.size))
    stack = 0.02 * torch.tensor(values, dtype=torch.float32, device=device)
    theirs = []
    with torch.no_grad():
        ours = packed_model.logits(stack, pack([rows], pad_id).to(device)).float()
        for row in rows:
            with adapted(model, packed_model.layout, stack):
                logits = model(input_ids=torch.tensor([[*row.prompt, *row.answer]], device=device), use_cache=False).logits
            theirs.append(logits[0, len(row.prompt) - 1 : -1].float())
    expected = torch.cat(theirs)
    difference = float((ours - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm())
    if not difference <= tolerance:
        raise Unsupported(f"its logits differ from the packed forward's (by {difference:.1e}, relative)")


def _why_not(model: Any) -> str | None:
    """Return why a model is not of the Llama family as this file computes it, or None."""
    inner = getattr(model, "model", None)
    layers = getattr(inner, "layers", None)
    if inner is None or not layers or not all(hasattr(inner, n) for n in ("embed_tokens", "rotary_emb", "norm")):
        return "it is not built like Llama"
    config = model.config
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "it is spread over several devices"
    for layer in layers:
        attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
        parts = [getattr(attention, f"{n}_proj", None) for n in "qkvo"] + [
            getattr(mlp, f"{n}_proj", None) for n in ("gate", "up", "down")
        ]
        if any(type(part) is not nn.Linear for part in parts):
            return "its layers are not plain q, k, v, o, gate, up and down linears"
        extra = {name for name, _ in layer.named_children()} - {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        if extra:
            return f"its layers also have {', '.join(sorted(extra))}"
        if not isinstance(getattr(layer.input_layernorm, "variance_epsilon", None), float):
            return "its norm is not an RMS norm"
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention"} or getattr(config, "sliding_window", None):
        return "it uses sliding-window attention"
    return None


def _block(name: str, layer: Any, last: bool) -> _Block:
    attention, mlp = layer.self_attn, layer.mlp
    q, k, v = ((f"{name}.self_attn.{n}_proj", getattr(attention, f"{n}_proj")) for n in "qkv")
    head_dim = attention.head_dim
    return _Block(
        attention_norm=_norm(layer.input_layernorm),
        attention_in=(_Linears.of([q]), _Linears.of([k, v])) if last else (_Linears.of([q, k, v]),),
        q_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        k_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        o=_Linears.of([(f"{name}.self_attn.o_proj", attention.o_proj)]),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_Linears.of([(f"{name}.mlp.{n}_proj", getattr(mlp, f"{n}_proj")) for n in ("gate", "up")]),
        down=_Linears.of([(f"{name}.mlp.down_proj", mlp.down_proj)]),
        heads=q[1].out_features // head_dim,
        kv_heads=k[1].out_features // head_dim,
        head_dim=head_dim,
        scaling=attention.scaling,
    )


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight.detach(), float(module.variance_epsilon)


def apply_norm(x: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    """Return the RMS norm of ``x`` by (weight, eps)."""
    found: Tensor = FrozenNorm.apply(x, *norm)
    return found


def feed_forward(block: _Block, x: Tensor, lengths: Sequence[int], clients: int, factors: Factors, scale: float) -> Tensor:
    """Return ``x [N, T, d]`` after the layer's second half; arguments as of :class:`FeedForward`."""
    (first, ours), (second, theirs) = block.gate_up.adapters(factors), block.down.adapters(factors)
    found: Tensor = FeedForward.apply(
        x, lengths, clients, block.mlp_norm, block.gate_up.frozen, block.down.frozen, scale, (first, second), *ours, *theirs
    )
    return found


def _attend(block: _Block, q: Tensor, k: Tensor, v: Tensor, q_at: Turn, k_at: Turn, mask: Tensor) -> Tensor:
    """Return attention's output ``[N, queries, heads·d]`` under an additive mask ``[N, 1, queries, T]``."""
    n, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    if block.q_norm is None and q.device.type == "cpu" and q.dtype != torch.float64 and keys <= LONGEST:
        found: Tensor = ShortAttention.apply(
            q, k, v, mask, q_at, k_at, (block.heads, block.kv_heads), block.scaling, queries == keys and q_at is k_at
        )
        return found
    q = q.view(n, queries, block.heads, block.head_dim)
    k = k.view(n, keys, block.kv_heads, block.head_dim)
    v = v.view(n, keys, block.kv_heads, block.head_dim)
    if block.q_norm is not None and block.k_norm is not None:
        q, k = apply_norm(q, block.q_norm), apply_norm(k, block.k_norm)
    out = nn.functional.scaled_dot_product_attention(
        Rotate.apply(q.transpose(1, 2), *q_at),
        Rotate.apply(k.transpose(1, 2), *k_at),
        v.transpose(1, 2),
        attn_mask=mask,
        scale=block.scaling,
        enable_gqa=block.heads != block.kv_heads,
    )
    return out.transpose(1, 2).reshape(n, queries, -1)
