"""Do training-time backstops keep the backdoor out, or do they only delay it?"""

from __future__ import annotations

from collections.abc import Callable

from undertow_reproductions.defense_matrix import wish
from undertow_reproductions.defense_rules import NONE, label, source
from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, style
from undertow_reproductions.estimate import Estimate, Verdict, at_most, of_rates, overall
from undertow_reproductions.results import METRICS, PANELS, Metric, Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import wide

RULES = (NONE, "bounded-loss", "gated-loss", "dece", "undertow")
#: ASR up to which the backdoor counts as kept out.
BAR = 0.01
PR = 0.1
#: Measurements over a run.
_TIMES = 10


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """Every defense at rho 1, measured ten times over a long run on all test questions."""
    rounds = lab.grids.long_rounds
    often = {
        "federation.rounds": rounds,
        "measure.every": max(1, rounds // _TIMES),
        "measure.samples": lab.questions,
        "attack.poison_ratio": PR,
    }
    plain = [wish(rule, 1.0, seed, lab) for seed in lab.seeds for rule in RULES]
    return [Wish(one.axes, {**one.changes, **often}) for one in plain]


def at(results: Results, rule: str, metric: Metric) -> list[tuple[int, Estimate]]:
    """Return (round, share over the seeds) for each measured round of a defense, the untouched base being round 0."""
    runs = results.where(rule=rule)
    rounds = sorted({number for run in runs for number in run.course})
    shares = [(number, of_rates([run.course[number][metric] for run in runs if number in run.course])) for number in rounds]
    return [(number, share) for number, share in shares if share is not None]


def tables(results: Results) -> list[Table]:
    """One row for each defense and measured round."""
    rows: list[tuple[Value, ...]] = []
    for rule in RULES:
        columns = [at(results, rule, metric) for metric in METRICS]
        rows += [(label(rule), points[0][0], *(share for _, share in points)) for points in zip(*columns, strict=True)]
    return [Table("lasting", ("defense", "round", "MA", "ASR", "FTR"), rows)]


def plots(results: Results) -> list[Plot]:
    """ASR and MA against the round."""
    if not results.runs:
        return []
    with style():
        figure, panels = canvas(2)
        for axes, metric in zip(panels, PANELS, strict=True):
            shown = [
                Curve(label(rule), [(float(number), share) for number, share in at(results, rule, metric)], STYLES[i])
                for i, rule in enumerate(RULES)
            ]
            curves(axes, shown, "round", metric.upper())
        legend(figure, panels)
        return [export(figure, "lasting", "ASR and MA against the round under each defense, rho 1")]


def _keeps(rule: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        points = [(number, share) for number, share in at(results, rule, "asr") if number]
        if not points:
            return Verdict("undecided", "no run")
        answers = [at_most(share, BAR) for _, share in points]
        worst = max(points, key=lambda point: (point[1].value, point[0]))
        words = [f"ASR at most {wide(worst[1])}, in round {worst[0]}", f"in the last, {points[-1][0]}, {wide(points[-1][1])}"]
        above = next((number for (number, _), answer in zip(points, answers, strict=True) if answer == "does not hold"), None)
        words += [f"first above the bar in round {above}"] if above else []
        quality = at(results, rule, "ma")
        return Verdict(overall(answers), "; ".join([*words, f"MA in the last {wide(quality[-1][1])}"]))

    return judge


STUDY = Study(
    id="lasting",
    title="Do backstops only delay the backdoor?",
    caption=f"ASR and MA every tenth of a long run, with natural trigger and appended target, every client poisoned, PR {PR:g}.",
    wishes=wishes,
    tables=tables,
    plots=plots,
    claims=tuple(
        Claim(f"`{label(rule)}` keeps ASR at or below 1 % in every measured round", source(rule), _keeps(rule)) for rule in RULES
    ),
    deviations=(
        "A statement asks ten rounds at once, each judged by its own interval: one that holds was above the bar in none of them.",
        "Between two measured rounds ASR is not known.",
    ),
    apart=True,
)
