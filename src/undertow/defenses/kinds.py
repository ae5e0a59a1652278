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


def check_hooks(cls: type[Defense]) -> None:
    """Refuse a class of a user's that writes what only another kind is asked for: nobody would call it.

    Raises:
        UserError: with the class and the method, and what to derive from.
    """
    for kind, hooks in HOOKS.items():
        if kind not in cls.kinds() and (found := sorted(hook for hook in hooks if hasattr(cls, hook))):
            raise UserError(
                f"{cls.__name__} is of the kind {' and '.join(cls.kinds())}, whose {found[0]} nobody calls: it belongs to the "
                f"kind {kind}; derive it from {KINDS[kind].__name__}, or give the method another name"
            )
