"""Sampling from a causal language model with random numbers of one's own, prompts side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undertow.models.causal_lm import CausalLM


@torch.inference_mode()
def sample(
    base: CausalLM,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[torch.Generator],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> list[list[int]]:
    """Return a continuation of each prompt, without the token that ends it.

    Each row draws one number a token from its own generator, so that what it says depends on the other rows by rounding alone.

    Args:
        base: the frozen model.
        prompts: token ids, none empty.
        draws: a CPU generator a prompt.
        temperature: from 0, which takes the likeliest token and draws nothing.
        top_p: in (0, 1], see :func:`choose`.
        max_new_tokens: the longest continuation, at least 1.
    """
    device = base.device
    ids, mask, positions = base.steps.padded(prompts)
    ends = set(base.end_ids)
    made: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    cache = None
    for _ in range(max_new_tokens):
        states, cache = base.steps.next(ids, mask, positions, cache)
        logits = base.head.logits(states)
        if temperature == 0:
            tokens = logits.argmax(-1).tolist()
        else:
            u = torch.stack([torch.rand((), generator=draw, dtype=torch.float64) for draw in draws])
            tokens = choose(logits, u, temperature, top_p).tolist()
        going -= {row for row in going if tokens[row] in ends}
        for row in going:
            made[row].append(tokens[row])
        if not going:
            break
        ids = torch.tensor([[token] for token in tokens], device=device)
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return made


def choose(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return for each row the token at ``u`` of the distribution softmax(logits / temperature), cut to its nucleus.

    The nucleus holds the likeliest tokens until their mass is ``top_p`` or more (Holtzman et al. 2020, section 3.1); u runs through
    its tokens from the likeliest on, each as wide as its share of the nucleus. Computed on the CPU in float64.

    Args:
        logits: ``[n, V]``.
        u: float64 ``[n]``, uniform in [0, 1).
        temperature: above 0.
        top_p: in (0, 1].

    Returns:
        int64 ``[n]``.
    """
    p, tokens = torch.softmax(logits.cpu().to(torch.float64) / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    mass = p.cumsum(-1)
    last = (mass - p < top_p).sum(-1, keepdim=True) - 1  # of the nucleus; at least the first token
    place = torch.searchsorted(mass, u[:, None] * mass.gather(-1, last), right=True)
    return tokens.gather(-1, torch.minimum(place, last))[:, 0]
