"""Fig. 4a: BSNR in each round, for several shares of poisoned clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from undertow_reproductions import signals
from undertow_reproductions.drawing import STYLES, canvas, export, finite, legend, style
from undertow_reproductions.estimate import Verdict, of_numbers, overall
from undertow_reproductions.results import Results, Run
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Wish

#: The rho that are drawn; all are in the table.
SHOWN = (0.1, 0.3, 0.5, 0.7, 0.9)
KINDS = {"poison": "steps of the main setting", "slow": "smaller steps, more rounds"}


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """The curves at every rho, and some with smaller steps."""
    return signals.wishes(lab) + signals.slow_wishes(lab)


def tables(results: Results) -> list[Table]:
    """Mean BSNR over seeds in each round, with the mean middle of the null."""
    rows = []
    for kind in KINDS:
        for rho in results.values("rho", kind=kind):
            runs = results.where(kind=kind, rho=rho)
            for number in sorted({signal.round for run in runs for signal in run.signals}):
                here = [signal for run in runs for signal in run.signals if signal.round == number]
                null = [signal.null_median for signal in here if signal.null_median is not None]
                rows.append((kind, rho, number, of_numbers([signal.value for signal in here]), of_numbers(null)))
    return [Table("fig4a", ("steps", "rho", "round", "BSNR", "null median"), rows), _shapes(results)]


def _shapes(results: Results) -> Table:
    rows = []
    for kind in KINDS:
        for rho in results.values("rho", kind=kind):
            found = signals.shape(results.where(kind=kind, rho=rho))
            null = f"{found.significant} of {found.testable}" if found.testable else "p cannot reach 0.05"
            peaks = of_numbers([float(run.peak[0]) for run in results.where(kind=kind, rho=rho) if run.peak])
            rows.append((kind, rho, found.curves, found.rose, peaks, found.decayed, null))
    return Table(
        "fig4a-phases", ("steps", "rho", "curves", "that rise", "round of the peak", "that decay", "rounds above the null"), rows
    )


def plots(results: Results) -> list[Plot]:
    """BSNR against the round, log scale, one panel for each size of steps; the null of all drawn runs in grey."""
    kinds = [kind for kind in KINDS if results.where(kind=kind)]
    if not kinds:
        return []
    with style():
        figure, panels = canvas(len(kinds))
        for axes, kind in zip(panels, kinds, strict=True):
            _panel(axes, results, kind)
            axes.set_title(KINDS[kind], fontsize=10.5)
        legend(figure, panels)
        return [export(figure, "fig4a", "BSNR in each round for several shares of poisoned clients, over the permutation null")]


def _panel(axes: Axes, results: Results, kind: str) -> None:
    rhos = [rho for rho in results.values("rho", kind=kind) if rho in SHOWN or kind != "poison"]
    axes.set_yscale("log")
    axes.set_xlabel("round")
    axes.set_ylabel("BSNR (log scale)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    drawn = [run for rho in rhos for run in results.where(kind=kind, rho=rho)]
    band = _band(drawn)
    if band:
        numbers, lows, highs = ([point[i] for point in band] for i in range(3))
        axes.fill_between(numbers, lows, highs, color="#d9d9d9", linewidth=0, label="null, middle 95 % (mean)")
    for rho in rhos:
        runs = results.where(kind=kind, rho=rho)
        numbers = sorted({signal.round for run in runs for signal in run.signals})
        values = [of_numbers([s.value for run in runs for s in run.signals if s.round == number]) for number in numbers]
        look: dict[str, Any] = {**STYLES[round(10 * rho) // 2 % len(STYLES)], "color": matplotlib.colormaps["cividis"](rho * 0.95)}
        axes.plot(numbers, [finite(v.value if v else None) for v in values], label=f"ρ = {rho:g}", markersize=3.5, **look)


def _band(runs: Sequence[Run]) -> list[tuple[int, float, float]]:
    """Return (round, mean low, mean high) of the null over the runs."""
    found = []
    for number in sorted({signal.round for run in runs for signal in run.signals}):
        here = [signal for run in runs for signal in run.signals if signal.round == number]
        lows = [signal.null_low for signal in here if signal.null_low]
        highs = [signal.null_high for signal in here if signal.null_high]
        if lows and highs:
            found.append((number, sum(lows) / len(lows), sum(highs) / len(highs)))
    return found


def phases(results: Results) -> Verdict:
    """Judge rise and decay by the share of curves that show them, at the main setting's steps."""
    found = signals.shape(results.where(kind="poison"))
    slow = signals.shape(results.where(kind="slow"))
    words = f"at the main setting's steps {found.rose} of {found.curves} curves rise and {found.decayed} decay"
    if slow.curves:
        words += f"; with smaller steps {slow.rose} of {slow.curves} rise and {slow.decayed} decay"
    both = [signals.mostly(found.rose, found.curves), signals.mostly(found.decayed, found.curves)]
    return Verdict(overall(both), f"{words}; a rise means a first round below {signals.LOWER:g} of the peak, a decay a last one")


STUDY = Study(
    id="fig4a",
    title="Figure 4a: BSNR in each round",
    caption="BSNR (Eq. 3) against the communication round for several rho at PR 0.1.",
    wishes=wishes,
    tables=tables,
    plots=plots,
    claims=(Claim("A rapid rise, a distinct peak and a prolonged decay of BSNR", "3.4, 4.3, Fig. 4a", phases),),
    deviations=(
        "BSNR needs a clean group, so there is no curve at rho 1.",
        "The permutation null is ours: the same rounds with the clients' labels shuffled.",
    ),
)
