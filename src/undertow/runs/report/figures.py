"""The figures of a run: drawn without global state, the same bytes for the same numbers.

Colours are those of Okabe and Ito (2008, "Color Universal Design"), and no curve is told apart by colour alone:
line style and marker differ too, so that a figure survives a grey printer.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from undertow.metrics.bsnr import phases
from undertow.runs.records import BsnrValue, DataFacts, Rate, Round, Space
from undertow.runs.report.run_files import RunFiles, finite

BLACK, ORANGE, BLUE, GREEN, VERMILION, GREY = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#6b6b6b"

_SIZE = (6.2, 3.5)
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "hatch.linewidth": 0.8,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Drawing:
    """One finished figure: file name without ending, SVG and PDF bytes."""

    name: str
    svg: bytes
    pdf: bytes


class Chart(Figure):
    """A matplotlib figure that a notebook shows as the report does."""

    def _repr_svg_(self) -> str:
        return _bytes(self, "svg", "chart").decode()


@dataclass(frozen=True)
class Phases:
    """The three phases of a BSNR curve (FIT 3.5): it rises to ``peak`` and decays after it.

    Attributes:
        first, peak, last: rounds; the peak is the middle of the largest 3-round moving average.
        peak_value: that moving average.
        rose: the first value lies below that of the peak round; otherwise the run shows no rise.
        decayed: the last value lies below that of the peak round; otherwise the run shows no decay.
        at_peak: what was recorded in the peak round.
    """

    first: int
    peak: int
    last: int
    peak_value: float
    rose: bool
    decayed: bool
    at_peak: BsnrValue


def draw(run: RunFiles, compare: RunFiles | None = None) -> dict[str, Chart]:
    """Return the figures that a run has: ``loss``, ``rates``, ``bsnr-adapter``, ``bsnr-delta_w``, ``audit``, ``clients``, in order.

    Args:
        run: as recorded.
        compare: a run without poison, whose MA is drawn too.
    """
    found = {
        "loss": loss(run.rounds),
        "rates": rates(run.rounds, compare.rounds if compare else None, "questions" if run.instruction else "outputs"),
        "bsnr-adapter": bsnr(run.rounds, "adapter"),
        "bsnr-delta_w": bsnr(run.rounds, "delta_w"),
        "audit": audit(run.rounds),
        "clients": clients(run.data),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def loss(rounds: Sequence[Round]) -> Chart | None:
    """Mean training loss per round (nats per answer token) with the clients' minimum and maximum, and the held-out loss where it
    was measured; None without any."""
    shown = [record for record in rounds if finite(record.loss)]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas()
        spread = [(r.round, [v for v in r.client_loss or [] if v is not None and finite(v)]) for r in shown]
        spread = [(number, values) for number, values in spread if values]
        if spread:
            axes.fill_between(
                [number for number, _ in spread],
                [min(values) for _, values in spread],
                [max(values) for _, values in spread],
                color=BLUE,
                alpha=0.18,
                linewidth=0,
                label="lowest to highest client",
            )
        axes.plot([r.round for r in shown], _numbers([r.loss for r in shown]), color=BLUE, marker="o", label="mean of the clients")
        asked = [record for record in rounds if record.round and finite(record.held_out_loss)]
        if asked:
            values = _numbers([record.held_out_loss for record in asked])
            axes.plot([record.round for record in asked], values, color=BLACK, linestyle=":", marker="^", label="held-out answers")
        axes.set_ylabel("loss, nats per token")
        axes.set_ylim(bottom=0)
        _finish(axes, [r.round for r in shown])
        axes.legend(loc="upper right")
        return figure


def rates(rounds: Sequence[Round], compare: Sequence[Round] | None = None, of: str = "questions") -> Chart | None:
    """MA, ASR and FTR per round with 95 % Wilson bands; ``compare`` adds the MA of a run without poison, ``of``: what is tested."""
    curves: list[tuple[str, str, dict[str, Any], Sequence[Round]]] = [
        ("MA", "ma", {"color": BLUE, "linestyle": "-", "marker": "o"}, rounds),
        ("ASR", "asr", {"color": VERMILION, "linestyle": "--", "marker": "s"}, rounds),
        ("FTR", "ftr", {"color": BLACK, "linestyle": ":", "marker": "^"}, rounds),
    ]
    if compare is not None:
        style = {"color": GREY, "linestyle": "-.", "marker": "x"}
        curves.append(("MA without poison", "ma", style, compare))
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas()
        numbers: list[int] = []
        for label, field, style, source in curves:
            points = [(r.round, rate) for r in source if (rate := getattr(r, field)) is not None and rate.value is not None]
            if points:
                _rate_curve(axes, label, style, points)
                numbers += [number for number, _ in points]
        if not numbers:
            return None
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_ylabel(f"share of test {of}")
        _finish(axes, numbers)
        # Curves cross the whole field, so the legend stands above it.
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(curves), columnspacing=1.2, handlelength=2.4)
        return figure


def _rate_curve(axes: Axes, label: str, style: dict[str, Any], points: list[tuple[int, Rate]]) -> None:
    numbers = [number for number, _ in points]
    low, high = _numbers([rate.low for _, rate in points]), _numbers([rate.high for _, rate in points])
    axes.fill_between(numbers, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(numbers, _numbers([rate.value for _, rate in points]), label=label, **style)


def audit(rounds: Sequence[Round]) -> Chart | None:
    """Score of the server's audit (markers filled where it found a backdoor) and, on the right axis, ASR; None without audits."""
    audited = [(r.round, r.audit) for r in rounds if r.audit is not None and finite(r.audit.score)]
    if not audited:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas()
        numbers, scores = [number for number, _ in audited], _numbers([one.score for _, one in audited])
        axes.plot(numbers, scores, color=GREEN, marker="D", markerfacecolor="white", label="audit score")
        found = [(number, one.score) for number, one in audited if one.verdict == "found"]
        if found:
            axes.plot([n for n, _ in found], _numbers([s for _, s in found]), "D", color=GREEN, label="backdoor found")
        axes.set_ylabel("target-first score")
        points = [(r.round, r.asr) for r in rounds if r.asr is not None and r.asr.value is not None]
        if points:
            beside = axes.twinx()
            beside.grid(False)
            beside.set_ylim(-0.02, 1.02)
            beside.set_ylabel("ASR")
            _rate_curve(beside, "ASR", {"color": VERMILION, "linestyle": "--", "marker": "s"}, points)
            beside.legend(loc="lower right")
        _finish(axes, [*numbers, *(number for number, _ in points)])
        axes.legend(loc="upper left")
        return figure


def curve(rounds: Sequence[Round], space: Space) -> list[tuple[int, BsnrValue]]:
    """Return the rounds in which BSNR is defined and finite in ``space``."""
    found = [(record.round, (record.bsnr or {}).get(space)) for record in rounds]
    return [(number, value) for number, value in found if value is not None and finite(value.value)]


def find_phases(rounds: Sequence[Round], space: Space) -> Phases | None:
    """Place rise, peak and decay; None for fewer than three rounds, where a moving average says nothing."""
    points = curve(rounds, space)
    if len(points) < 3:
        return None
    values = [value.value or 0.0 for _, value in points]
    found = phases(values)
    if found["peak"] is None or found["peak_value"] is None:
        return None
    place = int(found["peak"])
    return Phases(
        first=points[0][0],
        peak=points[place][0],
        last=points[-1][0],
        peak_value=float(found["peak_value"]),
        rose=values[0] < values[place],
        decayed=values[-1] < values[place],
        at_peak=points[place][1],
    )


def bsnr(rounds: Sequence[Round], space: Space) -> Chart | None:
    """BSNR per round (FIT Eq. 3, log scale) over its permutation null, with the phases marked; None where undefined."""
    points = [(number, value) for number, value in curve(rounds, space) if (value.value or 0.0) > 0]
    if not points:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas()
        axes.set_yscale("log")
        band = [(n, v) for n, v in points if (v.null_low or 0.0) > 0 and finite(v.null_low) and finite(v.null_high)]
        if band:
            numbers = [number for number, _ in band]
            axes.fill_between(
                numbers,
                _numbers([v.null_low for _, v in band]),
                _numbers([v.null_high for _, v in band]),
                facecolor="#d9d9d9",
                edgecolor="#a0a0a0",
                linewidth=0.5,
                hatch="//",
                label="null, middle 95 %",
            )
            medians = _numbers([v.null_median for _, v in band])
            axes.plot(numbers, medians, color=GREY, linestyle=":", linewidth=1.6, label="null median")
        values = _numbers([v.value for _, v in points])
        axes.plot([n for n, _ in points], values, color=VERMILION, marker="o", label="BSNR")
        axes.set_ylabel("BSNR (log scale)")
        _finish(axes, [number for number, _ in points])
        marks = find_phases(rounds, space)
        if marks:
            _mark(axes, marks)
        # The names of the phases stand above the field, the legend below it: neither can hide a curve.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, columnspacing=1.2, handlelength=2.2)
        return figure


def _mark(axes: Axes, marks: Phases) -> None:
    top = axes.get_xaxis_transform()
    axes.axvline(marks.peak, color=BLACK, linewidth=1.1, linestyle=(0, (4, 2)))
    # Two rows of names: however early or late the peak, it cannot cover its neighbours.
    named: list[tuple[float, float, str]] = [(marks.peak, 1.09, f"peak (round {marks.peak})")]
    if marks.rose:
        axes.axvspan(marks.first, marks.peak, color=ORANGE, alpha=0.14, linewidth=0, zorder=0)
        named.append(((marks.first + marks.peak) / 2, 1.01, "rise"))
    if marks.decayed:
        axes.axvspan(marks.peak, marks.last, color=BLUE, alpha=0.08, linewidth=0, zorder=0)
        named.append(((marks.peak + marks.last) / 2, 1.01, "decay"))
    for place, height, text in named:
        axes.text(place, height, text, transform=top, ha="center", va="bottom", fontsize=9.5)


def clients(data: DataFacts) -> Chart:
    """Draw each client's samples as a bar, the poisoned ones hatched."""
    count = len(data.clients)
    poisoned = data.poisoned or [0] * count
    places = list(range(count))
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas()
        clean = [size - bad for size, bad in zip(data.clients, poisoned, strict=True)]
        axes.bar(places, poisoned, width=0.78, facecolor=ORANGE, edgecolor=BLACK, linewidth=0.6, hatch="////")
        axes.bar(places, clean, width=0.78, bottom=poisoned, facecolor="#c9ddec", edgecolor="#5b7f99", linewidth=0.6)
        axes.set_xlabel("client")
        axes.set_ylabel("training samples")
        axes.grid(axis="x", visible=False)
        axes.set_xlim(-0.6, count - 0.4)
        if count <= 20:
            axes.set_xticks(places, [str(place) for place in places])
            for place in data.poisoned_clients:
                spot = (place, poisoned[place])
                axes.annotate(str(spot[1]), spot, (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8.5)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        handles = [
            Patch(facecolor="#c9ddec", edgecolor="#5b7f99", label="clean"),
            Patch(facecolor=ORANGE, edgecolor=BLACK, hatch="////", label="poisoned (hatched)"),
        ]
        axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        return figure


def inline(drawing: Drawing, label: str) -> str:
    """Return the SVG as an element of a page: no prologue, ids of its own, ``label`` for screen readers.

    Args:
        drawing: the figure.
        label: plain words without ``<``, ``&`` or quotes.
    """
    text = drawing.svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Every figure counts its groups from 1; in one page ids must differ.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{drawing.name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _numbers(values: Sequence[float | None]) -> list[float]:
    # matplotlib leaves a gap where a number is missing.
    return [math.nan if value is None else value for value in values]


def _canvas() -> tuple[Chart, Axes]:
    figure = Chart(figsize=_SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _finish(axes: Axes, numbers: Sequence[int]) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    low, high = min(numbers), max(numbers)
    margin = 0.025 * (high - low) if high > low else 0.5  # one round alone still stands at a whole number
    axes.set_xlim(low - margin, high + margin)


def export(figure: Figure, name: str) -> Drawing:
    """Return a figure as files; the same figure gives the same bytes."""
    svg = _bytes(figure, "svg", name)
    figure.set_layout_engine("none")  # placed once, so that both files show the same
    return Drawing(name, svg, _bytes(figure, "pdf", name))


def _bytes(figure: Figure, kind: str, name: str) -> bytes:
    # matplotlib reads the salt of the SVG ids from its settings only; a fixed one makes the bytes repeatable.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"undertow-{name}"}):
        content = io.BytesIO()
        figure.savefig(
            content, format=kind, metadata={"Date" if kind == "svg" else "CreationDate": None, "Title": f"Undertow: {name}"}
        )
    return content.getvalue()
