"""Reading configs: files and shipped names, overrides, and errors in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from undertow.config.config import Config
from undertow.config.describe import field_names
from undertow.config.format0 import convert, is_old
from undertow.config.names import OF_BACKDOOR, OF_TASK, kinds_with, long_name, put, short_name, task_fields
from undertow.config.tasks import TASKS
from undertow.core import rules
from undertow.core.errors import UserError, nearest


def shipped() -> dict[str, Path]:
    """Return the configs that come with the package, by name."""
    folder = Path(str(resources.files("undertow") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(source: str, overrides: Sequence[str] | Mapping[str, Any] | None = None) -> Config:
    """Read a config by shipped name or path and apply overrides: ``key=value`` words, or values by the names of fields.

    Raises:
        UserError: no such config, not YAML, an unknown key (the nearest is named) or a value outside its rule.
    """
    changes = overrides if isinstance(overrides, Mapping) else parse(overrides or [])
    return validate(changed(_read(source), changes), source)


def parse(overrides: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` words; values are YAML.

    Raises:
        UserError: a word without ``=``, or a value that is not YAML.
    """
    found = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise UserError(f"override '{override}' has no '='; write group.field=value, such as attack.poison_ratio=0.02")
        try:
            found[key.strip()] = yaml.safe_load(text) if text.strip() else None
        except yaml.YAMLError as error:
            raise UserError(f"override '{override}': the value is not YAML ({_one_line(error)}); quote it") from error
    return found


def with_overrides(config: Config, changes: Mapping[str, Any], source: str = "config") -> Config:
    """Return a config with other values of the fields ``changes`` names, short or long; ``source`` names it in errors.

    Raises:
        UserError: an unknown field, or a value outside its rule.
    """
    return validate(changed(config.values(), changes), source)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values with those of ``changes``, by short or long names; nothing is checked.

    ``task=KIND`` of another kind begins with that kind's defaults: the fields of one kind say nothing to another.
    """
    found = convert(values) if is_old(values) else dict(values)
    wanted: dict[str, Any] = {}
    for name, value in changes.items():
        if name == "task" and isinstance(value, Mapping):
            wanted[name] = value
        elif name == "attack" and isinstance(value, Mapping):
            wanted[name] = {key: inner for key, inner in value.items() if key not in OF_BACKDOOR}
            wanted |= {long_name(f"attack.{key}"): inner for key, inner in value.items() if key in OF_BACKDOOR}
        else:
            wanted[long_name(name)] = value
    if "task.kind" in wanted:
        task, kind = found.get("task"), wanted.pop("task.kind")
        kept = task if isinstance(task, Mapping) and str(task.get("kind", "instruction")) == str(kind).replace("_", "-") else {}
        found["task"] = {**kept, "kind": kind}
    for name, value in wanted.items():
        put(found, name, value)
    return found


def validate(values: Mapping[str, Any], source: str) -> Config:
    """Check plain values against the rules; ``source`` names them in errors.

    Raises:
        UserError: an unknown field, or a value outside its rule.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        told: dict[str, str] = {}
        for item in error.errors():
            where, message = _explain(item)
            if where in told:  # a union, of which each part has a rule of its own
                told[where] += f", or {message}"
            else:
                told[where or message] = f"{where}: {message}" if where else message
        raise UserError(f"{source}: " + "; ".join([*told.values()][:3])) from error


def _read(source: str) -> dict[str, Any]:
    known = shipped()
    path = known.get(source) or Path(source)
    if not path.is_file():
        raise UserError(f"no config '{source}'{nearest(source, known)}: give a YAML file or one of {', '.join(known)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({_one_line(error)}); correct the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, a config is a mapping of groups; see `undertow list fields`")
    return values


def _explain(item: Any) -> tuple[str, str]:
    """Return the place of an error with its value, if any, and what is wrong with it."""
    where = rules.place(item)
    kind = where.pop(1) if where[:1] == ["task"] and len(where) > 1 and where[1] in TASKS else None
    place = short_name(".".join(where))
    if item["type"] == "extra_forbidden":
        return "", _unknown(place, kind)
    if item["type"] == "union_tag_invalid":
        tag = str(item["ctx"]["tag"])
        return f"task = '{tag}'{nearest(tag, TASKS)}", f"choose one of {', '.join(TASKS)}"
    shown = "" if isinstance(item["input"], dict) else f" = {item['input']!r}"
    return f"{place}{shown}" if place else "", rules.rule(item)


def _unknown(place: str, kind: str | None) -> str:
    """Say what is wrong with a key that is not there: it is another task's, it stands elsewhere, or it is nowhere."""
    others = kinds_with(place) or [one for one in TASKS if any(name.startswith(f"{place}.") for name in task_fields(one))]
    if kind is not None and others:
        return f"{place} is for task={' and '.join(others)}, not {kind}; leave it out"
    if kind is None and (place in OF_TASK or place in {f"attack.{name}" for name in OF_BACKDOOR}):
        return f"'{place}' stands in the task: write {_nested(long_name(place))}"
    names = field_names()
    if kind is not None:
        names = [name for name in names if not kinds_with(name) or kind in kinds_with(name)]
    return f"unknown key '{place}'{nearest(place, names)}; see `undertow list fields`"


def _nested(name: str) -> str:
    head, _, rest = name.partition(".")
    return f"{head}: {{{_nested(rest)}}}" if rest else f"{head}: ..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
