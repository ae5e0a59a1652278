"""Names of fields: the short ones that people type and tables show, and where the fields stand.

``data.X``, ``model.X`` and ``synthetic.X`` are short for ``task.data.X`` and so on, ``task`` for ``task.kind``, and ``attack.X``
for ``task.backdoor.X``, X being one of :data:`OF_BACKDOOR`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from undertow.config.groups import Attack, Bsnr
from undertow.config.tasks import TASKS, InstructionBackdoor
from undertow.core.errors import warn_renamed

#: Groups of a task with a short name.
OF_TASK = ("data", "model", "synthetic")
#: Fields of a task's backdoor, which are short for ``attack.X``.
OF_BACKDOOR = tuple(InstructionBackdoor.model_fields)
#: Former names of fields, each with today's. Digests and folders of cells keep the former ones, so what has run is found again.
FORMER = {
    f"{group}.{old}": f"{group}.{new}"
    for group, of in (("attack", Attack), ("measure.bsnr", Bsnr))
    for old, new in of.former.items()
}


def long_name(name: str) -> str:
    """Return where the field of a short or former name stands; any other name as it is."""
    name = today(name)
    group, _, rest = name.partition(".")
    if name == "task":
        return "task.kind"
    if group in OF_TASK:
        return f"task.{name}"
    return f"task.backdoor.{rest}" if group == "attack" and rest in OF_BACKDOOR else name


def today(name: str) -> str:
    """Return today's name of a field that had another, and warn; any other name as it is."""
    if name in FORMER:
        warn_renamed(name, FORMER[name])
    return FORMER.get(name, name)


def before(name: str) -> str:
    """Return the former name of a field that had one; any other name as it is."""
    return next((old for old, new in FORMER.items() if new == name), name)


def short_name(name: str) -> str:
    """Return the short name of a field, today's for a former one; any other name as it is."""
    name = today(name)
    if name == "task.kind":
        return "task"
    group, _, rest = name.removeprefix("task.").partition(".")
    if not name.startswith("task.") or group not in (*OF_TASK, "backdoor"):
        return name
    if group != "backdoor":
        return name.removeprefix("task.")
    return f"attack.{rest}" if rest else "attack"


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set the field ``name`` of plain nested values, whose groups are copied on the way and made where there are none."""
    *groups, field = name.split(".")
    place = values
    for group in groups:
        inner = place.get(group)
        if isinstance(inner, str) and group == "partition":
            inner = {"kind": inner}
        place[group] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        place = inner
    place[field] = value


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and value of everything in nested mappings that is no mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def by_short_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values of a config, nested by the short names of fields."""
    found: dict[str, Any] = {}
    for group, value in values.items():
        if group == "task":
            found["task"] = value["kind"]
            for name, inner in leaves({"task": value}):
                if name != "task.kind":
                    put(found, short_name(name), inner)
        elif group != "format":
            found[group] = {**found.get(group, {}), **value} if isinstance(value, Mapping) else value
    return found


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every settable field of a model by its dotted name, groups entered."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


@cache
def task_fields(kind: str) -> dict[str, FieldInfo]:
    """Return the fields of a kind of task by their short names, without ``task`` itself."""
    return {short_name(name): field for name, field in fields(TASKS[kind], "task.") if name != "task.kind"}


def kinds_with(name: str) -> list[str]:
    """Return the kinds of task that have the field of this short name."""
    return [kind for kind in TASKS if name in task_fields(kind)]


def default(field: FieldInfo) -> Any:
    """Return the value that a field has where nothing is said."""
    return field.get_default(call_default_factory=True, validated_data={})
