"""Fig. 5: MA and ASR against rho under no defense, Krum, FreqFed and FoundationFL."""

from __future__ import annotations

from typing import Any

from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, style
from undertow_reproductions.estimate import Answer, Estimate, Verdict, at_least, at_most, of_numbers, overall
from undertow_reproductions.results import METRICS, PANELS, Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Wish
from undertow_reproductions.wording import difference, told

ARMS = {
    "none": "no defense",
    "krum": "Krum",
    "freqfed": "FreqFed",
    "foundationfl-median": "FoundationFL (median)",
    "foundationfl-trimmed": "FoundationFL (trimmed mean)",
    "yours": "set by --set defenses",
}


def defense(arm: str, rho: float, clients: int) -> list[dict[str, Any]]:
    """Return the config's ``defenses`` of an arm.

    Krum's f is the number of poisoned clients, but never more than 2f + 2 < K allows (the paper
    leaves f open); FoundationFL trims as many on each side.
    """
    f = max(1, min(round(rho * clients), (clients - 3) // 2))
    return {
        "none": [],
        "krum": [{"name": "krum", "params": {"f": f}}],
        "freqfed": [{"name": "freqfed", "params": {}}],
        "foundationfl-median": [{"name": "foundationfl", "params": {"base": "median"}}],
        "foundationfl-trimmed": [{"name": "foundationfl", "params": {"base": "trimmed-mean", "b": f}}],
    }[arm]


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """The undefended curve of Fig. 2b and, on a coarser grid, one for each rule."""
    found = []
    for seed in lab.seeds:
        for arm in ARMS:
            if arm == "yours" and not lab.defenses:
                continue
            for rho in lab.grids.rhos if arm == "none" else lab.grids.defended_rhos:
                rule = lab.defenses if arm == "yours" else defense(arm, rho, lab.clients)
                changes = {"attack.scope": "client", "attack.client_share": rho, "defenses": rule}
                found.append(Wish({"defense": arm, "rho": rho, "seed": seed}, changes))
    return found


def tables(results: Results) -> list[Table]:
    """One row for each rule and rho."""
    rows = [
        (ARMS[arm], rho, *(results.share(metric, defense=arm, rho=rho) for metric in METRICS))
        for arm in ARMS
        for rho in results.values("rho", defense=arm)
    ]
    return [Table("fig5", ("defense", "rho", "MA", "ASR", "FTR"), rows)]


def plots(results: Results) -> list[Plot]:
    """ASR and MA against rho, one curve a rule."""
    arms = [arm for arm in ARMS if results.where(defense=arm)]
    with style():
        figure, (left, right) = canvas(2)
        for axes, metric in zip((left, right), PANELS, strict=True):
            shown = [Curve(ARMS[arm], results.shares(metric, "rho", defense=arm), STYLES[i]) for i, arm in enumerate(arms)]
            curves(axes, shown, "share of poisoned clients (ρ)", metric.upper())
        legend(figure, [left, right])
        return [export(figure, "fig5", "ASR and MA against the share of poisoned clients under each defense")]


def _asr(results: Results, arms: tuple[str, ...], keep: tuple[float, float]) -> list[tuple[str, float, Estimate]]:
    low, high = keep
    return [
        (arm, rho, share)
        for arm in arms
        for rho in results.values("rho", defense=arm)
        if low <= rho <= high and (share := results.share("asr", defense=arm, rho=rho)) is not None
    ]


def _shown(points: list[tuple[str, float, Estimate]]) -> str:
    return "; ".join(f"{ARMS[arm]}, rho {rho:g}: {told(share)}" for arm, rho, share in points) or "no run"


def hold(results: Results) -> Verdict:
    """Judge that both filters keep ASR near 0 while poisoned clients are few."""
    points = _asr(results, ("krum", "freqfed"), (0.0, 0.3))
    return Verdict(overall([at_most(share, 0.05) for *_, share in points]), f"ASR {_shown(points)}")


def fail(results: Results) -> Verdict:
    """Judge that both filters fail once poisoned clients are the majority."""
    points = _asr(results, ("krum", "freqfed"), (0.7, 1.0))
    return Verdict(overall([at_least(share, 0.6) for *_, share in points]), f"ASR {_shown(points)}")


def no_help(results: Results) -> Verdict:
    """Judge that FoundationFL lowers ASR by at most 5 points anywhere, a bar of ours."""
    answers: list[Answer] = []
    words = []
    for arm in ("foundationfl-median", "foundationfl-trimmed"):
        for rho in results.values("rho", defense=arm):
            gain = difference(results, "asr", {"defense": "none"}, {"defense": arm}, rho=rho)
            answers.append(at_most(gain, 0.05))
            words.append(f"{ARMS[arm]}, rho {rho:g}: {told(gain, points=True)}")
    return Verdict(overall(answers), f"ASR taken away: {'; '.join(words) or 'no run'}")


def cost(results: Results) -> Verdict:
    """Judge the mean loss of MA over rho: 1 to 2 points in the paper; the bar is 0 to 4 points."""
    answers: list[Answer] = []
    words = []
    none = {(run.axes["rho"], run.axes["seed"]): run.ma.value for run in results.where(defense="none")}
    for arm in ("krum", "freqfed"):
        losses: dict[int, list[float]] = {}
        for run in results.where(defense=arm):
            before, after = none.get((run.axes["rho"], run.axes["seed"])), run.ma.value
            if before is not None and after is not None:
                losses.setdefault(run.axes["seed"], []).append(before - after)
        mean = of_numbers([sum(values) / len(values) for values in losses.values()])
        answers.append("undecided" if mean is None else overall([at_most(mean, 0.04), at_least(mean, 0.0)]))
        words.append(f"{ARMS[arm]} {told(mean, points=True)}")
    return Verdict(overall(answers), f"MA lost against no defense, mean over rho: {'; '.join(words)}")


STUDY = Study(
    id="fig5",
    title="Figure 5: defenses",
    caption="MA and ASR against rho at PR 0.1 under no defense, Krum, FreqFed and FoundationFL.",
    wishes=wishes,
    tables=tables,
    plots=plots,
    claims=(
        Claim("Below rho 0.5 Krum and FreqFed hold ASR close to 0 (bar: at most 5 % for rho <= 0.3)", "4.4, Fig. 5", hold),
        Claim("Once poisoned clients dominate, Krum and FreqFed fail (bar: at least 60 % for rho >= 0.7)", "4.4, Fig. 5", fail),
        Claim(
            "FoundationFL does not help: ASR rises as without a defense (bar of ours: at most 5 points less)",
            "4.4, Fig. 5",
            no_help,
        ),
        Claim("Krum and FreqFed cost 1 to 2 points of MA on average (bar of ours: 0 to 4)", "4.4", cost),
    ),
    deviations=(
        "The paper gives no parameters. Krum takes f = number of poisoned clients, capped where 2f + 2 < K ends (3 of 10 clients); "
        "FoundationFL is run with both of its base rules, the trimmed mean with f as its trim.",
        "The paper describes Krum as gradient clustering; ours is Krum as published by Blanchard et al.",
    ),
)
