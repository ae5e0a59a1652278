"""What fields there are, by their short names, with default and description."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic.fields import FieldInfo

from undertow.config.config import Config
from undertow.config.names import OF_TASK, default, fields, task_fields
from undertow.config.tasks import TASKS


def every_field() -> Iterator[tuple[str, tuple[str, ...], FieldInfo]]:
    """Yield every settable field of a config: its short name, the kinds of task that have it, and what it is.

    A field whose rule, default or description differs between kinds of task comes once for each.
    """
    for name, field in fields(Config):
        yield name, tuple(TASKS), field
        if name == "task":
            yield from _of_tasks()


def _of_tasks() -> Iterator[tuple[str, tuple[str, ...], FieldInfo]]:
    found: dict[tuple[str, str], tuple[list[str], FieldInfo]] = {}
    for kind in TASKS:
        for name, field in task_fields(kind).items():
            found.setdefault((name, repr(field)), ([], field))[0].append(kind)
    first = {name: place for place, (name, _) in reversed(list(enumerate(found)))}
    groups = (*OF_TASK, "attack")
    for (name, _), (kinds, field) in sorted(
        found.items(), key=lambda item: (groups.index(item[0][0].partition(".")[0]), first[item[0][0]])
    ):
        yield name, tuple(kinds), field


def field_names() -> list[str]:
    """Return every group and field as a dotted name, by the short names."""
    found: dict[str, None] = {}
    for name, _, _ in every_field():
        parts = name.split(".")
        found.update(dict.fromkeys(".".join(parts[: i + 1]) for i in range(len(parts))))
    return list(found)


def described() -> list[tuple[str, str]]:
    """Return ``(short name, default and description)`` of every settable field; kinds of task are named where not all have it."""
    told = []
    for name, kinds, field in every_field():
        value = "instruction" if name == "task" else default(field)
        of = "" if len(kinds) == len(TASKS) else f"[{', '.join(kinds)}] "
        told.append((name, f"{json.dumps(value, ensure_ascii=False)}  {of}{field.description or ''}"))
    return told
