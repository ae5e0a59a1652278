"""A repeated attack: a fixed share of malicious clients, sampled at random like all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, style
from undertow_reproductions.estimate import Estimate, Verdict, of_numbers, overall
from undertow_reproductions.htb_cases import POISONING, REPLACEMENT, SOURCE, Case, after
from undertow_reproductions.htb_single import above_zero
from undertow_reproductions.results import Results, Run
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import told

ATTACKS = (REPLACEMENT, POISONING)


@dataclass(frozen=True)
class Repeated:
    """A task under a repeated attack.

    Attributes:
        case: its attacks; ``at`` is the first round in which the malicious clients attack whenever they are sampled.
        rounds: how many rounds they do so.
        shares: of malicious clients.
    """

    case: Case
    rounds: int
    shares: tuple[float, ...]

    @property
    def last(self) -> int:
        """The last round."""
        return self.case.at + self.rounds - 1


def wish(one: Repeated, attack: str, share: float, seed: int) -> Wish:
    """Return a run in which a share of the clients attacks from a round on."""
    changes = {
        **one.case.held,
        "attack.client_share": share,
        "attack.kind": one.case.kinds[attack],
        "attack.rounds": [],
        "attack.start": one.case.at,
        "federation.rounds": one.last,
        "measure.every": 1,
    }
    return Wish({"task": one.case.name, "attack": attack, "share": share, "seed": seed}, changes, one.case.setting)


def mean_asr(one: Repeated, runs: Sequence[Run]) -> list[tuple[int, float]]:
    """Return (seed, mean ASR over the rounds of the attack) of each run."""
    found = []
    for run in runs:
        values = [run.course[t]["asr"].value for t in range(one.case.at, one.last + 1) if t in run.course]
        known = [value for value in values if value is not None]
        if known:
            found.append((int(run.axes["seed"]), sum(known) / len(known)))
    return found


def mean(results: Results, one: Repeated, attack: str, share: float) -> Estimate | None:
    """Return ASR averaged over the rounds of the attack, then over the seeds; None without a run."""
    return of_numbers([value for _, value in mean_asr(one, results.where(task=one.case.name, attack=attack, share=share))])


def gap(results: Results, one: Repeated, share: float) -> Estimate | None:
    """Return the mean ASR of replacement less that of data poisoning at one share, paired by seed; None without a pair."""
    ours, theirs = (dict(mean_asr(one, results.where(task=one.case.name, attack=attack, share=share))) for attack in ATTACKS)
    return of_numbers([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def make(tasks: Sequence[Repeated]) -> Study:
    """Return the study of repeated attacks on these tasks."""

    return Study(
        id="repeated",
        title="A repeated attack by a share of the clients",
        caption=(
            "From a round on some clients are malicious; they attack whenever they are sampled. ASR averaged over the rounds of "
            "the attack, against their share, for model replacement and for data poisoning by the same clients."
        ),
        wishes=partial(_wishes, tasks),
        tables=partial(_tables, tasks),
        plots=partial(_plots, tasks),
        claims=tuple(
            Claim(f"{one.case.name}: model replacement is ahead of data poisoning at every share", SOURCE, _ahead(one))
            for one in tasks
        ),
        deviations=(
            "The paper's own shares and values stand in a figure whose numbers could not be read; none are shown.",
            "Where several malicious clients are sampled into one round, one trains and each sends its part of the replacement. "
            "In instruction tuning all clients take part in every round, so that every share attacks in each.",
            "Judged by the bootstrap over seeds alone, paired by seed.",
        ),
        apart=True,
    )


def _wishes(tasks: Sequence[Repeated], lab: Lab, results: Results) -> list[Wish]:
    """Both attacks at every share with every seed."""
    return [wish(one, attack, share, seed) for one in tasks for attack in ATTACKS for share in one.shares for seed in lab.seeds]


def _tables(tasks: Sequence[Repeated], results: Results) -> list[Table]:
    """One row for each task, attack and share."""
    rows: list[tuple[Value, ...]] = []
    for one in tasks:
        for attack in ATTACKS:
            for share in results.values("share", task=one.case.name, attack=attack):
                axes = {"task": one.case.name, "attack": attack, "share": share}
                over = mean(results, one, attack, share)
                ends = (after(results, metric, one.last, **axes) for metric in ("asr", "ma"))
                rows.append((one.case.name, attack, share, told(over), *ends, one.rounds))
    columns = (
        "task",
        "attack",
        "share of clients",
        "mean ASR over the attack",
        "ASR at the end",
        "MA at the end",
        "rounds",
    )
    return [Table("repeated", columns, rows)]


def _plots(tasks: Sequence[Repeated], results: Results) -> list[Plot]:
    """Mean ASR against the share, one panel a task."""
    if not results.runs:
        return []
    with style():
        figure, panels = canvas(len(tasks))
        figure.set_size_inches(max(6.2, 4.0 * len(tasks)), 3.6)
        for axes, one in zip(panels, tasks, strict=True):
            shown = []
            for i, attack in enumerate(ATTACKS):
                points = [(share, mean(results, one, attack, share)) for share in one.shares]
                shown.append(Curve(attack, [(share, found) for share, found in points if found], STYLES[i]))
            curves(axes, shown, "share of malicious clients", "mean ASR over the attack")
            axes.set_xscale("log")
            axes.set_xticks(one.shares, [f"{100 * share:g} %" for share in one.shares])
            axes.minorticks_off()
            axes.set_title(one.case.name, fontsize=10.5)
        legend(figure, panels)
        label = "Mean ASR over the rounds of a repeated attack against the share of malicious clients, beside data poisoning"
        return [export(figure, "repeated", label)]


def _ahead(one: Repeated) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        found = [(share, gap(results, one, share)) for share in one.shares]
        if not any(each for _, each in found):
            return Verdict("undecided", "no run")
        words = [
            f"share {share:g}: {told(mean(results, one, REPLACEMENT, share))} against {told(mean(results, one, POISONING, share))}"
            for share, _ in found
        ]
        return Verdict(overall([above_zero(each) for _, each in found]), "; ".join(words))

    return judge
