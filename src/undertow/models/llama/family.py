"""What today's decoder families have in common, and a short description of how each differs.

A family is read from its transformers module by the names of its parts; what its config or modules say themselves (biases, sizes,
head norms, windows, rotary bases, multipliers, soft caps, layers without positions) is read there. Whether the description is
right is not believed: a base's logits are compared when it is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undertow.models.llama.fused import Activation, AdaptedLinear, Frozen, Half
from undertow.models.llama.norms import Norm

Factors = dict[str, tuple[Tensor, Tensor]]


class Unsupported(Exception):
    """Why a model takes the general path."""


@dataclass(frozen=True)
class Family:
    """The names of a family's parts.

    Attributes:
        body: of the model without its head; then its token embedding, table of learned positions (none: rotary), layers, rotary
            module and last norm.
        attention, mlp: of a layer's halves.
        qkv: what makes queries, keys and values: three linears, or one.
        interleaved: whether that one has each head's q, k and v together.
        o: after the attention.
        inner: gate and up, both in one, or up alone.
        gated: whether there is a gate.
        down: the last linear.
        norms: before and after the attention, before and after the feed-forward; an empty name is none.
        offset: added to a norm's weight.
        late: whether a norm rounds after its weight.
        parallel: the config's field that says whether both halves read the layer's input.
    """

    body: str = "model"
    embedding: str = "embed_tokens"
    positions: str = ""
    layers: str = "layers"
    rotary: str = "rotary_emb"
    norm: str = "norm"
    attention: str = "self_attn"
    mlp: str = "mlp"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    interleaved: bool = False
    o: str = "o_proj"
    inner: tuple[str, ...] = ("gate_proj", "up_proj")
    gated: bool = True
    down: str = "down_proj"
    norms: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")
    offset: float = 0.0
    late: bool = False
    parallel: str = ""


_GEMMA = Family(
    norms=("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    offset=1.0,
    late=True,
)

_OLMO = Family(norms=("", "post_attention_layernorm", "", "post_feedforward_layernorm"), late=True)

#: By transformers' ``model_type``; every other type is tried as Llama's own (Mistral, Qwen 2 and 3, SmolLM 2 and 3, Granite, ...).
FAMILIES = {
    "gemma": Family(offset=1.0, late=True),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "phi3": Family(qkv=("qkv_proj",), inner=("gate_up_proj",)),
    "gpt2": Family(
        body="transformer",
        embedding="wte",
        positions="wpe",
        layers="h",
        norm="ln_f",
        attention="attn",
        qkv=("c_attn",),
        o="c_proj",
        inner=("c_fc",),
        gated=False,
        down="c_proj",
        norms=("ln_1", "", "ln_2", ""),
    ),
    "gpt_neox": Family(
        body="gpt_neox",
        embedding="embed_in",
        norm="final_layer_norm",
        attention="attention",
        qkv=("query_key_value",),
        interleaved=True,
        o="dense",
        inner=("dense_h_to_4h",),
        gated=False,
        down="dense_4h_to_h",
        parallel="use_parallel_residual",
    ),
}

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
}


@dataclass(frozen=True)
class Linears:
    """Linears on the same input, their frozen weights side by side.

    Attributes:
        names: of the modules.
        frozen: their weights.
        columns: the outputs of each, ``(start, stop)``.
        rows: of a module of which this is a part: the rows of its adapter's B.
    """

    names: tuple[str, ...]
    frozen: Frozen
    columns: tuple[tuple[int, int], ...]
    rows: slice | None = None

    @staticmethod
    def of(named: Sequence[tuple[str, Any]]) -> Linears:
        """Lay modules side by side; the model keeps a view: no second copy of the base."""
        if len(named) == 1:
            weight, bias = _weight(named[0][1]), named[0][1].bias
            return Linears((named[0][0],), Frozen(weight, None if bias is None else bias.detach()), ((0, len(weight)),))
        columns: list[tuple[int, int]] = []
        for _, linear in named:
            start = columns[-1][1] if columns else 0
            columns.append((start, start + linear.out_features))
        weight, bias = torch.cat([linear.weight for _, linear in named]).detach(), None
        for (_, linear), (start, stop) in zip(named, columns, strict=True):
            linear.weight.data = weight[start:stop]
        if any(linear.bias is not None for _, linear in named):
            biases = [weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for _, linear in named]
            bias = torch.cat(biases).detach()
        return Linears(tuple(name for name, _ in named), Frozen(weight, bias), tuple(columns))

    def part(self, rows: slice) -> Linears:
        """Return some outputs of a single linear."""
        weight, bias = self.frozen.weight[rows], self.frozen.bias
        return Linears(self.names, Frozen(weight, None if bias is None else bias[rows]), ((0, len(weight)),), rows)

    def __call__(self, x: Tensor, factors: Factors, scale: float, ready: Tensor | None = None) -> Tensor:
        """Return the outputs for ``x [N, T, in]`` with the clients' adapters; ``ready`` is the frozen part where it is known."""
        columns, flat = self.adapters(factors)
        found: Tensor = AdaptedLinear.apply(x, self.frozen, ready, scale, columns, *flat)
        return found

    def adapters(self, factors: Factors) -> tuple[tuple[tuple[int, int], ...], list[Tensor]]:
        """Return the columns of the linears that have adapters, and these adapters' A and B, alternating."""
        named = [(columns, factors[name]) for name, columns in zip(self.names, self.columns, strict=True) if name in factors]
        if self.rows is not None:
            named = [(columns, (a, b[:, self.rows])) for columns, (a, b) in named]
        return tuple(columns for columns, _ in named), [tensor for _, pair in named for tensor in pair]


@dataclass(frozen=True)
class Block:
    """One decoder layer.

    Attributes:
        before, after: norms around the attention.
        attention_in: (qkv) side by side; in the last layer (q), (kv), where they can be parted.
        interleaved: whether a head's q, k and v stand together.
        q_norm, k_norm: norms of queries and keys, of each head or of all together.
        norm_heads: whether each head is normed by itself.
        o: after the attention.
        half: the feed-forward.
        inner, down: its linears.
        heads, kv_heads, head_dim: of the attention.
        scaling, cap: of its scores; a cap of 0 is none.
        window: how many tokens back a query sees, itself included; 0 is all.
        rotary: which of the model's rotary tables, or None: no positions.
        multiplier: of what a half adds.
        parallel: whether both halves read the layer's input.
    """

    before: Norm | None
    after: Norm | None
    attention_in: tuple[Linears, ...]
    interleaved: bool
    q_norm: Norm | None
    k_norm: Norm | None
    norm_heads: bool
    o: Linears
    half: Half
    inner: Linears
    down: Linears
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    cap: float
    window: int
    rotary: str | None
    multiplier: float
    parallel: bool

    @property
    def linear_names(self) -> set[str]:
        """Of the modules that an adapter may sit on."""
        return {name for linears in (*self.attention_in, self.o, self.inner, self.down) for name in linears.names}

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut the first product ``[N, T, ...]`` into queries, keys and values, heads side by side."""
        if self.interleaved:
            q, k, v = qkv.view(*qkv.shape[:-1], self.heads, 3, self.head_dim).unbind(-2)
            return q.flatten(-2), k.flatten(-2), v.flatten(-2)
        q, k, v = qkv.split([self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim], -1)
        return q, k, v

    def split_kv(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Cut keys and values."""
        k, v = kv.split(self.kv_heads * self.head_dim, -1)
        return k, v

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys after their norms, as they came: ``[N, T, H·d]``."""
        if self.q_norm is None or self.k_norm is None:
            return q, k
        if not self.norm_heads:
            return self.q_norm(q), self.k_norm(k)
        heads = (t.reshape(*t.shape[:-1], -1, self.head_dim) for t in (q, k))
        return tuple(norm(t).flatten(-2) for norm, t in zip((self.q_norm, self.k_norm), heads, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Body:
    """A model as plain tensors, without its head.

    Attributes:
        embedding: ``[V, d]``.
        multiplier: of the embedded tokens.
        positions: learned, ``[P, d]``, or None.
        rotary: the module that makes cosines and sines, or None.
        by_kind: whether it has tables of its own for kinds of layers.
        norm: the last one.
        blocks: the layers.
    """

    embedding: Tensor
    multiplier: float
    positions: Tensor | None
    rotary: Any
    by_kind: bool
    norm: Norm
    blocks: list[Block]


def read_body(model: Any) -> Body:
    """Read a transformers model by its family's description.

    Raises:
        Unsupported: its parts are not where the description says, or of another kind.
    """
    config = model.config
    family = FAMILIES.get(getattr(config, "model_type", ""), Family())
    body = getattr(model, family.body, None)
    named: list[Any] = [getattr(body, name, None) for name in (family.embedding, family.layers, family.norm)]
    if any(part is None for part in named) or not len(named[1]):
        raise Unsupported("it is not built like Llama or another known family")
    embedding, layers, last_norm = named
    rotary = None if family.positions else getattr(body, family.rotary, None)
    if rotary is None and not family.positions:
        raise Unsupported("its positions are not rotary")
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise Unsupported("it is spread over several devices")
    by_kind = rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters
    norm = _norm(last_norm, family)
    blocks = [_block(model, family, i, layer, i == len(layers) - 1, by_kind) for i, layer in enumerate(layers)]
    # As transformers multiplies: by a number of the weights' type.
    factor = getattr(embedding, "embed_scale", None)
    multiplier = (
        float(factor.to(embedding.weight.dtype)) if isinstance(factor, Tensor) else _number(config, "embedding_multiplier", 1.0)
    )
    positions = getattr(body, family.positions).weight.detach() if family.positions else None
    return Body(embedding.weight.detach(), multiplier, positions, rotary, by_kind, norm, blocks)


def layer_modules(model: Any) -> Any:
    """Return the transformers layers of a model that :func:`read_body` can read, a module list."""
    family = FAMILIES.get(getattr(model.config, "model_type", ""), Family())
    return getattr(getattr(model, family.body), family.layers)


def _block(model: Any, family: Family, index: int, layer: Any, last: bool, by_kind: bool) -> Block:
    config = model.config
    attention: Any = getattr(layer, family.attention, None)
    mlp: Any = getattr(layer, family.mlp, None)
    _only_known_parts(family, layer, attention, mlp)
    name = f"{family.body}.{family.layers}.{index}"
    head_dim = getattr(attention, "head_dim", None) or attention.head_size
    heads = config.num_attention_heads
    # Not from the config: GPT-NeoX takes any field and has as many as queries.
    outputs = sum(len(_weight(getattr(attention, n))) for n in family.qkv)
    kv_heads = (outputs // head_dim - heads) // 2
    before, after, before_mlp, after_mlp = (_norm(getattr(layer, n), family) if n else None for n in family.norms)
    q_norm, k_norm = (_norm(getattr(attention, n), family) if hasattr(attention, n) else None for n in ("q_norm", "k_norm"))
    inner, down = (
        Linears.of([(f"{name}.{family.mlp}.{n}", getattr(mlp, n)) for n in names]) for names in (family.inner, (family.down,))
    )
    multiplier = _number(config, "residual_multiplier", 1.0)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[index] if kinds else "full_attention" if not getattr(config, "sliding_window", None) else "sliding_attention"
    if kind not in ("full_attention", "sliding_attention"):
        raise Unsupported(f"it has layers of kind {kind}")
    return Block(
        before=before,
        after=after,
        attention_in=_attention_in(name, family, attention, heads * head_dim, last),
        interleaved=family.interleaved,
        q_norm=q_norm,
        k_norm=k_norm,
        norm_heads=q_norm is not None and len(q_norm.weight) == head_dim,
        o=Linears.of([(f"{name}.{family.attention}.{family.o}", getattr(attention, family.o))]),
        half=Half(before_mlp, inner.frozen, _activation(config, family), down.frozen, after_mlp, multiplier),
        inner=inner,
        down=down,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scaling=float(attention.scaling),
        cap=_number(config, "attn_logit_softcapping", 0.0),
        window=int(config.sliding_window) if kind == "sliding_attention" else 0,
        rotary=None if family.positions or not getattr(attention, "use_rope", True) else kind if by_kind else "",
        multiplier=multiplier,
        parallel=bool(family.parallel and getattr(config, family.parallel)),
    )


def _attention_in(name: str, family: Family, attention: Any, width: int, last: bool) -> tuple[Linears, ...]:
    named = [(f"{name}.{family.attention}.{n}", getattr(attention, n)) for n in family.qkv]
    if not last or family.interleaved:
        return (Linears.of(named),)
    if len(named) > 1:
        return Linears.of(named[:1]), Linears.of(named[1:])
    whole = Linears.of(named)
    return whole.part(slice(0, width)), whole.part(slice(width, None))


def _only_known_parts(family: Family, layer: Any, attention: Any, mlp: Any) -> None:
    linears = [(attention, (*family.qkv, family.o)), (mlp, (*family.inner, family.down))]
    for half, names in linears:
        if any(type(part) is not nn.Linear and type(part).__name__ != "Conv1D" for part in (getattr(half, n, None) for n in names)):
            raise Unsupported(f"its layers are not made of plain linears {', '.join(names)}")
    norms = {name for name in family.norms if name}
    missing = sorted(name for name in norms if not hasattr(layer, name))
    if missing:
        raise Unsupported(f"its layers have no {', '.join(missing)}")
    known = norms | {family.attention, family.mlp}
    extra = {name for name, part in layer.named_children() if not isinstance(part, nn.Dropout)} - known
    if extra:
        raise Unsupported(f"its layers also have {', '.join(sorted(extra))}")


def _norm(module: Any, family: Family) -> Norm:
    found = Norm.of(module, family.offset, family.late)
    if found is None:
        raise Unsupported(f"{type(module).__name__} is no RMS or layer norm with an epsilon")
    return found


def _activation(config: Any, family: Family) -> Activation:
    names = ("hidden_activation", "hidden_act", "activation_function")
    named = next((value for value in (getattr(config, name, None) for name in names) if value), "silu")
    if named not in _ACTIVATIONS:
        raise Unsupported(f"its activation is {named}")
    return Activation(_ACTIVATIONS[named], family.gated)


def _weight(linear: Any) -> Tensor:
    """Return a weight ``[out, in]``; GPT-2's Conv1D has it transposed."""
    weight: Tensor = linear.weight.detach()
    return weight if isinstance(linear, nn.Linear) else weight.t()


def _number(config: Any, name: str, default: float) -> float:
    found = getattr(config, name, None)
    return default if found is None else float(found)
