"""How surprising each answer token is to a model that is not trained here: one forward, no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undertow.core.layout import Layout
from undertow.data.examples import IGNORE
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import adapted
from undertow.models.padding import pad
from undertow.models.prefix_trie import pack
from undertow.models.token_loss import token_losses


def surprise(
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
    own = layout is None or layout == base.layout
    layout = base.layout if layout is None else layout
    stack = torch.zeros(1, layout.size, device=base.device) if adapter is None else adapter[None].to(base.device)
    # Sorted as a trie sorts, so that its loss terms come row by row; stable, so that equal rows keep their order.
    order = sorted(range(len(rows)), key=lambda i: (*rows[i].prompt, *rows[i].answer[:-1]))
    found: list[tuple[float, ...]] = [()] * len(rows)
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [rows[i] for i in places]
            told = iter((_shared(base, stack, batch) if own else None) or _padded(base, stack, layout, batch))
            for i in places:
                found[i] = tuple(next(told) for _ in rows[i].answer)
    return found


def _shared(base: CausalLM, stack: Tensor, batch: list[Encoded]) -> list[float] | None:
    """Score one batch with its prefixes computed once, or return None where the base cannot."""
    model = base.packed or base.trees
    if model is None:
        return None
    packed = pack([batch], base.pad_id, model.groups(batch)).to(base.device)
    return list(token_losses(model.logits(stack, packed), packed.targets, None).tolist())


def _padded(base: CausalLM, stack: Tensor, layout: Layout, batch: list[Encoded]) -> list[float]:
    ids, attention, labels, tail = pad(batch, base.pad_id)
    ids, attention = ids.to(base.device), attention.to(base.device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    keep = {"logits_to_keep": tail} if base.logits_to_keep else {}
    with adapted(base.model, layout, stack):
        out = base.model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False, **keep)
    logits = out.logits[:, -tail:][:, :-1].flatten(0, 1)
    targets = labels[:, -tail:][:, 1:].flatten().to(logits.device)
    answered = targets != IGNORE
    return list(token_losses(logits[answered], targets[answered], None).tolist())
