"""BSNR of one round of a run, in the spaces its config asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undertow.config import Bsnr
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.metrics.bsnr import gram_delta_w, measure_bsnr


def round_bsnr(
    updates: Tensor,
    poisoned: Sequence[bool],
    before: Tensor,
    after: Tensor,
    *,
    layout: Layout,
    options: Bsnr,
    seed: int,
    round: int,
    twins: Tensor | None = None,
) -> dict[str, Any] | None:
    """Return ``{space: value, null band, p}``, or None where the group of poisoned or that of benign clients is empty.

    Args:
        updates: ``U [K, D]`` of this round.
        poisoned: which rows belong to poisoned clients (ground truth).
        before, after: the global adapter ``[D]`` before and after the round; their difference is Δ_global.
        layout: of the adapter.
        options: spaces and permutations.
        seed, round: name the permutations' random numbers.
        twins: counterfactual updates ``[K', D]``: of the poisoned clients' data as it was before poisoning, trained from
            ``before``; a stand-in for the clean group where no client is clean.
    """
    marks = list(poisoned)
    if twins is not None:
        updates, marks = torch.cat([updates, twins]), marks + [False] * len(twins)
    if not any(marks) or all(marks):
        return None
    found: dict[str, Any] = {}
    for space in options.spaces:
        draw = rng(seed, f"bsnr null {space}", round)
        if space == "adapter":
            value = measure_bsnr(updates, marks, after - before, permutations=options.permutations, draw=draw)
        else:
            local = [(a, b) for _, a, b in layout.pairs(updates + before)]
            old, new = ([(a, b) for _, a, b in layout.pairs(flat)] for flat in (before, after))
            grams = gram_delta_w(local, old, new, layout.scale)
            value = measure_bsnr(None, marks, None, permutations=options.permutations, draw=draw, grams=grams)
        # JSON has no infinity; a global change that lies on the backdoor direction is told as undefined too.
        found[space] = {key: None if x is not None and not math.isfinite(x) else x for key, x in value.as_dict().items()}
    return found
