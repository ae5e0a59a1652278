"""What the finished runs of a study say: read from their folders, looked up by what the study calls them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from undertow.core.errors import UserError
from undertow.metrics.bsnr import phases
from undertow.metrics.intervals import Rate
from undertow.runs.records import read_json, read_jsonl
from undertow_reproductions.estimate import Estimate, of_rates

Metric = Literal["ma", "asr", "ftr"]
METRICS: tuple[Metric, ...] = ("ma", "asr", "ftr")
#: What the two panels of a figure show.
PANELS: tuple[Metric, ...] = ("asr", "ma")


@dataclass(frozen=True)
class Signal:
    """BSNR of one round with the middle of its permutation null; fields as in :class:`undertow.metrics.bsnr.Bsnr`."""

    round: int
    value: float
    null_low: float | None
    null_median: float | None
    null_high: float | None
    p: float | None
    permutations: int


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        axes: what the study calls it.
        ma, asr, ftr: of the last round.
        signals: the rounds in which BSNR is defined, ascending.
        seconds: the rounds took.
        untouched: the same three of the base before any tuning; empty where a run does not say.
        course: MA, ASR and FTR of every measured round, 0 being the untouched base; empty where a run does not say.
        attacked: of each round in which someone attacked: ``participants``, ``attackers`` and the reports of attack and
            ``defenses``.
        reports: what attack and defenses reported in the last round.
    """

    axes: dict[str, Any]
    ma: Rate
    asr: Rate
    ftr: Rate
    signals: tuple[Signal, ...]
    seconds: float
    untouched: dict[Metric, Rate] = field(default_factory=dict)
    course: dict[int, dict[Metric, Rate]] = field(default_factory=dict)
    attacked: tuple[dict[str, Any], ...] = ()
    reports: tuple[dict[str, Any], ...] = ()

    @property
    def peak(self) -> tuple[int, float] | None:
        """Round and height of the highest 3-round moving average of BSNR; None without any."""
        found = phases([signal.value for signal in self.signals])
        if found["peak"] is None or found["peak_value"] is None:
            return None
        return self.signals[int(found["peak"])].round, float(found["peak_value"])


def read_run(folder: Path, axes: dict[str, Any]) -> Run:
    """Read a finished run directory.

    Raises:
        UserError: a file is missing or damaged.
    """
    result = read_json(folder / "result.json")
    try:
        ma, asr, ftr = (_rate(result[name]) for name in METRICS)
        untouched = {name: _rate(result["untouched"][name]) for name in METRICS}
        signals = []
        course: dict[int, dict[Metric, Rate]] = {}
        attacked: list[dict[str, Any]] = []
        reports: tuple[dict[str, Any], ...] = ()
        for row in read_jsonl(folder / "rounds.jsonl"):
            if row["ma"] is not None:
                course[int(row["round"])] = {name: _rate(row[name]) for name in METRICS}
            reports = tuple(row.get("defenses") or ())
            if row.get("attackers"):
                attacked.append({name: row[name] for name in ("round", "participants", "attackers", "defenses")})
            found = next(iter((row.get("bsnr") or {}).values()), None)
            if found and found["value"] is not None:
                low, median, high, p = (found[name] for name in ("null_low", "null_median", "null_high", "p"))
                signals.append(Signal(int(row["round"]), float(found["value"]), low, median, high, p, int(found["permutations"])))
        return Run(axes, ma, asr, ftr, tuple(signals), float(result["seconds"]), untouched, course, tuple(attacked), reports)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: damaged ({type(error).__name__}: {error}); remove that folder and run the same command"
        ) from error


def _rate(told: dict[str, Any]) -> Rate:
    return Rate(int(told["hits"]), int(told["n"]))


class Results:
    """The finished runs of one study, and what failed."""

    def __init__(self, runs: Iterable[Run] = (), failed: Iterable[tuple[str, str]] = ()) -> None:
        """``failed``: names and one-line errors of the runs that ended with one."""
        self.runs = tuple(runs)
        self.failed = tuple(failed)

    def where(self, **axes: Any) -> list[Run]:
        """Return the runs with these values, in the order of their seeds."""
        found = [run for run in self.runs if all(run.axes.get(key) == value for key, value in axes.items())]
        return sorted(found, key=lambda run: int(run.axes.get("seed", 0)))

    def values(self, axis: str, **axes: Any) -> list[Any]:
        """Return the different values of an axis, numbers ascending, all else in the order of the runs."""
        found = list(dict.fromkeys(run.axes[axis] for run in self.where(**axes) if axis in run.axes))
        return sorted(found) if all(isinstance(value, int | float) for value in found) else found

    def share(self, metric: Metric, **axes: Any) -> Estimate | None:
        """Return the mean of a share over the seeds of one point; None without a run."""
        return of_rates([getattr(run, metric) for run in self.where(**axes)])

    def shares(self, metric: Metric, axis: str, **axes: Any) -> list[tuple[float, Estimate]]:
        """Return a curve: (value of the axis, share) for each value that has a run."""
        points = [(value, self.share(metric, **axes, **{axis: value})) for value in self.values(axis, **axes)]
        return [(float(value), share) for value, share in points if share is not None]

    def by_seed(self, axis: str, **axes: Any) -> dict[int, Sequence[Run]]:
        """Return for each seed its runs, ordered by an axis."""
        chosen = self.where(**axes)
        seeds = sorted({int(run.axes["seed"]) for run in chosen})
        return {seed: sorted((r for r in chosen if r.axes["seed"] == seed), key=lambda r: float(r.axes[axis])) for seed in seeds}
