"""What changes the updates before an aggregator sees them: ``Bucketing(s=2, then=Krum(f=1))(U)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.arrays import Array
from undertow.defenses.aggregation.base import UpdateDefense, check_updates
from undertow.defenses.aggregation.geometry import weighted_mean
from undertow.defenses.base import Stateful, origin, refuse_answer, restore
from undertow.defenses.contexts import ServerContext
from undertow.defenses.seam import ask, check_report


class PreAggregator(UpdateDefense, ABC):
    """Base of the pre-aggregators: a subclass writes :meth:`mix`, and :meth:`check` and :meth:`rows` where they differ.

    Args:
        then: what comes next, outside a run: an aggregator, or another pre-aggregator with its own ``then``; ``None`` = the mean by
            counts. In a run the defenses listed after it come next.

    Raises:
        ValueError: ``then`` is neither.
    """

    kind = "pre-aggregator"
    then: Aggregator | PreAggregator | None = None

    def __init__(self, then: Aggregator | PreAggregator | None = None) -> None:
        if then is not None and not isinstance(then, Aggregator | PreAggregator):
            raise ValueError(
                f"then = {then!r} must be an aggregator such as Krum(); in a config, list the aggregator after this defense instead"
            )
        self.then = then

    @abstractmethod
    def mix(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, ServerContext, dict[str, Any]]:
        """Return the new rows ``[K', D]``, their context, and a report of JSON values; arguments as ``Aggregator.combine``."""

    def rows(self, k: int) -> int:
        """Return K', the number of rows that :meth:`prepare` makes of ``k``."""
        return k

    def prepare(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, ServerContext, dict[str, Any]]:
        """Return the rows that the aggregator gets, float64 for float64 ``updates`` and float32 for all others.

        Raises:
            UserError: as ``Aggregator.aggregate``.
        """
        check_updates(type(self).__name__, updates, context, self.check)
        self.fits(context.layout)
        with torch.no_grad():
            answer = ask(self, "mix", updates.detach(), context)
        wanted = "(rows, context, report): a tensor [K', D], a ServerContext and a dict"
        if not (
            isinstance(answer, tuple) and len(answer) == 3 and isinstance(answer[1], ServerContext) and isinstance(answer[2], dict)
        ):
            raise refuse_answer(self, "mix", answer, wanted)
        check_report(self, "mix", answer[2])
        mixed = answer[0]
        if not isinstance(mixed, Tensor) or mixed.ndim != 2 or mixed.shape[1] != updates.shape[1]:
            raise refuse_answer(self, "mix", mixed, f"{wanted}, D = {updates.shape[1]}")
        if not torch.isfinite(mixed).all():
            raise UserError(f"{origin(self)}.mix returned NaN or infinity for finite updates; return finite values")
        return answer

    def chain(self) -> Chain:
        """Return this and all that comes after it as one aggregator."""
        before: list[PreAggregator] = [self]
        while isinstance(before[-1].then, PreAggregator):
            before.append(before[-1].then)
        last = before[-1].then
        return Chain(before, last if isinstance(last, Aggregator) else _ByCounts())

    def __call__(self, updates: Array | Sequence[Array], **given: Any) -> tuple[Array, dict[str, Any]]:
        """Prepare and aggregate outside a run; arguments, answer and errors as ``Aggregator.__call__``.

        The report is the aggregator's, with those of the preparations in ``prepared``.
        """
        return self.chain()(updates, **given)


class Chain(Stateful, Aggregator):
    """Pre-aggregators and the aggregator after them, as one aggregator."""

    def __init__(self, before: list[PreAggregator], rule: Aggregator) -> None:
        self.before = before
        self.rule = rule

    @property
    def needs_adapter(self) -> bool:
        """Whether one of them does."""
        return self.rule.needs_adapter or any(part.needs_adapter for part in self.before)

    def check(self, k: int) -> None:
        """Refuse what one of them refuses."""
        for part in self.before:
            part.check(k)
            k = part.rows(k)
        self.rule.check(k)

    def fits(self, layout: Layout) -> None:
        """Refuse what one of them refuses."""
        for part in self.before:
            part.fits(layout)
        self.rule.fits(layout)

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the aggregator's change ``[D]`` of the prepared rows."""
        prepared: list[dict[str, Any]] = []
        for part in self.before:
            updates, context, report = part.prepare(updates, context)
            prepared.append({"name": type(part).__name__, **report})
        delta, report = self.rule.aggregate(updates, context)
        return delta, {**report, "prepared": prepared}

    def state(self) -> dict[str, Tensor]:
        """Return the aggregator's state; preparations have none."""
        return self.rule.state() if isinstance(self.rule, Stateful) else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Give the aggregator its state back."""
        restore(self.rule, state)


class _ByCounts(Aggregator):
    """FedAvg: the mean by sample counts."""

    sums = True

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return sum_k n_k U_k / sum_k n_k."""
        return weighted_mean(updates, context.counts), {}
