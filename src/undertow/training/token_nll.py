"""How surprising each answer token is to a model that is not trained here: one forward, no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undertow.core.layout import Layout
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM
from undertow.models.general import TreeModel, answered, states_at
from undertow.models.llama.packed import PackedLlama
from undertow.models.lora import adapted
from undertow.models.padding import pad
from undertow.models.prefix_trie import pack


def token_nll(
    base: CausalLM,
    rows: Sequence[Encoded],
    adapter: Tensor | None = None,
    layout: Layout | None = None,
    *,
    batch_size: int = 32,
) -> list[tuple[float, ...]]:
    """Return -log p of every answer token of every row, in nats, given the prompt and the answer before it.

    Args:
        base: the frozen model.
        rows: tokenised samples; their weights are not looked at.
        adapter: ``[D]``; None = the base alone.
        layout: of the adapter, where it is not the base's own.
        batch_size: rows side by side.
    """
    layout = base.layout if layout is None else layout
    trees = base.trees if layout == base.layout else None
    shared = trees if base.packed is None else base.packed.for_layout(layout)
    stack = torch.zeros(1, layout.size, device=base.device) if adapter is None else adapter[None].to(base.device)
    # Sorted as a trie sorts, so that its loss terms come row by row; stable, so that equal rows keep their order.
    order = sorted(range(len(rows)), key=lambda i: (*rows[i].prompt, *rows[i].answer[:-1]))
    found: list[tuple[float, ...]] = [()] * len(rows)
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [rows[i] for i in places]
            told = iter(_padded(base, stack, layout, batch) if shared is None else _shared(base, shared, stack, batch))
            for i in places:
                found[i] = tuple(next(told) for _ in rows[i].answer)
    return found


def _shared(base: CausalLM, model: PackedLlama | TreeModel, stack: Tensor, batch: list[Encoded]) -> list[float]:
    """Score one batch with its prefixes computed once."""
    packed = pack([batch], base.pad_id, model.groups(batch)).to(base.device)
    return list(model.head.losses(model.states(stack, packed), packed.targets).tolist())


def _padded(base: CausalLM, stack: Tensor, layout: Layout, batch: list[Encoded]) -> list[float]:
    ids, attention, labels = (tensor.to(base.device) for tensor in pad(batch, base.pad_id)[:3])
    places, targets = answered(labels)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    with adapted(base.model, layout, stack):
        inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "use_cache": False}
        states, _ = states_at(base.model, base.head, places, **inputs)
    return list(base.head.losses(states, targets).tolist())
