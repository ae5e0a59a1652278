"""Everything registered, one line each with its source: what ``undertow list`` prints."""

from __future__ import annotations

from undertow.attacks.contract import ATTACKS
from undertow.backdoors.pattern import BACKDOORS
from undertow.backdoors.patterns.semantic_images import PREDICATES
from undertow.backdoors.target import TARGETS
from undertow.backdoors.trigger import TRIGGERS
from undertow.config import described, shipped
from undertow.core.errors import UserError, nearest
from undertow.core.registry import Registry
from undertow.data.load import DATASETS
from undertow.data.population import POPULATIONS
from undertow.data.template import TEMPLATES
from undertow.defenses.registry import DEFENSES
from undertow.generators.contract import GENERATORS
from undertow.metrics.scoring import SCORINGS
from undertow.models.net import NETS

_REGISTRIES: dict[str, Registry] = {
    "datasets": DATASETS,
    "populations": POPULATIONS,
    "networks": NETS,
    "templates": TEMPLATES,
    "generators": GENERATORS,
    "attacks": ATTACKS,
    "triggers": TRIGGERS,
    "targets": TARGETS,
    "backdoors": BACKDOORS,
    "predicates": PREDICATES,
    "scorings": SCORINGS,
    "defenses": DEFENSES,
}


def listing(kind: str | None = None) -> dict[str, list[tuple[str, str]]]:
    """Return ``{kind: [(name, summary and source)]}`` for one kind or all methods; ``fields`` are the config's.

    Raises:
        UserError: no such kind.
    """
    kinds = ["configs", *_REGISTRIES, "fields"]
    if kind is not None and kind not in kinds:
        raise UserError(f"unknown kind '{kind}'{nearest(kind, kinds)}: choose one of {', '.join(kinds)}")
    found: dict[str, list[tuple[str, str]]] = {}
    for name in [kind] if kind else kinds[:-1]:
        if name == "fields":
            found[name] = described()
            continue
        if name == "configs":
            found[name] = [
                (stem, path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")) for stem, path in shipped().items()
            ]
        else:
            found[name] = [
                (entry.name, f"{_REGISTRIES[name].summary(entry)} [{entry.source}]") for entry in _REGISTRIES[name].entries()
            ]
    return found
