"""ASR and MA of every rule at every share of poisoned clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from undertow_reproductions.defense_rules import NONE, by_mean_asr, config_of, label, mean_asr, source
from undertow_reproductions.drawing import canvas_for_rows, export, heatmap, style
from undertow_reproductions.estimate import Estimate, Verdict, at_most, of_differences, of_rates, overall
from undertow_reproductions.results import METRICS, PANELS, Metric, Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import paired, wide

#: ASR up to which a rule keeps the backdoor out; ours.
BAR = 0.05


#: What is to be known of the aggregators.
AGGREGATION = (
    "A rule at its defaults knows nothing of rho. Where it takes a number of bad clients it is what K allows: for 10 clients 3 "
    "(`krum`, `multi-krum`, `dnc`, `nnm`), 1 (`bulyan`) and 2 at each end (`trimmed-mean`). Beyond that no rule promises anything.",
    (
        "`fltrust` gets as its trusted client one whose data is clean at every rho below 1, which no server could know; its data "
        "is not averaged."
    ),
    "`weak-dp` alone clips to the median length; with `sigma=0.001` it adds noise, on the laptop's base a sixth of the first "
    "round's step in length and half of the last one's.",
    "Pre-aggregators stand before one rule each: `nnm` before the trimmed mean, `bucketing` before the geometric median.",
)


def wish(rule: str, rho: float, seed: int, lab: Lab) -> Wish:
    """Return the run of a rule at one rho; 0 is no poison."""
    attack = {"attack.client_share": rho} if rho else {"attack.kind": "none"}
    defenses = config_of(rule, seed, lab.clients, lab.trusted(seed))
    return Wish({"rule": rule, "rho": rho, "seed": seed}, {**attack, "defenses": defenses})


def untouched(results: Results, metric: Metric) -> Estimate | None:
    """Return a share of the base before any tuning, over the seeds; the same for all rules."""
    first = {run.axes["seed"]: run.untouched for run in reversed(results.runs) if metric in run.untouched}
    return of_rates([first[seed][metric] for seed in sorted(first)])


def loss(results: Results, rule: str, rho: float) -> Estimate | None:
    """Return the MA that a rule loses against no defense at the same rho; None without both runs."""
    return of_differences(paired(results, "ma", {"rule": NONE}, {"rule": rule}, rho=rho))


def make(rules: Sequence[str], kind: str = "aggregator", deviations: tuple[str, ...] = AGGREGATION) -> Study:
    """Return the study of these rules; ``kind``: what they are, in one noun; ``deviations``: what is to be known of them."""

    def wishes(lab: Lab, results: Results) -> list[Wish]:
        """Every rule at every rho with every seed."""
        return [wish(rule, rho, seed, lab) for seed in lab.seeds for rho in lab.grids.matrix_rhos for rule in rules]

    return Study(
        id="matrix",
        title=f"Every {kind.rpartition(' ')[2]} at every share of poisoned clients",
        caption=(
            f"ASR and MA after the last round for each {kind} (those with the lowest mean ASR first) and each share rho of "
            "poisoned clients; rho 0 is no poison at all."
        ),
        wishes=wishes,
        tables=lambda results: _tables(results, rules),
        plots=lambda results: _plots(results, rules),
        claims=tuple(
            Claim(f"`{label(rule)}` keeps ASR at or below 5 % at every rho", source(rule), _keeps(rule)) for rule in rules
        ),
        deviations=deviations,
        apart=True,
    )


def _tables(results: Results, rules: Sequence[str]) -> list[Table]:
    """ASR with FTR beside it for reading, one row a point with intervals, and one row a run."""
    ordered, rhos = by_mean_asr(results, rules), results.values("rho")
    names = ("rule", "mean ASR, %", *(f"rho {rho:g}" for rho in rhos))
    pivot: list[tuple[Value, ...]] = []
    for rule in ordered:
        mean = mean_asr(results, rule)
        pivot.append((label(rule), "-" if mean is None else f"{100 * mean:.1f}", *(_pair(results, rule, rho) for rho in rhos)))
    points: list[tuple[Value, ...]] = [("untouched base", None, *(untouched(results, metric) for metric in METRICS))]
    points += [
        (label(rule), rho, *(results.share(metric, rule=rule, rho=rho) for metric in METRICS))
        for rule in ordered
        for rho in results.values("rho", rule=rule)
    ]
    runs = [
        (
            label(rule),
            run.axes["rho"],
            run.axes["seed"],
            *(x for m in METRICS for x in (getattr(run, m).hits, getattr(run, m).n)),
            run.seconds,
        )
        for rule in rules
        for rho in rhos
        for run in results.where(rule=rule, rho=rho)
    ]
    counts = tuple(f"{metric.upper()} {part}" for metric in METRICS for part in ("hits", "n"))
    return [
        Table("matrix-asr-ftr", names, pivot),
        Table("matrix", ("rule", "rho", "MA", "ASR", "FTR"), points if results.runs else []),
        Table("runs", ("rule", "rho", "seed", *counts, "seconds"), runs),
    ]


def _pair(results: Results, rule: str, rho: float) -> str:
    asr, ftr = results.share("asr", rule=rule, rho=rho), results.share("ftr", rule=rule, rho=rho)
    return "-" if asr is None or ftr is None else f"{100 * asr.value:.1f} / {100 * ftr.value:.1f}"


def _plots(results: Results, rules: Sequence[str]) -> list[Plot]:
    """A heatmap of ASR and one of MA, the rules in the same order."""
    ordered, rhos = by_mean_asr(results, rules), results.values("rho")
    if not ordered:
        return []
    found = []
    for metric in PANELS:
        shares = [[results.share(metric, rule=rule, rho=rho) for rho in rhos] for rule in ordered]
        values = [[None if share is None else share.value for share in row] for row in shares]
        with style():
            figure, axes = canvas_for_rows(len(ordered), len(rhos))
            heatmap(
                figure,
                axes,
                values,
                [label(rule) for rule in ordered],
                [f"{rho:g}" for rho in rhos],
                best=0.0 if metric == "asr" else 1.0,
                name=metric.upper(),
            )
            axes.set_xlabel("share of poisoned clients (ρ); 0 is no poison")
            told = (
                f"{metric.upper()} in percent for each rule and each share of poisoned clients, the rules with the lowest "
                "mean ASR on top; dark is good"
            )
            found.append(export(figure, f"matrix-{metric}", told))
    return found


def _keeps(rule: str) -> Callable[[Results], Verdict]:
    """Return the judge of one rule: up to which rho it holds, what happens there, and what it loses of MA."""

    def judge(results: Results) -> Verdict:
        points = [(rho, share) for rho, share in results.shares("asr", "rho", rule=rule) if rho > 0]
        if not points:
            return Verdict("undecided", "no run")
        answers = [at_most(share, BAR) for _, share in points]
        held = next((i for i, answer in enumerate(answers) if answer != "holds"), len(points))
        if held == len(points):
            words = [f"holds at every rho tried, {points[0][0]:g} to {points[-1][0]:g}"]
        else:
            rho, share = points[held]
            words = [f"holds up to rho {points[held - 1][0]:g}"] if held else []
            words.append(f"{'fails' if answers[held] == 'does not hold' else 'undecided'} at rho {rho:g}, ASR {wide(share)}")
            fails = [(rho, share) for (rho, share), answer in zip(points, answers, strict=True) if answer == "does not hold"]
            if answers[held] == "undecided" and fails:
                words.append(f"fails at rho {fails[0][0]:g}, ASR {wide(fails[0][1])}")
            again = [f"{rho:g}" for (rho, _), answer in zip(points[held:], answers[held:], strict=True) if answer == "holds"]
            words += [f"holds again at rho {', '.join(again)}"] if again else []
        return Verdict(overall(answers), "; ".join([*words, *_besides(results, rule)]))

    return judge


def _besides(results: Results, rule: str) -> list[str]:
    """Say what a rule costs, and its largest FTR."""
    words = []
    if rule != NONE:
        clean = loss(results, rule, 0.0)
        words += [f"MA lost without poison {wide(clean, points=True)}"] if clean else []
        losses = [(found, rho) for rho in results.values("rho", rule=rule) if rho > 0 and (found := loss(results, rule, rho))]
        if losses:
            most, rho = max(losses, key=lambda pair: pair[0].value)
            words.append(f"with poison at most {wide(most, points=True)}, at rho {rho:g}")
    worst = max(results.shares("ftr", "rho", rule=rule), key=lambda point: point[1].value)
    return [*words, f"FTR at most {wide(worst[1])}"]
