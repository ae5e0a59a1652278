"""What a user sees while a sweep goes: a live table on a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from undertow.runs.display import NotebookCell, duration, live, looked_at
from undertow.sweeps.sweep import Cell, Outcome, Progress, SweepObserver

#: Seconds between two lines about the whole, where nothing redraws itself.
QUIET = 60.0


class PlainSweep:
    """A line at once, one per finished cell, and one a minute about the whole."""

    def __init__(self) -> None:
        self._told = -QUIET

    def started(self, cell: Cell) -> None:
        """Say nothing: the finished cells are many enough."""

    def progress(self, state: Progress) -> None:
        """Print where the sweep stands, once a minute."""
        if time.monotonic() - self._told >= QUIET:
            self._told = time.monotonic()
            _say(overview(state))

    def warn(self, cell: Cell, text: str) -> None:
        """Print a warning."""
        _say(f"warning: {cell.name}: {text}")

    def finished(self, outcome: Outcome) -> None:
        """Print a finished cell; those that were there before are counted at the end."""
        if outcome.status != "skipped":
            _say(told(outcome))


class LivingSweep:
    """The running cells and their rounds, redrawn; what ended stays above."""

    def __init__(self, live: Live | NotebookCell) -> None:
        self.live = live

    def started(self, cell: Cell) -> None:
        """Wait for the next look."""

    def progress(self, state: Progress) -> None:
        """Redraw."""
        self.live.update(render(state))

    def warn(self, cell: Cell, text: str) -> None:
        """Leave a warning above the table."""
        self.live.console.print(Text(f"warning: {cell.name}: {text}", style="yellow"))

    def finished(self, outcome: Outcome) -> None:
        """Leave a line above the table."""
        if outcome.status != "skipped":
            self.live.console.print(Text(told(outcome), style="red" if outcome.status == "failed" else ""))


def told(outcome: Outcome) -> str:
    """Say how a cell ended, in one line."""
    if outcome.status == "failed":
        return f"failed {outcome.cell.name}: {outcome.error}"
    return f"{outcome.status} {outcome.cell.name}, {duration(outcome.seconds)}"


def overview(state: Progress) -> str:
    """Say where a sweep stands, in one line."""
    parts = [f"{state.done} done", f"{len(state.running)} running", f"{state.waiting} waiting"]
    if state.skipped:
        parts.insert(1, f"{state.skipped} there before")
    if state.failed:
        parts.insert(1, f"{state.failed} failed")
    left = f"; about {duration(state.seconds_left)} left" if state.seconds_left else ""
    return f"{state.cells} cells: {', '.join(parts)}{left}"


def render(state: Progress) -> RenderableType:
    """Draw the running cells with their rounds, and the whole below."""
    table = Table(box=None, pad_edge=False)
    table.add_column("running", overflow="fold")
    table.add_column("round", justify="right", no_wrap=True)
    for name, (done, of) in state.running.items():
        table.add_row(Text(name), "starting" if done is None else f"{done}/{of}")
    line = Text(overview(state), style="cyan")
    return Group(table, line) if state.running else line


@contextmanager
def sweep_display() -> Iterator[PlainSweep | LivingSweep]:
    """Give the observer that fits: live on a terminal and in a notebook, plain lines otherwise."""
    with live() as shown:
        yield PlainSweep() if shown is None else LivingSweep(shown)


@contextmanager
def watching_sweep(observer: SweepObserver | bool | None) -> Iterator[SweepObserver | None]:
    """Give the observer of a call from Python: as :func:`undertow.runs.display.watching`, for sweeps."""
    if observer is True or (observer is None and looked_at()):
        with sweep_display() as shown:
            yield shown
    else:
        yield observer or None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
