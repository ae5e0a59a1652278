"""Figures of studies in the house style of run reports: the same bytes for the same numbers, readable without colour."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from undertow.runs.report.figures import BLACK, BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION
from undertow_reproductions.estimate import Estimate
from undertow_reproductions.study import Plot

#: Line styles in the order of the curves: Okabe and Ito's colours, told apart by marker and dashes too.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": VERMILION, "marker": "o", "linestyle": "-"},
    {"color": BLUE, "marker": "s", "linestyle": "--"},
    {"color": GREEN, "marker": "^", "linestyle": "-."},
    {"color": ORANGE, "marker": "D", "linestyle": ":"},
    {"color": BLACK, "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": GREY, "marker": "x", "linestyle": (0, (1, 1))},
)


@dataclass(frozen=True)
class Curve:
    """A named curve of estimates: (place on the horizontal axis, estimate)."""

    label: str
    points: Sequence[tuple[float, Estimate]]
    style: dict[str, Any]


def canvas(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure as wide as a page with ``panels`` axes side by side; call it within :func:`style`."""
    figure = Figure(figsize=(6.2 if panels == 1 else 8.4, 3.6), layout="constrained")
    found = figure.subplots(1, panels, squeeze=False)
    return figure, list(found[0])


def style() -> Any:
    """Return the context in which all drawing must happen."""
    return matplotlib.rc_context(STYLE)


def curves(axes: Axes, shown: Sequence[Curve], xlabel: str, ylabel: str, *, percent: bool = True) -> None:
    """Draw curves with their intervals: a bar from the lower of both lower ends to the higher of both higher ends."""
    for curve in shown:
        if not curve.points:
            continue
        xs = [x for x, _ in curve.points]
        ys = [e.value for _, e in curve.points]
        spread = [[max(0.0, e.value - e.least) for _, e in curve.points], [max(0.0, e.most - e.value) for _, e in curve.points]]
        axes.errorbar(xs, ys, yerr=spread, label=curve.label, capsize=2.5, linewidth=1.5, elinewidth=0.9, **curve.style)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if percent:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def stated(axes: Axes, spans: Sequence[tuple[float, float, float]], label: str = "stated in the paper") -> None:
    """Draw what the paper states as grey bars: (from, to, height)."""
    for i, (left, right, height) in enumerate(spans):
        axes.plot(
            [left, right],
            [height, height],
            color=GREY,
            linewidth=5,
            alpha=0.35,
            solid_capstyle="butt",
            label=label if not i else None,
        )


def legend(figure: Figure, axes: Sequence[Axes], columns: int = 3) -> None:
    """Put one legend for all axes below the figure, where it hides nothing."""
    found: dict[str, Any] = {}
    for one in axes:
        found |= {label: handle for handle, label in zip(*one.get_legend_handles_labels(), strict=True) if label not in found}
    if found:
        figure.legend(
            list(found.values()), list(found), loc="outside lower center", ncols=columns, columnspacing=1.4, handlelength=2.6
        )


def canvas_for_rows(rows: int, columns: int) -> tuple[Figure, Axes]:
    """Return a figure with room for a heatmap of this size; call it within :func:`style`."""
    figure = Figure(figsize=(max(6.2, 3.4 + 0.5 * columns), 1.3 + 0.27 * max(rows, 4)), layout="constrained")
    return figure, figure.subplots()


def heatmap(
    figure: Figure,
    axes: Axes,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    name: str,
    best: float,
) -> None:
    """Draw shares as coloured cells with their percent in each, the first row on top.

    Cividis (Nunez, Anderton and Renslow 2018) looks the same to readers with and without a colour vision deficiency, and grows
    lighter evenly, so that it survives a grey printer. Dark is good.

    Args:
        values: shares 0 to 1, ``[rows][columns]``; None is drawn as a grey cell with a dash.
        name: of what is shown, beside the colour bar.
        best: 0 where small shares are good, and colours span 0 to 1; 1 where large ones are, and colours span the smallest to the
            largest share, to whole tenths.
    """
    known = [value for row in values for value in row if value is not None]
    low, high = (0.0, 1.0) if not best or not known else (math.floor(10 * min(known)) / 10, math.ceil(10 * max(known)) / 10)
    scale = Normalize(low, high if high > low else low + 0.1)
    colours = matplotlib.colormaps["cividis_r" if best else "cividis"].with_extremes(bad="#dddddd")
    grid = np.ma.masked_invalid([[math.nan if value is None else value for value in row] for row in values])
    drawn = axes.pcolormesh(grid, cmap=colours, norm=scale, edgecolors="white", linewidth=1.5)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            told = "–" if value is None else f"{100 * value:.0f}"
            light = value is None or (scale(value) > 0.5) != bool(best)
            axes.text(x + 0.5, y + 0.5, told, ha="center", va="center", fontsize=9.5, color=BLACK if light else "white")
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], rows)
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, label=name, format=FuncFormatter(lambda value, _: f"{100 * value:.3g} %"), fraction=0.05)
    bar.outline.set_visible(False)  # type: ignore[operator]


def finite(value: float | None) -> float:
    """Return a number that matplotlib leaves out where there is none."""
    return math.nan if value is None else value


def export(figure: Figure, name: str, label: str) -> Plot:
    """Return the SVG; the salt of its ids and the missing date make the bytes repeatable."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"undertow-{name}"}):
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Title": f"Undertow: {name}"})
    return Plot(name, svg.getvalue(), label)
