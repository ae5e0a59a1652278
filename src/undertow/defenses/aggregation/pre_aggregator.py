"""What changes the updates before a rule sees them: ``Bucketing(s=2, then=Krum(f=1))(U)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.defenses.aggregation.mean import Mean
from undertow.defenses.aggregation.rule import Rule, Updates, check_updates
from undertow.defenses.contract import Defense, ServerContext


class PreAggregator(Defense):
    """Base of the pre-aggregators: a subclass writes :meth:`mix`, and :meth:`check` and :meth:`rows` where they differ.

    Args:
        then: what comes next, outside a run: a rule, or another pre-aggregator with its own ``then``; ``None`` = the mean by counts.
            In a run the defenses listed behind it come next.

    Raises:
        ValueError: ``then`` is neither.
    """

    def __init__(self, then: Rule | PreAggregator | None = None) -> None:
        if then is not None and not isinstance(then, Rule | PreAggregator):
            raise ValueError(
                f"then = {then!r} must be a rule such as Krum(); in a config, list the rule behind this defense instead"
            )
        self.then = then

    @property
    def needs_adapter(self) -> bool:
        """Whether it looks at the global adapter."""
        return False

    def mix(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, ServerContext, dict[str, Any]]:
        """Return the new rows ``[K', D]``, their context, and a report of plain JSON values; arguments as ``Rule.combine``."""
        raise NotImplementedError(f"{type(self).__name__} must override mix")

    def check(self, k: int) -> None:
        """Refuse a number of clients that it is not defined for.

        Raises:
            UserError: ``k`` is too small, with the legal range.
        """
        if k < 1:
            raise UserError(f"{type(self).__name__} got no update: K = {k}; give at least one client's")

    def prepare(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, ServerContext, dict[str, Any]]:
        """Return the rows that the rule gets, float64 for float64 ``updates`` and float32 for all others.

        Raises:
            UserError: as ``Rule.aggregate``.
        """
        check_updates(type(self).__name__, updates, context, self.check)
        self.fits(context.layout)
        with torch.no_grad():
            return self.mix(updates.detach(), context)

    def chain(self) -> Chain:
        """Return this and all that comes behind it as one rule."""
        before: list[PreAggregator] = [self]
        while isinstance(before[-1].then, PreAggregator):
            before.append(before[-1].then)
        last = before[-1].then
        return Chain(before, last if isinstance(last, Rule) else Mean())

    def __call__(self, updates: Updates, **given: Any) -> tuple[Updates, dict[str, Any]]:
        """Prepare and aggregate outside a run; arguments, answer and errors as ``Rule.__call__``.

        The report is the rule's, with those of the preparations in ``prepared``.
        """
        return self.chain()(updates, **given)


class Chain(Rule):
    """Pre-aggregators and the rule behind them, as one rule."""

    def __init__(self, before: list[PreAggregator], rule: Rule) -> None:
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
        """Return the rule's change ``[D]`` of the prepared rows."""
        prepared: list[dict[str, Any]] = []
        for part in self.before:
            updates, context, report = part.prepare(updates, context)
            prepared.append({"name": type(part).__name__, **report})
        delta, report = self.rule.aggregate(updates, context)
        return delta, {**report, "prepared": prepared}

    def state(self) -> dict[str, Tensor]:
        """Return the rule's state; preparations have none."""
        return self.rule.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Give the rule its state back."""
        self.rule.restore(state)
