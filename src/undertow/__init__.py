"""Undertow: backdoors that hide in federated instruction tuning, measured, reproduced and defended against.

    import undertow

    run = undertow.run("demo", federation__rounds=5)
    run.result.asr.value
    run.to_frame()

``__all__`` is the public surface, with :mod:`undertow.defenses` for the aggregators; other modules may change without notice. A
name is imported when it is first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from undertow.core.errors import UserError
from undertow.core.version import __version__

# OpenMP threads that spin for long while they wait steal the cores of every other process (seen: 14 times slower), threads
# that never spin sleep and wake at every small product (seen: 1.2 times slower). Must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from undertow import defenses
    from undertow.api import (
        aggregate,
        collect,
        evaluate,
        list_methods,
        load_config,
        load_run,
        run,
        sanitizer,
        scan,
        sweep,
    )
    from undertow.config import Config
    from undertow.federation.adapter_audit import audit
    from undertow.runs.run import Run

__all__ = [
    "Config",
    "Run",
    "UserError",
    "__version__",
    "aggregate",
    "audit",
    "collect",
    "defenses",
    "evaluate",
    "list_methods",
    "load_config",
    "load_run",
    "run",
    "sanitizer",
    "scan",
    "sweep",
]

_ELSEWHERE = {"audit": "undertow.federation.adapter_audit", "Config": "undertow.config", "Run": "undertow.runs.run"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "defenses":
        return importlib.import_module("undertow.defenses")
    found = getattr(importlib.import_module(_ELSEWHERE.get(name, "undertow.api")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
