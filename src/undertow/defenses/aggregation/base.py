"""Defenses on the updates: what pre-aggregators and aggregators share, above all the checks of what they are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.defenses.base import Defense
from undertow.defenses.contexts import ServerContext

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Squares of larger values, summed over many coordinates, overflow float64. No float32 reaches it.
LARGEST = 1e140


class UpdateDefense(Defense):
    """Base of the defenses on the updates; a method derives from ``PreAggregator`` or from ``Aggregator``.

    Attributes:
        sums: whether it needs no more of the updates than their sum by counts, all that secure aggregation shows.
    """

    sums: ClassVar[bool] = False

    @property
    def needs_adapter(self) -> bool:
        """Whether it looks at the global adapter, so that a caller outside a run must give it."""
        return False

    @property
    def needs_trusted(self) -> bool:
        """Whether it cannot do without ``context.trusted``, which a run does not have."""
        return False

    def check(self, k: int) -> None:
        """Refuse ``k`` clients a round, before any training, where that is too few.

        Raises:
            UserError: with the legal range.
        """
        if k < 1:
            raise UserError(f"{type(self).__name__} got no update: K = {k}; give at least one client's")

    def fits(self, layout: Layout) -> None:
        """Refuse the layout of the adapter, before any training, where it lacks what the defense looks at.

        Raises:
            UserError: what is missing.
        """


def check_updates(name: str, updates: Tensor, context: ServerContext, enough: Callable[[int], None], *, rows: bool = True) -> None:
    """Check what a defense on the updates is given; ``name`` is its own, for the message, and ``enough`` its check of K.

    ``rows`` is whether their values are looked at, which reads the whole matrix.

    Raises:
        UserError: as ``Aggregator.aggregate``.
    """
    if updates.ndim != 2 or updates.shape[1] == 0:
        raise UserError(f"{name} got updates of shape {list(updates.shape)}; give a matrix [K, D], one row a client, D >= 1")
    if updates.dtype not in DTYPES:
        raise UserError(f"{name} got updates of dtype {updates.dtype}; give float16, bfloat16, float32 or float64")
    enough(updates.shape[0])
    if rows:
        check_rows(name, updates)
    _check_context(name, updates, context)


def check_rows(name: str, updates: Tensor) -> None:
    """Refuse updates that hold NaN, infinity or values beyond :data:`LARGEST`.

    Raises:
        UserError: with the rows.
    """
    # Extremes tell all, without a temporary as large as the updates: NaN is handed on. Those of the whole are found ten times
    # faster than those of each row, which only an error needs.
    updates = updates.detach()
    low, high = torch.aminmax(updates)
    if -LARGEST <= float(low) <= float(high) <= LARGEST:
        return
    low, high = torch.aminmax(updates, dim=1)
    size = torch.maximum(low.abs(), high.abs()).to(torch.float64)
    wrong = torch.nonzero(~torch.isfinite(size)).flatten().tolist()
    if wrong:
        rows = ", ".join(map(str, wrong[:8])) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise UserError(f"{name} got NaN or infinity in the rows {rows}; leave these clients out")
    wrong = torch.nonzero(size > LARGEST).flatten().tolist()
    if wrong:
        raise UserError(
            f"{name} got values up to {float(size.max()):.3g} in row {wrong[0]}, which is beyond {LARGEST:g}; scale the updates "
            "down"
        )


def _check_context(name: str, updates: Tensor, context: ServerContext) -> None:
    k, d = updates.shape
    counts = [float(count) for count in context.counts]
    if len(counts) != k:
        raise UserError(f"{name} got {len(counts)} counts for {k} updates; give one a client")
    if not all(math.isfinite(count) and count > 0 for count in counts):
        raise UserError(f"{name} got the counts {counts}; give numbers above 0")
    if context.layout.size != d:
        raise UserError(
            f"{name} got a layout of {context.layout.size} columns for updates of {d}; give the layout of these updates"
        )
    if context.clients is not None and len(set(context.clients)) != k:
        raise UserError(f"{name} got the clients {list(context.clients)} for {k} updates; give a different one for each")
    if context.trusted is not None and not (context.trusted.shape == (d,) and bool(torch.isfinite(context.trusted).all())):
        raise UserError(f"{name} got a trusted update of shape {list(context.trusted.shape)}; give one of [{d}], all values finite")
    if context.adapter.shape != (d,):
        raise UserError(f"{name} got an adapter of shape {list(context.adapter.shape)}; give one of shape [{d}]")
