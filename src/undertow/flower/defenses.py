"""Which defenses a Flower strategy can run: those that need no more than the updates."""

from __future__ import annotations

from collections.abc import Sequence

from undertow.config import Defense as Options
from undertow.config import short_form
from undertow.core.errors import UserError
from undertow.defenses.aggregation.base import UpdateDefense
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.base import Defense, NeedsModel
from undertow.defenses.making import check_together, make_defenses

#: Where the search for a rule's smallest federation ends.
_MOST = 1000


def named(defenses: str | Defense | Sequence[str | Defense], trusted: bool = False) -> list[tuple[str, Defense]]:
    """Return defenses with their names.

    Args:
        defenses: names as in a config, or objects.
        trusted: whether the server has an update of its own.

    Raises:
        UserError: an unknown name or parameter, something that is no defense, one that works elsewhere than on the server's
            updates, or an order that does not work.
    """
    found: list[tuple[str, Defense]] = []
    for one in [defenses] if isinstance(defenses, str | Defense) else defenses:
        if isinstance(one, str):
            # What lacks an update from trusted data is told below, as it is given here.
            found += make_defenses([Options(**short_form(one))], trusted=True)
        elif isinstance(one, Defense):
            found.append((type(one).__name__, one.chain() if isinstance(one, PreAggregator) and one.then is not None else one))
        else:
            raise UserError(f"{one!r} is no defense; give a name such as 'krum:f=1', or an object such as Krum(f=1)")
    for name, defense in found:
        if isinstance(defense, NeedsModel):
            raise UserError(
                f"defense '{name}' works on the clients' data or on the model itself ({' and '.join(defense.kinds())}), "
                "which a Flower strategy does not have; give an aggregator, or run it with `undertow run`"
            )
        if isinstance(defense, UpdateDefense) and defense.needs_trusted and not trusted:
            raise UserError(f"defense '{name}' needs an update from trusted data; give trusted = a function that trains it")
    check_together(found)
    return found


def fewest(defenses: Sequence[tuple[str, Defense]]) -> int:
    """Return the smallest number of replies that defenses are defined for.

    Raises:
        UserError: there is none up to 1000.
    """
    problem = UserError("")
    for k in range(1, _MOST + 1):
        rows = k
        try:
            for _, defense in defenses:
                if isinstance(defense, UpdateDefense):
                    defense.check(rows)
                rows = defense.rows(rows) if isinstance(defense, PreAggregator) else rows
        except UserError as error:
            problem = error
        else:
            return k
    raise problem
