"""Configs of format 0, where data, model, synthetic and the backdoor stood outside the task, the same for every kind.

They are read for one minor release more. Digests are made of the same flat values still, so that runs and cells keep their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from undertow.config.names import OF_BACKDOOR, OF_TASK, default, kinds_with, leaves, long_name, put, short_name, task_fields
from undertow.config.tasks import TASKS
from undertow.core.errors import warn_converted

#: What format 0 refused outside its own kind of task. It stays where it is, and is refused still.
_REFUSED = {
    *("data.names", "data.test_path", "model.networks", "synthetic.generator", "synthetic.fusion"),
    *("attack.trigger_words", "attack.num_triggers", "attack.position", "attack.target", "attack.target_text"),
}


def is_old(values: Mapping[str, Any]) -> bool:
    """Tell whether plain values are of format 0 and say something that stands elsewhere now."""
    if "format" in values or not isinstance(values.get("task", ""), str):
        return False
    attack, federation = values.get("attack"), values.get("federation")
    return (
        any(group in values for group in ("task", *OF_TASK))
        or (isinstance(attack, Mapping) and any(name in attack for name in OF_BACKDOOR))
        or (isinstance(federation, Mapping) and "engine" in federation)
    )


def convert(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of format 1, and warn in one line of what was converted and what left out.

    Left out is what the task does not use and format 0 ignored in silence: where it is at its default nothing is said, otherwise it
    is named in the line.
    """
    kind = str(values.get("task", "instruction")).replace("_", "-")
    found = {name: value for name, value in values.items() if name not in ("task", *OF_TASK)}
    moved = {name: values[name] for name in OF_TASK if name in values}
    if isinstance(attack := values.get("attack"), Mapping):
        found["attack"] = {name: value for name, value in attack.items() if name not in OF_BACKDOOR}
        moved["attack"] = {name: value for name, value in attack.items() if name in OF_BACKDOOR}
    if isinstance(data := moved.get("data"), Mapping) and isinstance(data.get("partition"), str):
        moved["data"] = {**data, "partition": {"kind": data["partition"]}}
    dropped: dict[str, Any] = {}
    found["task"] = {"kind": kind}
    for name, value in leaves(moved):
        if kind == "next-word" and name == "data.partition.kind" and value == "iid":
            continue  # every author is a client there, whatever was said
        if kind not in TASKS or name in task_fields(kind) or not kinds_with(name):
            put(found, long_name(name), value)
        elif value != _defaults()[name]:
            if name in _REFUSED:
                put(found, long_name(name), value)
            else:
                dropped[name] = value
    if isinstance(federation := values.get("federation"), Mapping):
        found["federation"] = {name: value for name, value in federation.items() if name != "engine"}
        if federation.get("engine", "local") != "local":
            dropped["federation.engine"] = federation["engine"]
    told = f"; left out, for task={kind} does not use it: " if dropped else ""
    warn_converted(
        "a config of format 0 was read as format 1, in which data, model, synthetic and the backdoor are parts of `task`"
        + told
        + ", ".join(f"{name} = {value!r}" for name, value in dropped.items())
    )
    return {"format": 1, **found}


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat values of a task (plain, of format 1) that are not at format 0's defaults, as format 0 spelled them."""
    found: dict[str, Any] = {}
    for name, value in leaves({"task": values}):
        short = short_name(name)
        if short == "task":
            if value != "instruction":
                found["task"] = value.replace("-", "_")
        elif value != _defaults()[short]:
            put(found, short, value)
    return found


@cache
def _defaults() -> dict[str, Any]:
    """Format 0's defaults, by short names: those of the first kind of task that has the field."""
    return {name: default(field) for kind in reversed(TASKS) for name, field in task_fields(kind).items()}
