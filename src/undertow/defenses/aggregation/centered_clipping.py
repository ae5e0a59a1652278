"""Centered clipping: the mean of the updates, each clipped around the last aggregate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import combination, lengths
from undertow.defenses.base import Stateful
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "centered-clipping",
    source="Karimireddy, He, Jaggi 2021, Learning from History for Byzantine Robust Optimization (ICML), centered clipping",
)
class CenteredClipping(Stateful, Aggregator):
    """Start at the last round's aggregate v, 0 in the first, and step by the mean of the clipped differences.

    Repeat: v <- v + (1 / K) sum_i min(1, tau / |U_i - v|) (U_i - v). delta = v, and v is kept for the next round. Defined for
    K >= 1; all clients count the same. The paper's other half, momentum, is the clients' and not part of this aggregator.

    The object remembers: each call is the next round. :meth:`restore` with an empty state forgets.

    Args:
        tau: clipping radius, > 0, in the units of the updates; ``None`` = the median of |U_i - v| in each step, which is ours,
            because the paper's 10 is made for gradients and clips no update of an adapter.
        iterations: steps, >= 1; 1 as in the paper's experiments.
    """

    def __init__(self, tau: float | None = None, iterations: int = 1) -> None:
        self.tau = None if tau is None else number("tau", tau)
        self.iterations = whole("iterations", iterations, least=1)
        self._last: Tensor | None = None

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return v ``[D]``; the report holds tau and the ``clipped`` rows of ``updates [K, D]``, both of the last step.

        Raises:
            UserError: the last aggregate has another length.
        """
        k, d = updates.shape
        if self._last is not None and self._last.shape != (d,):
            raise UserError(
                f"CenteredClipping got updates of {d} columns after an aggregate of {len(self._last)}; use a new one for another "
                "model"
            )
        v = torch.zeros(d, dtype=torch.float64) if self._last is None else self._last.clone()
        v = v.to(updates.device)
        for _ in range(self.iterations):
            far = lengths(updates, v)
            tau = float(far.quantile(0.5)) if self.tau is None else self.tau
            clipped = far > tau
            share = torch.where(clipped, tau / torch.where(clipped, far, 1.0), 1.0) / k
            v = v + combination(updates, share, exact=True, center=v)
        self._last = v.cpu().clone()
        return v, {"tau": tau, "clipped": torch.nonzero(clipped).flatten().tolist()}

    def state(self) -> dict[str, Tensor]:
        """Return the last aggregate ``[D]`` float64."""
        return {} if self._last is None else {"last": self._last}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back the last aggregate.

        Raises:
            UserError: the state is not this aggregator's.
        """
        last = state.get("last")
        if set(state) - {"last"} or (last is not None and (last.ndim != 1 or not bool(torch.isfinite(last).all()))):
            raise UserError(
                f"CenteredClipping cannot take back the state {', '.join(sorted(state))}; delete the run directory and run again"
            )
        self._last = None if last is None else last.to(torch.float64)
