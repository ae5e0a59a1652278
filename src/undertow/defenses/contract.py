"""Former import path: the names of before the five kinds, for users' own files. See :mod:`undertow.defenses.kinds`.

``from undertow.defenses.contract import DEFENSES, Defense, ServerContext`` is accepted for one more minor release.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from undertow.core.errors import warn_renamed
from undertow.defenses import base, contexts, kinds, making, registry
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.base import UpdateDefense
from undertow.defenses.aggregation.pre_aggregator import PreAggregator

ClientContext, ExchangeContext, TrainingContext = contexts.ClientContext, contexts.ExchangeContext, contexts.TrainingContext
ServerContext, DecodingContext = contexts.ServerContext, contexts.DecodingContext
Setting, NetSetting = contexts.Setting, contexts.NetSetting
DEFENSES, make_defenses = registry.DEFENSES, making.make_defenses


class Defense(base.Defense):
    """The former base of all defenses: an object of a subclass is of the kinds whose hooks the subclass writes."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_kinds" not in vars(cls):
            warn_renamed("undertow.defenses.contract.Defense", "one base class a kind, such as undertow.defenses.Aggregator")

    def __new__(cls, *args: Any, **given: Any) -> Defense:
        """Make an object of the class with its kinds."""
        return object.__new__(cls.of_kinds())

    @classmethod
    def of_kinds(cls) -> type[Defense]:
        """Return this class joined with the bases of the kinds whose hooks it writes."""
        return _of_kinds(cls)  # type: ignore[arg-type]


@cache
def _of_kinds(cls: type[Defense]) -> type[Defense]:
    bases: list[type] = [own for kind, own in kinds.KINDS.items() if any(hasattr(cls, hook) for hook in kinds.HOOKS[kind])]
    others = {base.NeedsModel: ("begin",), UpdateDefense: ("check", "fits"), base.Stateful: ("state", "restore")}
    bases += [
        own
        for own, hooks in others.items()
        if any(hasattr(cls, hook) for hook in hooks) and not any(issubclass(b, own) for b in bases)
    ]
    # What wrote aggregate or prepare itself now gets the checks of the base class around it.
    own: dict[str, Any] = {"_kinds": True, "__module__": cls.__module__, "__doc__": cls.__doc__}
    if hasattr(cls, "aggregate"):
        own |= {"combine": cls.aggregate, "aggregate": Aggregator.aggregate}
    if hasattr(cls, "prepare"):
        own |= {"mix": cls.prepare, "prepare": PreAggregator.prepare}
    return type(cls.__name__, (cls, *bases), own)
