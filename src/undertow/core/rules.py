"""What is wrong with a value, in plain words: pydantic's errors as rules that say what to give."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

#: By the kind of pydantic's error, up to its last part; ``{}`` takes the bound or the choices.
_RULES = {
    "int": "give a whole number",
    "float": "give a number",
    "finite_number": "give a finite number",
    "bool": "give true or false",
    "string": "give a text",
    "list": "give a list",
    "tuple": "give a list",
    "dict": "give a mapping",
    "model": "give a mapping of fields",
    "model_attributes": "give a mapping of fields",
    "mapping": "give a mapping",
    "none_required": "leave it out",
    "missing": "it is missing",
    "extra_forbidden": "there is no such field",
    "literal_error": "choose {}",
    "enum": "choose {}",
    "greater_than_equal": "give {} or more",
    "greater_than": "give more than {}",
    "less_than_equal": "give {} or less",
    "less_than": "give less than {}",
    "json_invalid": "it is not JSON",
}
_BOUNDS = ("ge", "gt", "le", "lt", "expected")
#: What pydantic puts into the place of an error to tell the parts of a union apart.
_PARTS = ("literal[", "list[", "function-", "constrained-")
_KINDS = frozenset({"int", "float", "bool", "str", "none"})


def rule(item: Mapping[str, Any]) -> str:
    """Say what to give in place of the value of one of ``ValidationError.errors()``; of choices the nearest is named."""
    kind, context = str(item["type"]), item.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", item["msg"]))
    found = _RULES.get(kind) or next((told for name, told in _RULES.items() if kind.startswith(f"{name}_")), None)
    if found is None:
        return str(item["msg"]).replace("Input should be", "it must be")
    bound = next((context[name] for name in _BOUNDS if name in context), "")
    told = found.format(f"{bound:g}" if isinstance(bound, float) else bound)
    choices = str(bound).replace(" or ", ", ").replace("'", "").split(", ") if "choose" in found else []
    close = difflib.get_close_matches(str(item["input"]), choices, n=1)
    return f"{told} (did you mean '{close[0]}'?)" if close else told


def place(item: Mapping[str, Any]) -> list[str]:
    """Return the names that lead to the value, without those of a union's parts."""
    return [str(part) for part in item["loc"] if str(part) not in _KINDS and not str(part).startswith(_PARTS)]


def first_rule(error: ValidationError) -> str:
    """Return the first place that is wrong with its value and its rule: ``round = -1: give 0 or more``."""
    item = error.errors()[0]
    where = ".".join(place(item)) or "record"
    shown = "" if isinstance(item["input"], dict) else f" = {item['input']!r:.60}"
    return f"{where}{shown}: {rule(item)}"
