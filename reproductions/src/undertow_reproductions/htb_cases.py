"""What the studies of "How To Backdoor Federated Learning" share: tasks, attacks, and reading a run around its attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, style
from undertow_reproductions.estimate import Estimate, of_numbers, of_rates
from undertow_reproductions.results import PANELS, Metric, Results
from undertow_reproductions.study import Plot, Value, Wish

#: Names of the attacks, as axes and as shown.
REPLACEMENT, CONSTRAINED, POISONING = "model replacement", "constrain-and-scale", "data poisoning"
SOURCE = "Bagdasaryan et al., abstract"


@dataclass(frozen=True)
class Case:
    """A task with one attack in one round.

    Attributes:
        name: as shown.
        setting: index of the profile's setting.
        at: round of the attack.
        before, after: rounds shown around it; the run ends with the last of them.
        held: which clients are malicious and what it holds, the same for all kinds of attack; dotted names.
        kinds: ``attack.kind`` of each attack by name, data poisoning among them.
        bar: ASR right after the round; ours.
    """

    name: str
    setting: int
    at: int
    before: int
    after: int
    held: Mapping[str, Any]
    kinds: Mapping[str, str]
    bar: float

    @property
    def malicious(self) -> list[str]:
        """The attacks that send something forged."""
        return [name for name in self.kinds if name != POISONING]

    @property
    def rounds(self) -> range:
        """The rounds shown."""
        return range(max(0, self.at - self.before), self.at + self.after + 1)


def single(case: Case, attack: str, seed: int, **changes: Any) -> Wish:
    """Return a run with one attack in the case's round, measured after every round.

    Args:
        case: the task.
        attack: a name of ``case.kinds``.
        seed: of the run.
        changes: over it, dots of names written as two underscores.
    """
    fixed = {
        **case.held,
        "attack.kind": case.kinds[attack],
        "attack.rounds": [case.at],
        "federation.rounds": case.at + case.after,
        "measure.every": 1,
    }
    return Wish(
        {"task": case.name, "attack": attack, "seed": seed},
        {**fixed, **{name.replace("__", "."): value for name, value in changes.items()}},
        case.setting,
    )


def after(results: Results, metric: Metric, number: int, **axes: Any) -> Estimate | None:
    """Return a share in one round, over the seeds whose runs measured it; None without any."""
    return of_rates([run.course[number][metric] for run in results.where(**axes) if number in run.course])


def around(results: Results, metric: Metric, case: Case, **axes: Any) -> list[tuple[float, Estimate]]:
    """Return (round - round of the attack, share) over the rounds of a case that were measured; 0 is right after the attack."""
    found = [(float(number - case.at), after(results, metric, number, **axes)) for number in case.rounds]
    return [(place, share) for place, share in found if share is not None]


def lost(results: Results, at: int, **axes: Any) -> Estimate | None:
    """Return MA before round ``at`` less MA right after it, paired by seed; None without both."""
    pairs = [
        (run.course[at - 1]["ma"].value, run.course[at]["ma"].value)
        for run in results.where(**axes)
        if {at - 1, at} <= set(run.course)
    ]
    return of_numbers([old - new for old, new in pairs if old is not None and new is not None])


def ahead(results: Results, number: int, one: dict[str, Any], other: dict[str, Any]) -> Estimate | None:
    """Return ASR of one point less that of another in a round, paired by seed; None without a pair."""
    theirs = {run.axes["seed"]: run.course[number]["asr"].value for run in results.where(**other) if number in run.course}
    ours = {run.axes["seed"]: run.course[number]["asr"].value for run in results.where(**one) if number in run.course}
    gaps = [(value, theirs[seed]) for seed, value in ours.items() if seed in theirs]
    return of_numbers([a - b for a, b in gaps if a is not None and b is not None])


def rows_around(results: Results, case: Case, **axes: Any) -> list[tuple[Value, ...]]:
    """Return (round, MA, ASR, FTR) for each measured round of a case."""
    found: list[tuple[Value, ...]] = []
    for number in case.rounds:
        shares = [after(results, metric, number, **axes) for metric in ("ma", "asr", "ftr")]
        if shares[0] is not None:
            found.append((number, *shares))
    return found


def plot_around(
    name: str, label: str, panels: Sequence[tuple[str, Case, Mapping[str, dict[str, Any]]]], results: Results
) -> Plot | None:
    """Draw ASR (solid in the upper row of a reader's eye: left) and MA per round for several cases; None without a run.

    Args:
        name, label: of the figure.
        panels: title, case, and axes by name of the curve; one figure row of ASR and MA each is drawn side by side.
        results: read from.
    """
    drawn = [panel for panel in panels if any(results.where(**axes) for axes in panel[2].values())]
    if not drawn:
        return None
    with style():
        figure, axes = canvas(len(drawn) * len(PANELS))
        figure.set_size_inches(4.2 * len(drawn) * len(PANELS), 3.6)
        for i, (title, case, named) in enumerate(drawn):
            for j, metric in enumerate(PANELS):
                panel = axes[i * len(PANELS) + j]
                shown = [
                    Curve(each, around(results, metric, case, **where), {**STYLES[k], "markersize": 3.5})
                    for k, (each, where) in enumerate(named.items())
                ]
                curves(panel, shown, "rounds after the attack", metric.upper())
                panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
                panel.set_title(title, fontsize=10.5)
        legend(figure, axes)
        return export(figure, name, label)
