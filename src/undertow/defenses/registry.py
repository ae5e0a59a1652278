"""The registered defenses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from undertow.core.errors import UserError
from undertow.core.registry import Entry, Registry
from undertow.defenses.base import Defense

_BASE = "undertow.defenses.Aggregator"


class Defenses(Registry):
    """The registry of defenses: the base class declares the kind, and registering checks it."""

    def register(self, name: str, *, source: str, aliases: Sequence[str] = ()) -> Callable[[Any], Any]:
        """As :meth:`Registry.register`.

        Raises:
            UserError: a class that is of no kind of defense, or lacks what its kind must have.
        """
        add = super().register(name, source=source, aliases=aliases)

        def checked(make: Any) -> Any:
            if isinstance(make, type):
                if not issubclass(make, Defense):
                    raise UserError(f"{make.__name__} is no defense; derive it from the base class of a kind, such as {_BASE}")
                make.of_kinds().check_class()
            return add(make)

        return checked

    def summary(self, entry: Entry) -> str:
        """Return the kind of a method and the first line of its docstring."""
        kinds = entry.make.kinds() if isinstance(entry.make, type) and issubclass(entry.make, Defense) else ["combination"]
        return f"{' and '.join(kinds)}: {entry.summary}"


DEFENSES = Defenses("defense", "undertow.defenses")
