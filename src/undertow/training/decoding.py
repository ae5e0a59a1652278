"""Greedy generation in batches, the same outputs as transformers' ``generate(do_sample=False)``."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from undertow.layout import Layout
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import adapted

#: Shared tokens from which one more forward for the prefix pays.
_WORTH_SHARING = 8


@torch.inference_mode()
def generate(
    base: CausalLM,
    adapter: Tensor | None,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    layout: Layout | None = None,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, without the end token.

    Args:
        base: the frozen model.
        adapter: ``[D]``, or None for the base alone.
        prompts: token ids.
        max_new_tokens: longest continuation.
        batch_size: prompts side by side.
        layout: of the adapter, if it is not the base's own.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # equal lengths together: little padding
    outputs: list[list[int]] = [[] for _ in prompts]
    hung = nullcontext() if adapter is None else adapted(base.model, layout or base.layout, adapter[None].to(base.device))
    with hung:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for i, ids in zip(chosen, _greedy(base, [prompts[i] for i in chosen], max_new_tokens), strict=True):
                outputs[i] = ids
    return outputs


def _greedy(base: CausalLM, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    shared = _common_prefix(prompts) if base.packed is not None else 0
    cache = None
    if shared >= _WORTH_SHARING and len(prompts) > 1:
        start = torch.tensor([prompts[0][:shared]], device=base.device)
        cache = base.model(input_ids=start, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(prompts))
    else:
        shared = 0
    tails = [p[shared:] for p in prompts]
    length = max(len(p) for p in tails)
    ids = torch.tensor([[base.pad_id] * (length - len(p)) + p for p in tails], device=base.device)
    mask = torch.tensor([[1] * shared + [0] * (length - len(p)) + [1] * len(p) for p in tails], device=base.device)
    ends = torch.tensor(base.end_ids, device=base.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
    keep = {"logits_to_keep": 1} if base.logits_to_keep else {}
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=base.device)
    made = []
    for _ in range(max_new_tokens):
        out = base.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **keep)
        cache = out.past_key_values
        token = out.logits[:, -1].argmax(-1)
        open_rows = open_rows & ~torch.isin(token, ends)
        made.append(torch.where(open_rows, token, -1))
        if not open_rows.any():
            break
        ids = torch.where(open_rows, token, base.pad_id)[:, None]
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    rows = torch.stack(made, dim=1).tolist() if made else [[] for _ in prompts]
    return [[t for t in row if t >= 0] for row in rows]


def _common_prefix(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with, leaving each at least one of its own."""
    first, last = min(prompts), max(prompts)
    limit = min(len(p) for p in prompts) - 1
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b or i >= limit:
            return min(i, limit)
    return limit
