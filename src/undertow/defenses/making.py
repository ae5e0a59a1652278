"""How a config's list of defenses becomes objects that go together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.seam import is_users
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.base import UpdateDefense
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.base import Defense
from undertow.defenses.decoding.base import DecodingDefense
from undertow.defenses.kinds import check_hooks
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.registry import DEFENSES


def make_defenses(options: Sequence[Options], trusted: bool = False) -> list[tuple[str, Defense]]:
    """Build the listed defenses.

    Args:
        options: names and parameters.
        trusted: whether the server has data of its own to train an update on.

    Raises:
        UserError: an unknown name or parameter, two that both replace FedAvg, the clients' loss or generation, one that prepares
            the updates after the aggregator, or one that needs what a run does not have.
    """
    made = [pair for option in options for pair in _make(option, trusted)]
    check_together(made)
    return made


def check_together(defenses: Sequence[tuple[str, Defense]]) -> None:
    """Refuse defenses that do not go together, or not in this order.

    Raises:
        UserError: with their names.
    """
    rules = [name for name, defense in defenses if isinstance(defense, Aggregator)]
    losses = [name for name, defense in defenses if isinstance(defense, LossDefense) and defense.replaces_loss]
    decoders = [name for name, defense in defenses if isinstance(defense, DecodingDefense)]
    for names, replaced in ((rules, "FedAvg"), (losses, "the clients' loss"), (decoders, "greedy generation")):
        if len(names) > 1:
            raise UserError(f"defenses {' and '.join(names)} both replace {replaced}; keep one of them")
    aggregated = False
    for name, defense in defenses:
        aggregated = aggregated or isinstance(defense, Aggregator)
        if aggregated and isinstance(defense, PreAggregator):
            raise UserError(f"defense '{name}' prepares the updates for '{rules[0]}', which is listed before it; swap them")


def _make(option: Options, trusted: bool) -> list[tuple[str, Defense]]:
    """One defense, or those that a registered combination lists as options."""
    make, name = DEFENSES.get(option.name), DEFENSES.canonical(option.name)
    if inspect.isfunction(make) and is_users(make) and inspect.signature(make).parameters.keys() & {"updates", "context"}:
        raise UserError(
            f"defense '{name}' is a function of updates; a defense is a class: derive one from undertow.defenses.Aggregator and "
            "write combine(updates, context)"
        )
    _check_class(make, name)
    try:
        if "space" in option.params and isinstance(make, type) and "space" not in inspect.signature(make).parameters:
            raise ValueError("it needs the coordinates, so that it runs in the adapter space only; leave space out")
        defense = make(**option.params)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"defense '{name}' with {option.params}: {error}; see `undertow list defenses`") from error
    if isinstance(defense, list) and all(isinstance(part, Options) for part in defense):
        return [pair for part in defense for pair in _make(part, trusted)]
    if not isinstance(defense, Defense):
        raise UserError(
            f"defense '{name}' makes a {type(defense).__name__}; derive it from a kind of defense, such as "
            "undertow.defenses.Aggregator"
        )
    _check_class(type(defense), name)
    if isinstance(defense, UpdateDefense) and defense.needs_trusted and not trusted:
        raise UserError(
            f"defense '{name}' needs an update from trusted data, which this run does not have; name a client whose data "
            "you trust, as in {name: " + name + ", params: {client: 0}}, or set synthetic.generator"
        )
    return [(name, defense)]


def _check_class(made: object, name: str) -> None:
    """Refuse a class of a user's that lacks what its kind needs, or writes what nobody calls."""
    if not (inspect.isclass(made) and issubclass(made, Defense)):
        return
    if not made.kinds() and hasattr(made, "of_kinds"):  # of the former base, which finds the kinds by the hooks
        made = made.of_kinds()
    try:
        made.check_class()
        check_hooks(made)
    except UserError as error:
        raise UserError(f"defense '{name}': {error}") from error
