"""The recommended default, under the name ``undertow``: the one place where it is put together."""

from __future__ import annotations

from undertow.config import Defense as Options
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("undertow", source="ours; docs/federated-sanitization.md")
def undertow() -> list[Options]:
    """The recommended default: federated sanitization with its recommended rules."""
    return [Options(name="sanitization")]
