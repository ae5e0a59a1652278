"""Hypotheses I and II, BSNR against rho and rho squared, the phases against the null, and BSNR without any backdoor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from undertow_reproductions import fig4b, signals
from undertow_reproductions.drawing import STYLES, canvas, export, legend, style
from undertow_reproductions.estimate import Answer, Verdict, of_numbers, overall
from undertow_reproductions.results import Results, Run
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Wish
from undertow_reproductions.trend import Powers, compare_powers
from undertow_reproductions.wording import number

#: What counts as "around rho 0.5".
AROUND = (0.4, 0.6)

#: AIC difference from which on one of two models is clearly better (Burnham and Anderson 2002: about 6 to 10).
CLEAR = 6.0


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """The runs of Fig. 4a, and runs in which the groups are drawn but nobody holds poison."""
    return signals.wishes(lab) + signals.slow_wishes(lab) + signals.null_wishes(lab)


def tables(results: Results) -> list[Table]:
    """The model comparison, and the height over the null with and without poison."""
    fits = []
    for kind in ("poison", "slow"):
        found = powers(results, kind)
        if found is not None:
            fits.append((kind, found.points, found.exponent, found.aic, *found.errors))
    columns = ("steps", "points", "exponent of rho", "AIC of rho² less AIC of rho", "error of rho", "error of rho²")
    rows = []
    for kind in ("poison", "slow", "no poison"):
        for rho in results.values("rho", kind=kind):
            runs = results.where(kind=kind, rho=rho)
            found_shape = signals.shape(runs)
            peaks = of_numbers([run.peak[1] for run in runs if run.peak])
            ratios = of_numbers([ratio for run in runs if (ratio := signals.over_null(run)) is not None])
            rows.append((kind, rho, peaks, ratios, found_shape.significant, found_shape.testable))
    heads = ("runs", "rho", "largest BSNR", "largest ratio to the null's median", "rounds with p <= 0.05", "testable rounds")
    return [Table("hypotheses-powers", columns, fits), Table("hypotheses-null", heads, rows)]


def powers(results: Results, kind: str) -> Powers | None:
    """Compare rho with rho squared on the peaks at rho up to 0.5."""
    return compare_powers(
        {seed: [(x, y) for x, y in points if x <= 0.5] for seed, points in signals.heights(results, kind).items()}
    )


def plots(results: Results) -> list[Plot]:
    """Largest BSNR against rho on two logarithmic axes with both powers, and without poison."""
    found = signals.heights(results, "poison")
    points = [(x, y) for line in found.values() for x, y in line if y > 0]
    if not points:
        return []
    with style():
        figure, (axes,) = canvas()
        axes.loglog(
            [x for x, _ in points],
            [y for _, y in points],
            color=STYLES[0]["color"],
            marker="o",
            linestyle="",
            label="with poison, each seed",
        )
        clean = [(x, y) for line in signals.heights(results, "no poison").values() for x, y in line if y > 0]
        if clean:
            axes.loglog(
                [x for x, _ in clean],
                [y for _, y in clean],
                color=STYLES[1]["color"],
                marker="s",
                linestyle="",
                label="groups drawn, no poison",
            )
        below = np.array([(x, y) for x, y in points if x <= 0.5])
        if len(below):
            xs = np.array([below[:, 0].min(), 0.5])
            for power, dashes in ((1, "-"), (2, "--")):
                height = float(np.exp((np.log(below[:, 1]) - power * np.log(below[:, 0])).mean()))
                name = "ρ" if power == 1 else "ρ²"
                axes.loglog(xs, height * xs**power, color="#6b6b6b", linestyle=dashes, label=f"fit of {name} up to 0.5")
        axes.set_xlabel("share of poisoned clients (ρ)")
        axes.set_ylabel("largest BSNR")
        ticks = sorted({x for x, _ in points + clean})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        legend(figure, [axes], columns=2)
        return [
            export(figure, "hypotheses", "Largest BSNR against the share of poisoned clients, with fits of rho and rho squared")
        ]


def first(results: Results) -> Verdict:
    """Judge hypothesis I by where the highest mean of the largest BSNR lies over resampled seeds."""
    found = signals.best_rho(signals.heights(results, "poison"))
    if found is None:
        return Verdict("undecided", "not every seed has every rho")
    best, draws = found
    inside = float(np.mean((draws >= AROUND[0] - 1e-9) & (draws <= AROUND[1] + 1e-9)))
    answer: Answer = "holds" if inside >= 0.95 else "does not hold" if inside <= 0.05 else "undecided"
    counts = {float(rho): float(np.mean(draws == rho)) for rho in sorted(set(draws.tolist()))}
    shown = ", ".join(f"{rho:g} in {100 * share:.0f} %" for rho, share in counts.items())
    return Verdict(
        answer, f"largest at rho {best:g}; over resampled seeds: {shown} (around 0.5 means {AROUND[0]:g} to {AROUND[1]:g})"
    )


def second(results: Results) -> Verdict:
    """Judge hypothesis II by the slope of the round of the peak over rho."""
    verdict = fig4b.sooner(results)
    slow = signals.rounds(results, "slow")
    return (
        verdict if not slow else Verdict(verdict.answer, f"{verdict.evidence}; with smaller steps: {fig4b.falling(slow).evidence}")
    )


def proportional(results: Results) -> Verdict:
    """Judge BSNR ~ rho by the free exponent and by AIC against rho squared."""
    found = powers(results, "poison")
    if found is None:
        return Verdict("undecided", "fewer than two seeds, or fewer than two rho up to 0.5")
    return judge(found)


def judge(found: Powers) -> Verdict:
    """Say whether the exponent is 1: its interval holds 1 and not 2 and AIC clearly prefers rho, or it does not hold 1."""
    low, high = found.exponent.low, found.exponent.high
    one, two = low <= 1 <= high, low <= 2 <= high
    answer: Answer = "undecided"
    if one and not two and found.aic > CLEAR:
        answer = "holds"
    elif not one or found.aic < -CLEAR:
        answer = "does not hold"
    better = "rho" if found.aic > 0 else "rho²"
    clearly = "clearly" if abs(found.aic) > CLEAR else "not clearly"
    return Verdict(
        answer,
        f"exponent of rho {number(found.exponent)} from {found.points} points up to rho 0.5; {better} fits better, {clearly} "
        f"(AIC differs by {abs(found.aic):.1f}); error of log BSNR on the seed left out {found.errors[0]:.2f} for rho and "
        f"{found.errors[1]:.2f} for rho²",
    )


def over_chance(results: Results) -> Verdict:
    """Judge that BSNR with poison stands out from shuffled labels: in most rounds where p can be that small."""
    found = signals.shape(results.where(kind="poison"))
    return Verdict(
        signals.mostly(found.significant, found.testable), f"p <= 0.05 in {found.significant} of {found.testable} testable rounds"
    )


def silent(results: Results) -> Verdict:
    """Judge BSNR without any backdoor: it should not stand out, p <= 0.05 in about one round of twenty.

    Rounds of one run are not independent, and one run in twenty stands out by chance in most of them: the bar is one in five.
    """
    runs = results.where(kind="no poison")
    found = signals.shape(runs)
    if not found.testable:
        return Verdict("undecided", "no testable round")
    share = found.significant / found.testable
    answer: Answer = "holds" if share <= 0.2 else "does not hold"
    return Verdict(
        answer, f"p <= 0.05 in {found.significant} of {found.testable} rounds; {_heights(runs, results.where(kind='poison'))}"
    )


def _heights(clean: Sequence[Run], poisoned: Sequence[Run]) -> str:
    parts = []
    for name, runs in (
        ("without poison", clean),
        ("with poison at the same rho", [r for r in poisoned if r.axes["rho"] in {c.axes["rho"] for c in clean}]),
    ):
        parts.append(f"largest BSNR {name} {number(of_numbers([run.peak[1] for run in runs if run.peak]))}")
    return "; ".join(parts)


def phases(results: Results) -> Verdict:
    """Judge rise, peak and decay with the test of Fig. 4a, at both sizes of steps where both were run."""
    parts: list[Answer] = []
    words = []
    for kind, name in (("poison", "main setting's steps"), ("slow", "smaller steps")):
        found = signals.shape(results.where(kind=kind))
        if found.curves:
            parts.append(overall([signals.mostly(found.rose, found.curves), signals.mostly(found.decayed, found.curves)]))
            words.append(
                f"{name}: {found.rose} of {found.curves} curves rise, {found.decayed} decay, "
                f"{found.significant} of {found.testable} testable rounds lie above the null"
            )
    return Verdict(overall(parts), "; ".join(words) or "no run")


STUDY = Study(
    id="hypotheses",
    title="Hypotheses I and II, and what BSNR measures",
    caption="The two hypotheses of section 3.5 as tests, the growth of BSNR below rho 0.5, its phases against shuffled labels, "
    "and BSNR where the groups are drawn but nobody holds poison.",
    wishes=wishes,
    tables=tables,
    plots=plots,
    claims=(
        Claim("Hypothesis I: the peak BSNR is largest around rho 0.5", "3.5", first),
        Claim("Hypothesis II: the round of the peak is inversely related to rho", "3.5", second),
        Claim("BSNR is proportional to rho for rho <= 0.5", "3.5", proportional),
        Claim("Rise, peak and decay", "3.4", phases),
        Claim("Implied: with poison BSNR stands out from chance (p <= 0.05 in most testable rounds)", "3.3", over_chance),
        Claim("Implied: without any backdoor BSNR does not stand out (p <= 0.05 in at most one round of five)", "3.3", silent),
    ),
    deviations=(
        "Eq. 3 squares the projection, so with a task direction orthogonal to the backdoor BSNR grows with rho², not rho; both "
        "are fitted, on the logarithm, since BSNR spans decades.",
        "Intervals are bootstrapped over seeds; with three seeds they reach about from the lowest to the highest seed.",
    ),
)
