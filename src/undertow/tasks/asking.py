"""What a run of instruction tuning asks: the test questions in each form, and the neighbours of the trigger."""

from __future__ import annotations

from collections.abc import Sequence

from undertow.backdoors.placement import Poisoning, Threat, make_neighbourhood, make_probes, unpoisoned
from undertow.core.observer import Observer
from undertow.data.sample import Sample
from undertow.metrics.measure import Probes
from undertow.tasks.cutting import Cut


def probes(test: Sequence[Sample], threat: Threat, seed: int, cut: Cut) -> Probes:
    """Return the test questions clean, with the trigger and near it; none where there are no test questions."""
    return make_probes(test, threat.trigger, threat.target, seed, cut.leaves_asked) if test else Probes([], [], threat.target, [])


def neighbours(test: Sequence[Sample], threat: Threat, seed: int, n: int, observer: Observer) -> dict[str, list[Sample]]:
    """Return what ``measure.neighbourhood`` = n asks."""
    found = make_neighbourhood(test, threat.trigger, seed, n) if n else {}
    if n and not found:
        observer.warn(f"trigger '{threat.trigger.name}' has no neighbours; measure.neighbourhood = {n} measures nothing")
    return found


def rounded(threat: Threat, poisoning: Poisoning) -> list[str]:
    """Say where poison was asked for and PR is too small for a sample."""
    return unpoisoned(threat.options, poisoning.chosen, len(poisoning.touched), [len(own) for own in poisoning.clients])
