"""The aggregator: what takes the place of FedAvg. A matrix ``U [K, D]``, one row a client, becomes a change ``[D]`` and a report.

It is used alone, ``Krum(f=3)(U)``, or by a run, which calls :meth:`Aggregator.aggregate`; both take the same path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses.aggregation.arrays import Array, as_matrix, as_tensor
from undertow.defenses.aggregation.base import UpdateDefense, check_rows, check_updates
from undertow.defenses.base import origin, refuse_answer
from undertow.defenses.contexts import ServerContext
from undertow.defenses.seam import ask, check_report


class Aggregator(UpdateDefense, ABC):
    """Base of the aggregators: a subclass writes :meth:`combine`, and :meth:`check` where K has a lower bound."""

    kind = "aggregator"

    @property
    def spreads(self) -> bool:
        """Whether NaN or infinity in any row always reaches the change, so that looking there is enough."""
        return False

    @abstractmethod
    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``, float64 or the dtype of ``updates``, and a report of plain JSON values.

        Args:
            updates: ``[K, D]``, K >= 1, all values finite; not to be changed.
            context: as in a run; its counts are K positive numbers and its layout has D columns.
        """

    def aggregate(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]`` on the device of ``updates``, and a report.

        It is float64 for float64 ``updates`` and float32 for all others; aggregators sum in float64.

        Raises:
            UserError: not a floating-point matrix, no client, too few for the aggregator, a row that holds NaN, infinity or values
                beyond 1e140, a context that does not fit, or an answer of :meth:`combine` that is none.
        """
        name = type(self).__name__
        late = self.spreads and updates.dtype != torch.float64  # only float64 has finite values that are too large
        check_updates(name, updates, context, self.check, rows=not late)
        self.fits(context.layout)
        with torch.no_grad():
            answer = ask(self, "combine", updates.detach(), context)
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
            raise refuse_answer(self, "combine", answer, "(delta, report): a tensor [D] and a dict")
        delta, report = answer
        check_report(self, "combine", report)
        d = updates.shape[1]
        if not isinstance(delta, Tensor) or delta.shape != (d,) or not delta.is_floating_point():
            raise refuse_answer(self, "combine", delta, f"(delta, report) with delta a floating-point torch tensor of shape [{d}]")
        if not torch.isfinite(delta).all():
            if late:
                check_rows(name, updates)
            raise UserError(f"{origin(self)}.combine returned NaN or infinity for finite updates; return finite values")
        return delta.to(torch.float64 if updates.dtype == torch.float64 else torch.float32), report

    def __call__(
        self,
        updates: Array | Sequence[Array],
        *,
        counts: Sequence[float] | None = None,
        layout: Layout | None = None,
        adapter: Tensor | NDArray[Any] | None = None,
        round: int = 1,
        seed: int = 0,
        draw: np.random.Generator | None = None,
        clients: Sequence[int] | None = None,
        trusted: Tensor | NDArray[Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Aggregate outside a run.

        Args:
            updates: ``[K, D]``, one row a client: a torch tensor on any device, or a numpy array (memory-mapped ones too); or a
                list of K vectors ``[D]`` of either.
            counts: samples behind each row; ``None`` = all alike. Only aggregators with weights look at them.
            layout: names the columns; ``None`` = one vector of length D.
            adapter: the global adapter ``[D]`` the clients started from. Most aggregators do not look at it.
            round: from 1.
            seed: of the aggregator's own random numbers, as a run's.
            draw: the random numbers themselves, in place of ``seed``.
            clients: which client sent each row; ``None`` = client k sent row k. Only aggregators that remember clients look at it.
            trusted: an update ``[D]`` trained on trusted data. Only FLTrust looks at it.

        Returns:
            ``(delta, report)``: the change ``[D]``, of the same kind and device as ``updates``, and what the aggregator did.

        Raises:
            UserError: as :meth:`aggregate`; something that is no array; no adapter for an aggregator that needs it.
        """
        matrix, of_numpy = as_matrix(type(self).__name__, updates)
        k, d = matrix.shape if matrix.ndim == 2 else (0, 0)
        if adapter is None and self.needs_adapter:
            raise UserError(f"{type(self).__name__} as set looks at the global adapter; give adapter=[D]")
        context = ServerContext(
            layout=layout or Layout.of({"update": (d,)}),
            counts=[1] * k if counts is None else counts,  # type: ignore[arg-type]
            round=round,
            # zeros that take no memory
            adapter=torch.zeros(1, device=matrix.device).expand(d) if adapter is None else as_tensor("adapter", adapter),
            draw=rng(seed, "server", round) if draw is None else draw,
            clients=range(k) if clients is None else clients,
            trusted=None if trusted is None else as_tensor("trusted", trusted),
        )
        delta, report = self.aggregate(matrix, context)
        return (delta.numpy() if of_numpy else delta), report  # type: ignore[return-value]


#: The former name.
Rule = Aggregator
