"""The kinds of defense, each a base class in the room of its name, and what each is asked for.

=================  ========================================================  ===========================================
kind               base class                                                works on
=================  ========================================================  ===========================================
data               :class:`~undertow.defenses.data.base.DataDefense`         a client's samples, before round 1
loss               :class:`~undertow.defenses.loss.base.LossDefense`         what a client minimizes, and over what
pre-aggregator     ``aggregation.pre_aggregator.PreAggregator``              the updates, before they are aggregated
aggregator         :class:`~undertow.defenses.aggregation.aggregator.Aggregator`  the updates, in place of FedAvg
server             :class:`~undertow.defenses.server.base.ServerDefense`     the server's new global state
decoding           :class:`~undertow.defenses.decoding.base.DecodingDefense`  the tuned model's answers
=================  ========================================================  ===========================================

Pre-aggregators and the aggregator are the two parts of one kind, the defenses on the updates.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.base import Defense
from undertow.defenses.data.base import DataDefense
from undertow.defenses.decoding.base import DecodingDefense
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.server.base import ServerDefense

#: In the order in which a round comes to them.
KINDS: dict[str, type[Defense]] = {
    base.kind: base for base in (DataDefense, LossDefense, PreAggregator, Aggregator, ServerDefense, DecodingDefense)
}

#: Of each kind, what its base class calls: its own public methods.
HOOKS: dict[str, frozenset[str]] = {
    kind: frozenset(name for name, own in vars(base).items() if inspect.isfunction(own) and not name.startswith("_"))
    for kind, base in KINDS.items()
}


def kinds_of(make: Callable[..., Any]) -> list[str]:
    """Return the kinds of a class, in the order of :data:`KINDS`; of anything else, which combines defenses, none."""
    return [kind for kind, base in KINDS.items() if isinstance(make, type) and issubclass(make, base)]


def check_kind(make: type) -> None:
    """Refuse a class that is of no kind, lacks what its kind must have, or writes what only another kind is asked for.

    Raises:
        UserError: with the class, and what to derive from or to write.
    """
    kinds = kinds_of(make)
    if not kinds:
        raise UserError(
            f"{make.__name__} is of no kind of defense; derive it from one of {', '.join(base.__name__ for base in KINDS.values())}"
        )
    if missing := sorted(getattr(make, "__abstractmethods__", ())):
        raise UserError(f"{make.__name__} does not write {', '.join(missing)}, which its kind ({', '.join(kinds)}) needs; write it")
    if "loss" in kinds and not any(getattr(make, hook) is not getattr(LossDefense, hook) for hook in HOOKS["loss"]):
        raise UserError(f"{make.__name__} writes none of {', '.join(sorted(HOOKS['loss']))}; write at least one")
    for kind, hooks in HOOKS.items():
        if kind not in kinds and (found := sorted(hook for hook in hooks if hasattr(make, hook))):
            raise UserError(
                f"{make.__name__} is of the kind {' and '.join(kinds)}, whose {found[0]} nobody calls: it belongs to the kind "
                f"{kind}; derive it from {KINDS[kind].__name__}, or give the method another name"
            )
