"""Fig. 4b: the largest BSNR of a run and the round it is reached in, against the share of poisoned clients."""

from __future__ import annotations

from undertow_reproductions import signals
from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, style
from undertow_reproductions.estimate import Answer, Verdict, of_numbers, overall
from undertow_reproductions.results import Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Wish
from undertow_reproductions.trend import linear_share, slope
from undertow_reproductions.wording import number


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """The runs of Fig. 4a at the main setting's steps."""
    return signals.wishes(lab)


def tables(results: Results) -> list[Table]:
    """Peak and round of the peak for each rho."""
    high, when = dict(signals.means(signals.heights(results, "poison"))), dict(signals.means(signals.rounds(results, "poison")))
    return [Table("fig4b", ("rho", "largest BSNR", "round of it"), [(rho, high[rho], when[rho]) for rho in high])]


def plots(results: Results) -> list[Plot]:
    """Both against rho."""
    high, when = signals.means(signals.heights(results, "poison")), signals.means(signals.rounds(results, "poison"))
    if not high:
        return []
    with style():
        figure, (left, right) = canvas(2)
        curves(left, [Curve("largest BSNR", high, STYLES[0])], "share of poisoned clients (ρ)", "largest BSNR", percent=False)
        curves(
            right, [Curve("round of the largest BSNR", when, STYLES[1])], "share of poisoned clients (ρ)", "round", percent=False
        )
        left.axvline(0.5, color="#6b6b6b", linewidth=1, linestyle=":", label="ρ = 0.5")
        left.set_ylim(bottom=0)
        right.set_ylim(bottom=0)
        legend(figure, [left, right])
        return [export(figure, "fig4b", "Largest BSNR and the round of it against the share of poisoned clients")]


def both_sides(results: Results) -> Verdict:
    """Judge that the largest BSNR rises up to rho 0.5 and falls from there, by the slopes of each seed."""
    found = signals.heights(results, "poison")
    answers: list[Answer] = []
    words = []
    for name, side, sign in (("up to", lambda rho: rho <= 0.5, 1.0), ("from", lambda rho: rho >= 0.5, -1.0)):
        lines = [[(rho, y) for rho, y in points if side(rho)] for points in found.values()]
        slopes = of_numbers([sign * k for line in lines if (k := slope(line)) is not None])
        straight = of_numbers([share for line in lines if (share := linear_share(line)) is not None])
        if slopes is None:
            answers.append("undecided")
            continue
        answers.append("holds" if slopes.low > 0 else "does not hold" if slopes.high <= 0 else "undecided")
        words.append(
            f"{name} rho 0.5 it {'rises' if sign > 0 else 'falls'} by {number(slopes)} per unit of rho, R² of a line "
            f"{number(straight)}"
        )
    return Verdict(overall(answers), "; ".join(words) or "no run")


def sooner(results: Results) -> Verdict:
    """Judge that the round of the peak falls with rho, by the slope of each seed."""
    return falling(signals.rounds(results, "poison"))


def falling(found: dict[int, list[tuple[float, float]]]) -> Verdict:
    """Judge that a number falls with rho: the bootstrap interval of the seeds' mean slope lies below 0."""
    slopes = of_numbers([k for points in found.values() if (k := slope(points)) is not None])
    if slopes is None:
        return Verdict("undecided", "no seed has two rho")
    straight = of_numbers([share for points in found.values() if (share := linear_share(points)) is not None])
    shown = ", ".join(f"{rho:g}: {mean.value:.3g}" for rho, mean in signals.means(found))
    answer: Answer = "holds" if slopes.high < 0 else "does not hold" if slopes.low >= 0 else "undecided"
    flat = "" if straight is None else f", R² of a line {number(straight)}"
    return Verdict(answer, f"slope over rho {number(slopes)}{flat}; means by rho {shown}")


STUDY = Study(
    id="fig4b",
    title="Figure 4b: largest BSNR and its round",
    caption="Over the rounds of a run: the largest BSNR (3-round moving average) and the round it is reached in, against rho.",
    wishes=wishes,
    tables=tables,
    plots=plots,
    claims=(
        Claim(
            "The maximum BSNR rises nearly linearly with rho up to 0.5 and falls nearly linearly beyond", "4.3, Fig. 4b", both_sides
        ),
        Claim("The round of the maximum BSNR decreases nearly linearly with rho", "4.3, Fig. 4b", sooner),
    ),
    deviations=("The paper does not say how the maximum is taken; ours is that of a 3-round moving average.",),
)
