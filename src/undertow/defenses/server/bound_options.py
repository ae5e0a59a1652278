"""The options of activation bounds in two groups, the search and the probes, and how a config's parameters become them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from undertow.core.errors import nearest, warn_renamed
from undertow.defenses.parameters import number, one_of, whole


@dataclass(frozen=True)
class SearchOptions:
    """How Adam moves the bounds, and how c is moved with them.

    Attributes:
        judge: model or labels: whose answer the rate compares with.
        pi: least rate, 0 < pi <= 1. None = 0.99; universal on texts: 0.95.
        c: the weight of P at the start, > 0; None = 0.5 for mm-bm, 0.002 for mmac, 1 for universal.
        factor: > 1.
        every, warmup: steps.
        steps: of Adam in a round, >= 1.
        batch_size: samples of D in a step, >= 1.
        lr: Adam's rate, in units of each place's mean maximum over D, > 0.
        start: z at the start in units of the largest activation, > 0.

    Raises:
        ValueError: an option out of its range.
    """

    judge: str = "model"
    pi: float | None = None
    c: float | None = None
    factor: float = 1.5
    every: int = 5
    warmup: int = 0
    steps: int = 150
    batch_size: int = 64
    lr: float = 0.03
    start: float = 1.0

    def __post_init__(self) -> None:
        one_of("judge", self.judge, ("model", "labels"))
        if self.pi is not None:
            number("pi", self.pi, most=1)
        if self.c is not None:
            number("c", self.c)
        number("factor", self.factor, 1)
        for name, least in (("every", 1), ("warmup", 0), ("steps", 1), ("batch_size", 1)):
            whole(name, getattr(self, name), least)
        number("lr", self.lr)
        number("start", self.start)


@dataclass(frozen=True)
class ProbeOptions:
    """The inputs whose margins are the penalty of the objectives mmac and universal.

    Attributes:
        count: x' for each class, >= 1. None = 20; universal on texts: 50.
        push: steps of pushing them, >= 1.
        changed: universal: share of the pixels or words that a change touches, 0 < changed <= 1.
        reference: universal: passes over D that the reference is trained for, from the network's first values; 0 = none.
        sift: universal: leave out those of D that seem to carry a trigger themselves (:mod:`undertow.defenses.server.sifting`).
        tight: universal: weight of the bounds' length beside the margins, >= 0. None = 5; on texts 1.
        renew: probes are made again after so many steps, >= 1; universal ones under the bounds so far, beside the old ones.

    Raises:
        ValueError: an option out of its range.
    """

    count: int | None = None
    push: int = 40
    changed: float = 0.15
    reference: int = 10
    sift: bool = True
    tight: float | None = None
    renew: int = 50

    def __post_init__(self) -> None:
        if self.count is not None:
            whole("count", self.count, 1)
        whole("push", self.push, 1)
        number("changed", self.changed, most=1)
        whole("reference", self.reference)
        if not isinstance(self.sift, bool):
            raise ValueError(f"sift = {self.sift!r} must be true or false")
        if self.tight is not None:
            number("tight", self.tight, least=0)
        whole("renew", self.renew, 1)


Group = TypeVar("Group", SearchOptions, ProbeOptions)

#: Each option by the name it had when all were one list.
_FORMER = {option.name: f"search.{option.name}" for option in fields(SearchOptions)}
_FORMER |= {option.name: f"probes.{option.name}" for option in fields(ProbeOptions)}


def grouped(search: object, probes: object, flat: Mapping[str, Any]) -> tuple[SearchOptions, ProbeOptions]:
    """Return both groups.

    Args:
        search, probes: each a mapping, an object of its class, or None; ``probes`` by its former meaning, their number.
        flat: options by dotted name, ``search.steps``, as a command line writes them, or by their former names, ``steps``.

    Raises:
        ValueError: an option that does not exist, is given twice, or is out of its range.
    """
    given: dict[str, dict[str, Any]] = {"search": _read("search", search, SearchOptions), "probes": {}}
    if isinstance(probes, int) and not isinstance(probes, bool):
        warn_renamed("activation-bounds' probes = a number", "probes.count")
        given["probes"] = {"count": probes}
    else:
        given["probes"] = _read("probes", probes, ProbeOptions)
    for key, value in flat.items():
        name = key
        if key in _FORMER and key != "count":
            name = _FORMER[key]
            warn_renamed(f"activation-bounds' {key}", name)
        group, _, option = name.partition(".")
        if name not in _FORMER.values():
            raise ValueError(f"it has no parameter '{key}'{nearest(key, _FORMER.values())}; correct or remove it")
        if option in given[group]:
            raise ValueError(f"{name} is given twice; give it once")
        given[group][option] = value
    return SearchOptions(**given["search"]), ProbeOptions(**given["probes"])


def _read(name: str, group: object, kind: type[Group]) -> dict[str, Any]:
    known = [option.name for option in fields(kind)]
    if group is None or isinstance(group, kind):
        return {} if group is None else {option: getattr(group, option) for option in known}
    if not isinstance(group, Mapping):
        raise ValueError(f"{name} = {group!r} must be a group of options such as {{{known[0]}: ...}}; it has {', '.join(known)}")
    for option in group:
        if option not in known:
            raise ValueError(f"{name} has no option '{option}'{nearest(str(option), known)}: it has {', '.join(known)}")
    return dict(group)
