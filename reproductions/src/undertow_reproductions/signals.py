"""The BSNR curves that Fig. 4a, Fig. 4b and the hypotheses read: the runs, and what is said of a curve's shape.

All peaks are those of a 3-round moving average (:func:`undertow.metrics.bsnr.phases`), so the earliest possible one is
in round 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from undertow.metrics.intervals import Rate
from undertow_reproductions.estimate import Answer, Estimate, bootstrap, of_numbers
from undertow_reproductions.results import Results, Run
from undertow_reproductions.study import Lab, Wish

#: A PR so small that no client's share of it is a whole sample: the groups are drawn, the data stays clean.
NO_SAMPLE = 1e-6

#: Below this share of the peak a first or last round counts as lower: a bar of ours.
LOWER = 0.8

#: Relabellings from which on p = 2 / (1 + relabellings), the smallest with equal groups, is at most 0.05.
_ENOUGH = 39


def wishes(lab: Lab) -> list[Wish]:
    """Every rho with clients in both groups, at the setting's own steps."""
    return [
        Wish({"kind": "poison", "rho": rho, "seed": seed}, {"attack.scope": "client", "attack.client_share": rho})
        for seed in lab.seeds
        for rho in lab.grids.rhos
        if 0 < round(rho * lab.clients) < lab.clients
    ]


def slow_wishes(lab: Lab) -> list[Wish]:
    """Some rho again with smaller steps and more rounds, to see a rise that large steps leap over."""
    changes = {"attack.scope": "client", "training.lr": lab.grids.slow_lr, "federation.rounds": lab.grids.slow_rounds}
    return [
        Wish({"kind": "slow", "rho": rho, "seed": seed}, {**changes, "attack.client_share": rho})
        for seed in lab.seeds
        for rho in lab.grids.slow_rhos
    ]


def null_wishes(lab: Lab) -> list[Wish]:
    """Clients chosen as poisoned whose data nobody touched."""
    return [
        Wish(
            {"kind": "no poison", "rho": rho, "seed": seed},
            {"attack.scope": "client", "attack.client_share": rho, "attack.poison_ratio": NO_SAMPLE},
        )
        for seed in lab.seeds
        for rho in lab.grids.null_rhos
    ]


def heights(results: Results, kind: str) -> dict[int, list[tuple[float, float]]]:
    """Return for each seed (rho, BSNR at the peak)."""
    return _peaks(results, kind, lambda round, height: height)


def rounds(results: Results, kind: str) -> dict[int, list[tuple[float, float]]]:
    """Return for each seed (rho, round of the peak)."""
    return _peaks(results, kind, lambda round, height: float(round))


def _peaks(results: Results, kind: str, take: Callable[[int, float], float]) -> dict[int, list[tuple[float, float]]]:
    found = {}
    for seed, runs in results.by_seed("rho", kind=kind).items():
        found[seed] = [(float(run.axes["rho"]), take(*run.peak)) for run in runs if run.peak is not None]
    return found


def means(curves: dict[int, list[tuple[float, float]]]) -> list[tuple[float, Estimate]]:
    """Return (rho, mean over seeds)."""
    places = sorted({rho for points in curves.values() for rho, _ in points})
    found = [(rho, of_numbers([y for points in curves.values() for x, y in points if x == rho])) for rho in places]
    return [(rho, mean) for rho, mean in found if mean is not None]


def best_rho(curves: dict[int, list[tuple[float, float]]]) -> tuple[float, np.ndarray] | None:
    """Return the rho with the highest mean, and the same over resampled seeds; None unless every seed has every rho."""
    places = sorted({rho for points in curves.values() for rho, _ in points})
    table = [[dict(points).get(rho) for rho in places] for points in curves.values()]
    if not places or any(value is None for row in table for value in row):
        return None
    values = np.array(table, dtype=float)  # [seeds, rhos]
    found = bootstrap(len(values), lambda draw: places[int(values[draw].mean(axis=0).argmax())], "best rho")
    return places[int(values.mean(axis=0).argmax())], found


@dataclass(frozen=True)
class Shape:
    """How often a curve rises to its peak and decays after it.

    Attributes:
        curves: how many there are (seeds times rho).
        rose: those whose first round lies below ``LOWER`` of the peak.
        decayed: those whose last round does.
        significant: rounds with p <= 0.05 against the permutation null, of ``testable`` rounds where p can be that small.
        testable: see there.
    """

    curves: int
    rose: int
    decayed: int
    significant: int
    testable: int


def shape(runs: list[Run]) -> Shape:
    """Count rises, decays and rounds above the null.

    With few relabellings p cannot be small: rho 0.1 of ten clients leaves nine others, so that p >= 0.1 always. Such
    rounds are not testable.
    """
    known = [(run, run.peak[1]) for run in runs if run.peak is not None]
    tested = [signal.p for run, _ in known for signal in run.signals if signal.p is not None and signal.permutations >= _ENOUGH]
    return Shape(
        curves=len(known),
        rose=sum(run.signals[0].value < LOWER * height for run, height in known),
        decayed=sum(run.signals[-1].value < LOWER * height for run, height in known),
        significant=sum(p <= 0.05 for p in tested),
        testable=len(tested),
    )


def mostly(hits: int, of: int) -> Answer:
    """Judge "in most curves" by the Wilson interval of the share: above one half, below it, or neither."""
    rate = Rate(hits, of)
    if rate.low is None or rate.high is None:
        return "undecided"
    return "holds" if rate.low > 0.5 else "does not hold" if rate.high < 0.5 else "undecided"


def over_null(run: Run) -> float | None:
    """Return the largest ratio of BSNR to the null's median over the rounds; None without a null."""
    ratios = [signal.value / signal.null_median for signal in run.signals if signal.null_median]
    return max(ratios, default=None)
