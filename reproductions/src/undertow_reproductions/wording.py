"""Words and numbers that several studies share."""

from __future__ import annotations

from typing import Any

from undertow.metrics.intervals import Rate
from undertow_reproductions.estimate import Estimate, of_numbers
from undertow_reproductions.results import Metric, Results

#: The paper's two triggers (4.1), as shown.
METHODS = {"natural": "natural (Firstly)", "badnets": "badnets (cf mn bb tq)"}


def told(found: Estimate | None, *, points: bool = False) -> str:
    """Say a share in percent with its interval over seeds; ``points``: a difference of shares, with its sign."""
    if found is None:
        return "no run"
    sign, unit = ("+", "points") if points else ("", "%")
    if found.seeds < 2:
        return f"{100 * found.value:{sign}.1f} {unit} (one seed)"
    return f"{100 * found.value:{sign}.1f} {unit} ({100 * found.low:{sign}.1f} to {100 * found.high:{sign}.1f})"


def wide(found: Estimate | None, *, points: bool = False) -> str:
    """Say a share or a difference as :func:`told`, with the wider of both intervals: with one seed there is no other."""
    if found is None:
        return "no run"
    sign, unit = ("+", "points") if points else ("", "%")
    return f"{100 * found.value:{sign}.1f} {unit} ({100 * found.least:{sign}.1f} to {100 * found.most:{sign}.1f})"


def number(found: Estimate | None) -> str:
    """Say a number with its interval over seeds."""
    return "no run" if found is None else f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"


def difference(results: Results, metric: Metric, before: dict[str, Any], after: dict[str, Any], **axes: Any) -> Estimate | None:
    """Return ``before - after`` of a share, paired by seed; None without a pair.

    Args:
        before, after: the axes in which the two points differ.
        axes: those they share.
    """
    pairs = [(old.value, new.value) for old, new in paired(results, metric, before, after, **axes)]
    return of_numbers([a - b for a, b in pairs if a is not None and b is not None])


def paired(results: Results, metric: Metric, before: dict[str, Any], after: dict[str, Any], **axes: Any) -> list[tuple[Rate, Rate]]:
    """Return (share before, share after) of each seed that has both; arguments as :func:`difference`."""
    old = {run.axes["seed"]: run for run in results.where(**axes, **before)}
    new = {run.axes["seed"]: run for run in results.where(**axes, **after)}
    return [(getattr(old[seed], metric), getattr(new[seed], metric)) for seed in old if seed in new]
