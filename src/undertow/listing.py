"""Everything that a config can name: what ``undertow.list_methods`` returns and ``undertow list`` prints."""

from __future__ import annotations

from dataclasses import dataclass

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

#: Every registry, by what ``undertow list`` calls its methods.
REGISTRIES: dict[str, Registry] = {
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


@dataclass(frozen=True)
class Method:
    """One entry.

    Attributes:
        kind: ``configs``, ``datasets``, ..., ``defenses`` or ``fields``.
        name: as a config names it.
        summary: what it is, in one line; of a field its default and its meaning.
        source: where it comes from, paper and section; empty for configs and fields.
    """

    kind: str
    name: str
    summary: str
    source: str = ""


#: What can be asked for, in the order of the list.
KINDS = ("configs", *REGISTRIES, "fields")


def list_methods(kind: str | None = None) -> list[Method]:
    """Return the entries of one kind, named in the plural or the singular, or those of all but ``fields``, which are the config's.

    Raises:
        UserError: no such kind.
    """
    if f"{kind}s" in KINDS:
        kind = f"{kind}s"
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind '{kind}'{nearest(kind, KINDS)}: choose one of {', '.join(KINDS)}")
    return [method for name in ([kind] if kind else KINDS[:-1]) for method in _entries(name)]


def _entries(kind: str) -> list[Method]:
    if kind == "fields":
        return [Method(kind, name, text) for name, text in described()]
    if kind == "configs":
        first = {name: path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for name, path in shipped().items()}
        return [Method(kind, name, text) for name, text in first.items()]
    registry = REGISTRIES[kind]
    return [Method(kind, entry.name, registry.summary(entry), entry.source) for entry in registry.entries()]
