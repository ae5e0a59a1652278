"""What the studies of foundation-model-integrated federations share: tasks, attacks, and runs of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow.core.registry import defense_list
from undertow_reproductions.defense_rules import NONE
from undertow_reproductions.estimate import Estimate, of_numbers
from undertow_reproductions.results import Results
from undertow_reproductions.study import Wish
from undertow_reproductions.wording import difference

#: Names of the attacks, as axes and as shown.
CLEAN, NOVEL, POISONING, REPLACEMENT = "no attack", "synthetic data", "data poisoning", "model replacement"
#: How data are dealt.
IID, SKEWED = "IID", "non-IID"
#: Name of the row without defense.
OPEN = "no defense"
SOURCE = "Li, Wu, Wang 2024, abstract"
BI_LI = "Bi and Li 2024, abstract"


@dataclass(frozen=True)
class Case:
    """A task with its attacks and defenses.

    Attributes:
        name: as shown.
        setting: index of the profile's setting.
        skewed: changes that deal the data as the lineage's non-IID split does.
        attacks: changes by name, :data:`CLEAN` among them.
        defenses: in the short form of ``undertow sweep``, by name, :data:`OPEN` first.
        bounds: variants of activation bounds, by name, in the same form.
        other: a second network for the federation with two.
    """

    name: str
    setting: int
    skewed: Mapping[str, Any]
    attacks: Mapping[str, Mapping[str, Any]]
    defenses: Mapping[str, str]
    bounds: Mapping[str, str]
    other: str


def wish(case: Case, attack: str, short: str, seed: int, axes: Mapping[str, Any], changes: Mapping[str, Any]) -> Wish:
    """Return a run of a case.

    Args:
        case: the task.
        attack: a name of ``case.attacks``.
        short: the defense, in short form.
        seed: of the run.
        axes: further names of the run.
        changes: over the attack's.
    """
    return Wish(
        {"task": case.name, "attack": attack, **axes, "seed": seed},
        {**case.attacks[attack], "defenses": defense_list(short), **changes},
        case.setting,
    )


def dealt(case: Case, partition: str) -> Mapping[str, Any]:
    """Return the changes of a way to deal the data."""
    return case.skewed if partition == SKEWED else {}


def cut(results: Results, open_axes: Mapping[str, Any], axes: Mapping[str, Any]) -> Estimate | None:
    """Return the share of its ASR that an attack loses, 1 - ASR / ASR undefended, over seeds where it had any; None without one."""
    before = {run.axes["seed"]: run.asr.value for run in results.where(**open_axes)}
    pairs = [(run.asr.value, before.get(run.axes["seed"])) for run in results.where(**axes)]
    return of_numbers([1 - now / old for now, old in pairs if now is not None and old])


def lost(results: Results, clean: Mapping[str, Any], axes: Mapping[str, Any]) -> Estimate | None:
    """Return the MA of one point less that of another, paired by seed."""
    return difference(results, "ma", dict(clean), dict(axes))


__all__ = ["NONE", "Case", "cut", "dealt", "lost", "wish"]
