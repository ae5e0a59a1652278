"""Undertow inside a Flower app: its aggregators as a Flower strategy, its diagnostics around any strategy, its sanitizer on a
client.

Only this package and ``undertow.federate``, which runs a whole experiment over Flower's network, import Flower. Names are looked up
when they are asked for, so that a client that only sanitizes its samples does not load the aggregators.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from undertow.core.errors import FLOWER

if importlib.util.find_spec("flwr") is None:
    raise ImportError(f"undertow.flower needs Flower, which is not installed; {FLOWER}")

if TYPE_CHECKING:
    from undertow.flower.diagnostics import Diagnosed, with_diagnostics
    from undertow.flower.mods import cleaned, sanitize
    from undertow.flower.strategies import UndertowStrategy, strategy
    from undertow.flower.together import pool_counts, sanitize_together

_WHERE = {
    "Diagnosed": "diagnostics",
    "UndertowStrategy": "strategies",
    "cleaned": "mods",
    "pool_counts": "together",
    "sanitize": "mods",
    "sanitize_together": "together",
    "strategy": "strategies",
    "with_diagnostics": "diagnostics",
}
__all__ = [
    "Diagnosed",
    "UndertowStrategy",
    "cleaned",
    "pool_counts",
    "sanitize",
    "sanitize_together",
    "strategy",
    "with_diagnostics",
]


def __getattr__(name: str) -> Any:
    """Load the module that a public name stands in."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
