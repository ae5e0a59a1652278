"""What a user sees while something long runs: a live table on a terminal or in a notebook, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import importlib
import io
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from undertow.core.observer import Observer


def percent(rate: dict[str, Any] | None) -> str:
    """Show a rate in percent, or a dash."""
    return "–" if not rate or rate["value"] is None else f"{100 * rate['value']:.1f} %"


def duration(seconds: float) -> str:
    """Show seconds as a person would."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def bsnr_value(row: dict[str, Any]) -> float | None:
    """Return a round's BSNR in its first space, if defined."""
    spaces = row.get("bsnr") or {}
    return next(iter(spaces.values()))["value"] if spaces else None


class Plain:
    """One line per event."""

    def __init__(self) -> None:
        self._times: list[float] = [time.monotonic()]
        self._told = 0.0

    def phase(self, text: str) -> None:
        """Print what begins, but not for every round."""
        if not text.startswith("round "):
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def round(self, row: dict[str, Any], of: int) -> None:
        """Print a finished round."""
        self._times.append(time.monotonic())
        print(_line(row, of, _left(self._times, row["round"], of)), file=sys.stderr, flush=True)

    def step(self, line: dict[str, Any]) -> None:
        """Print a training step of a base, at most every ten seconds."""
        if time.monotonic() - self._told > 10 or line["step"] == line["steps"]:
            self._told = time.monotonic()
            left = duration(line["seconds_left"])
            print(f"step {line['step']}/{line['steps']}: loss {line['loss']:.3f}, {left} left", file=sys.stderr, flush=True)


class Living:
    """A table of the last rounds that redraws itself."""

    def __init__(self, live: Live | NotebookCell) -> None:
        self.live = live
        self._rows: deque[tuple[dict[str, Any], int]] = deque(maxlen=12)
        self._times: list[float] = [time.monotonic()]
        self._text = ""
        self._left = ""

    def phase(self, text: str) -> None:
        """Show what is going on."""
        self._text = text
        self.live.update(self._render())

    def warn(self, text: str) -> None:
        """Leave a warning above the table."""
        self.live.console.print(Text(f"warning: {text}", style="yellow"))

    def round(self, row: dict[str, Any], of: int) -> None:
        """Add a finished round."""
        self._times.append(time.monotonic())
        self._rows.append((row, of))
        self._left = _left(self._times, row["round"], of)
        self.live.update(self._render())

    def step(self, line: dict[str, Any]) -> None:
        """Show a training step of a base."""
        self._text = f"step {line['step']}/{line['steps']}: loss {line['loss']:.3f}"
        self._left = f"{duration(line['seconds_left'])} left"
        self.live.update(self._render())

    def _render(self) -> RenderableType:
        status = Text(f"{self._text}  {self._left}", style="cyan")
        if not self._rows:
            return status
        table = Table(box=None, pad_edge=False)
        for column in ("round", "loss", "MA", "ASR", "FTR", "BSNR", "seconds"):
            table.add_column(column, justify="right")
        for row, of in self._rows:
            value = bsnr_value(row)
            table.add_row(
                f"{row['round']}/{of}" if row["round"] else "untouched",
                "–" if row["loss"] is None else f"{row['loss']:.3f}",
                percent(row["ma"]),
                percent(row["asr"]),
                percent(row["ftr"]),
                "–" if value is None else f"{value:.3f}",
                f"{row['seconds']:.1f}",
            )
        return Group(table, status)


class Silent:
    """Shows nothing but warnings, which a script must not miss."""

    def phase(self, text: str) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Print a warning."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def round(self, row: dict[str, Any], of: int) -> None:
        """Show nothing."""


class NotebookCell:
    """Stands for ``rich.live.Live`` in a notebook: one output of a cell, redrawn; lines for good stay above it."""

    def __init__(self) -> None:
        show = importlib.import_module("IPython.display").display

        self._kept: list[RenderableType] = []
        self._last: RenderableType = Text("")
        self._shown = show({"text/plain": ""}, raw=True, display_id=True)
        self.console = self

    def print(self, line: RenderableType) -> None:
        """Leave a line above what is redrawn."""
        self._kept.append(line)
        self.update(self._last)

    def update(self, content: RenderableType) -> None:
        """Redraw."""
        self._last = content
        drawn = Console(file=io.StringIO(), width=100)
        drawn.print(Group(*self._kept, content))
        self._shown.update({"text/plain": drawn.file.getvalue()}, raw=True)  # type: ignore[attr-defined]


@contextmanager
def live() -> Iterator[Live | NotebookCell | None]:
    """Give what redraws itself, on a terminal or in a notebook; None elsewhere."""
    console = Console(stderr=True)
    if _in_notebook():
        yield NotebookCell()
    elif not console.is_terminal:
        yield None
    else:
        with Live(console=console, refresh_per_second=4, transient=False) as shown:
            yield shown


@contextmanager
def display() -> Iterator[Plain | Living]:
    """Give the observer that fits: live on a terminal and in a notebook, plain lines otherwise."""
    with live() as shown:
        yield Plain() if shown is None else Living(shown)


def looked_at() -> bool:
    """Tell whether a person looks on: at a terminal, or in a notebook."""
    return _in_notebook() or sys.stderr.isatty()


@contextmanager
def watching(observer: Observer | bool | None) -> Iterator[Observer]:
    """Give the observer of a call from Python.

    Args:
        observer: one of one's own; True for :func:`display`; False for one that shows warnings alone; None for :func:`display`
            where a person looks on, at a terminal or in a notebook, and :class:`Silent` in scripts.
    """
    if observer is True or (observer is None and looked_at()):
        with display() as shown:
            yield shown
    else:
        yield observer or Silent()


def _in_notebook() -> bool:
    """Tell whether this runs in a Jupyter kernel; IPython is asked only where something else has loaded it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _line(row: dict[str, Any], of: int, left: str) -> str:
    name = f"round {row['round']}/{of}" if row["round"] else "untouched base"
    value = bsnr_value(row)
    parts = [
        "" if row["loss"] is None else f"loss {row['loss']:.3f}",
        *(f"{key.upper()} {percent(row[key])}" for key in ("ma", "asr", "ftr") if row[key]),
        "" if value is None else f"BSNR {value:.3f}",
        f"{row['seconds']:.1f} s",
        left,
    ]
    return f"{name}: " + ", ".join(part for part in parts if part)


def _left(times: list[float], done: int, of: int) -> str:
    """Estimate the time left from the rounds seen in this process."""
    if len(times) < 3 or done >= of:
        return ""
    each = (times[-1] - times[1]) / (len(times) - 2)
    return f"{duration(each * (of - done))} left"
