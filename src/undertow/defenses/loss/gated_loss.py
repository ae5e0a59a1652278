"""Answer tokens that a reference finds too surprising are left out of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.data.template import Encoded
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.parameters import number, whole
from undertow.defenses.registry import DEFENSES
from undertow.defenses.trusted import trusted_rows, tune


@dataclass(frozen=True)
class _Reference:
    """What finds tokens surprising: the base with ``adapter [D]`` of ``layout``, or alone; and the limit of trusted samples."""

    adapter: Tensor | None
    layout: Layout | None
    threshold: float | None


@DEFENSES.register("gated-loss", source="ours")
class GatedLoss(LossDefense):
    """Each client weighs with 0 the answer tokens whose -log p under a reference exceeds a quantile; no sample is dropped.

    Before round 1 the client computes c_i = -log p(token i) of every answer token of its data under the reference, which is never
    trained on that data. Tokens with c_i above the threshold get weight 0 in the loss, all others 1. A planted sentence loses
    the tokens that nobody could foresee, first of all the one that begins it, and is not learned. So do facts that are new to
    the reference.

    The threshold is the ``quantile`` of c over the tokens of trusted samples. Without ``trusted`` it is that of the client's own
    tokens, poison included, which means something else: exactly the share 1 - quantile is left out, attacked or not, and poison
    beyond that share stays.

    Args:
        quantile: of the tokens that stay, 0 < quantile <= 1.
        trusted: an instruction file with samples that hold no poison, in any form that `data.name=instructions` reads; the same
            for all clients. None = the client's own tokens give the threshold.
        adapter: folder of a trusted LoRA adapter in PEFT format for this base, as the reference; None = the base alone.
        passes: with > 0 the reference is trained before round 1, from the run's initial adapter and by its training options, so
            many passes over every second sample of ``trusted``; the others, held out, give the threshold.

    Raises:
        ValueError: a parameter out of its range, or parameters that exclude each other.
    """

    def __init__(self, quantile: float = 0.99, trusted: str | None = None, adapter: str | None = None, passes: int = 0) -> None:
        self.quantile = number("quantile", quantile, most=1)
        self.trusted, self.adapter = trusted, adapter
        self.passes = whole("passes", passes)
        if self.passes and trusted is None:
            raise ValueError(f"passes = {passes} needs trusted, the file of samples to train the reference on")
        if self.passes and adapter is not None:
            raise ValueError("passes trains a reference and adapter is one; give one of them")
        self._reference: _Reference | None = None

    def weigh(self, data: Sequence[Encoded], context: TrainingContext) -> tuple[list[tuple[float, ...]], dict[str, Any]]:
        """Return 0 or 1 for each answer token; the report counts ``tokens``, ``masked`` ones and samples ``touched``.

        Raises:
            UserError: the file of trusted samples or the adapter cannot be used, or holds too few tokens for the quantile.
        """
        from undertow.training.token_nll import token_nll

        if self._reference is None:
            self._reference = self._build(context)
        reference = self._reference
        found = token_nll(context.base, data, reference.adapter, reference.layout)
        threshold = reference.threshold
        if threshold is None:
            threshold = self._threshold(found) if found else 0.0
        weights = [tuple(float(c <= threshold) for c in row) for row in found]
        report = {
            "threshold": threshold,
            "threshold_from": "own tokens" if reference.threshold is None else "trusted samples",
            "tokens": sum(map(len, weights)),
            "masked": sum(row.count(0.0) for row in weights),
            "touched": sum(0.0 in row for row in weights),
        }
        return weights, report

    def _threshold(self, found: Sequence[Sequence[float]]) -> float:
        return float(np.quantile([c for row in found for c in row], self.quantile))

    def _build(self, context: TrainingContext) -> _Reference:
        from undertow.models.lora import initial_adapter
        from undertow.models.with_adapter import plain_adapter
        from undertow.training.token_nll import token_nll

        adapter: Tensor | None = None
        layout: Layout | None = None
        if self.adapter is not None:
            adapter, layout = plain_adapter(context.base, Path(self.adapter).expanduser())
        if self.trusted is None:
            return _Reference(adapter, layout, None)
        rows = held_out = trusted_rows(self.trusted, context.template)
        if self.passes:
            start = initial_adapter(context.base.layout, context.seed)
            adapter = tune(context.base, context.training, start, rows[::2], self.passes, context.seed)
            held_out = rows[1::2]
        found = token_nll(context.base, held_out, adapter, layout)
        tokens = sum(map(len, found))
        if tokens * (1 - self.quantile) < 1 and self.quantile < 1:
            raise UserError(
                f"gated-loss: the {len(held_out)} trusted samples that give the threshold have {tokens} answer tokens, too few for "
                f"quantile = {self.quantile:g}; give more samples or a lower quantile"
            )
        return _Reference(adapter, layout, self._threshold(found))
