"""Sweeps: one run directory for every combination of values, several at a time, each like a plain run.

:func:`parse` reads the command line's words, :func:`expand` makes and checks the cells, :func:`run_cells` runs
them. The folders are the state: what is finished is skipped, what was interrupted is resumed.
"""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import yaml

from undertow.config import validate
from undertow.core.errors import UserError
from undertow.core.files import check_folder
from undertow.sweeps.cells import Cell, expand, parse, refuse_twins

if TYPE_CHECKING:
    from undertow.sweeps.workers import Answer

__all__ = ["Cell", "Outcome", "Progress", "SweepObserver", "default_jobs", "expand", "parse", "plan", "run_cells", "summary"]

#: Seconds between two looks at the running cells.
GLANCE = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: ``skipped`` means it was finished before; ``error`` is one line, of failed cells only."""

    cell: Cell
    status: Literal["done", "skipped", "failed"]
    error: str | None
    seconds: float
    folder: Path


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands.

    Attributes:
        cells: all of them; done + skipped + failed + waiting + running.
        running: by cell name, the last finished round (None before the untouched base is measured) and the last there will be.
        seconds_left: by the rounds finished since the start; None before there are two.
    """

    cells: int
    done: int
    skipped: int
    failed: int
    waiting: int
    running: dict[str, tuple[int | None, int]]
    seconds_left: float | None


class SweepObserver(Protocol):
    """Who looks on while a sweep goes."""

    def started(self, cell: Cell) -> None:
        """A worker took up a cell."""

    def progress(self, state: Progress) -> None:
        """Twice a second, and after each finished cell."""

    def warn(self, cell: Cell, text: str) -> None:
        """A run said something that the user should know, in one line."""

    def finished(self, outcome: Outcome) -> None:
        """A cell is done, skipped or failed."""


def default_jobs(cells: Sequence[Cell], ray: str | None = None) -> int:
    """Return how many cells to run at a time: cores over threads, or one on a GPU; with Ray, what the cluster has.

    Raises:
        UserError: a device that is not there, or no Ray.
    """
    from undertow.core.threads import cores
    from undertow.models.causal_lm import choose_device
    from undertow.sweeps.workers import RayCluster

    threads = max(cell.config.training.threads or cores() for cell in cells)
    if ray is not None:
        return max(1, min(len(cells), RayCluster(ray, cells).room()))
    on_gpu = any(choose_device(device).type != "cpu" for device in {cell.config.model.device for cell in cells})
    return 1 if on_gpu else max(1, min(len(cells), cores() // threads))


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int = 1,
    ray: str | None = None,
    observer: SweepObserver | None = None,
    reports: bool = False,
) -> list[Outcome]:
    """Run what is left of the cells in worker processes, and return how each ended, in the order given.

    A worker keeps the last base it loaded, and cells of one base follow each other. A cell that fails, or whose process
    is killed, is noted and the others go on. An interrupt stops all workers; what they saved stays.

    Args:
        cells: different ones, as :func:`expand` makes them.
        folder: holds one run directory per cell.
        jobs: processes at a time, from 1.
        ray: address of a Ray cluster whose nodes see ``folder`` under the same path (``auto``, ``local``,
            ``ray://host:port``); None for processes of this machine.
        observer: is told what happens.
        reports: also write each cell's ``report.html``.

    Raises:
        UserError: the same cell twice, a wrong ``jobs`` or folder, or no Ray; nothing has run then.
    """
    from undertow.sweeps.workers import LocalWorker, RayCluster

    refuse_twins(cells)
    if isinstance(jobs, bool) or not isinstance(jobs, Integral) or jobs < 1:
        raise UserError(f"jobs = {jobs}: give a whole number of processes from 1")
    ended = {
        cell.name: Outcome(cell, "skipped", None, 0.0, folder / cell.name) for cell in cells if _finished(cell, folder, reports)
    }
    if observer:
        for outcome in ended.values():
            observer.finished(outcome)
    left = [cell for cell in cells if cell.name not in ended]
    if not left:
        return [ended[cell.name] for cell in cells]
    check_folder("--out", folder)
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(left, folder, _Clock(left, folder), ended, observer, reports)
    count = min(jobs, len(left))
    work.go_on(RayCluster(ray, cells).workers(count) if ray is not None else [LocalWorker() for _ in range(count)], len(cells))
    return [ended[cell.name] for cell in cells]


def summary(outcomes: Sequence[Outcome], folder: Path, seconds: float) -> dict[str, Any]:
    """Return what ``undertow sweep --json`` prints."""
    count = Counter(outcome.status for outcome in outcomes)
    return {
        "folder": str(folder),
        "cells": len(outcomes),
        "done": count["done"],
        "skipped": count["skipped"],
        "failed": [{"name": outcome.cell.name, "error": outcome.error} for outcome in outcomes if outcome.status == "failed"],
        "seconds": round(seconds, 3),
    }


@dataclass
class _Work:
    """Cells that are left to run, and those that run."""

    cells: Sequence[Cell]
    folder: Path
    clock: _Clock
    ended: dict[str, Outcome]
    observer: SweepObserver | None
    reports: bool

    def __post_init__(self) -> None:
        self.waiting = _by_base(self.cells)
        self.running: dict[Future[Answer], tuple[Any, Cell, float]] = {}

    def go_on(self, workers: Sequence[Any], total: int) -> None:
        """Run all that is left on these workers, and stop them; ``total`` counts the cells that were finished before, too."""
        free, held = list(workers), dict.fromkeys(workers, "")
        pool = ThreadPoolExecutor(len(workers))
        try:
            while self.waiting or self.running:
                while self.waiting and free:
                    worker = free.pop(0)
                    self._start(pool, worker, _next(self.waiting, held, worker))
                free += self._done()
                if self.observer:
                    running = [cell for _, cell, _ in self.running.values()]
                    self.observer.progress(self.clock.read(total, self.ended, running, self.waiting))
        finally:
            for worker in workers:
                worker.stop()
            pool.shutdown()

    def _start(self, pool: ThreadPoolExecutor, worker: Any, cell: Cell) -> None:
        from undertow.inference.untouched import UNTOUCHED
        from undertow.sweeps.workers import Task

        path = str(self.folder / cell.name)
        command = shlex.join(["undertow", "run", f"{path}/config.yaml", "--out", path])
        answers = str(self.folder / UNTOUCHED)
        task = Task(values=cell.config.values(), folder=path, command=command, reports=self.reports, answers=answers)
        self.running[pool.submit(worker.run, task)] = (worker, cell, time.monotonic())
        if self.observer:
            self.observer.started(cell)

    def _done(self) -> list[Any]:
        """Wait a moment, note the cells that ended, and return their workers."""
        workers = []
        for future in wait(self.running, timeout=GLANCE, return_when=FIRST_COMPLETED).done:
            worker, cell, began = self.running.pop(future)
            workers.append(worker)
            answer, seconds = future.result(), time.monotonic() - began
            status: Literal["done", "failed"] = "failed" if answer["error"] else "done"
            self.ended[cell.name] = outcome = Outcome(cell, status, answer["error"], seconds, self.folder / cell.name)
            if self.observer:
                for text in answer["warnings"]:
                    self.observer.warn(cell, text)
                self.observer.finished(outcome)
        return workers


def plan(cells: Sequence[Cell], folder: Path) -> dict[str, Any]:
    """Return what ``undertow sweep --plan --json`` prints: the cells, what varies in each, and whether it is finished."""
    told = [{"name": cell.name, "axes": cell.axes, "finished": _finished(cell, folder, False)} for cell in cells]
    return {"folder": str(folder), "cells": told}


def _finished(cell: Cell, folder: Path, reports: bool) -> bool:
    """Tell whether a cell has nothing left to do; a folder that does not fit goes to the run itself, which says why."""
    place = folder / cell.name
    if not (place / "result.json").is_file() or (reports and not (place / "report.html").is_file()):
        return False
    try:
        json.loads((place / "result.json").read_text(encoding="utf-8"))
        found = validate(yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8")), cell.name)
    except (OSError, ValueError, yaml.YAMLError, UserError):
        return False
    return found.identity() == cell.config.identity()


def _base(cell: Cell) -> str:
    return str(cell.config.model.model_dump_json())


def _by_base(cells: Sequence[Cell]) -> list[Cell]:
    first = {name: place for place, name in reversed(list(enumerate(map(_base, cells))))}
    return sorted(cells, key=lambda cell: first[_base(cell)])


def _next(waiting: list[Cell], held: dict[Any, str], worker: Any) -> Cell:
    """Take the first cell of the worker's own base, else of one that no worker holds, else the first."""
    taken = set(held.values())
    cell = min(waiting, key=lambda cell: 0 if _base(cell) == held[worker] else 1 if _base(cell) not in taken else 2)
    waiting.remove(cell)
    held[worker] = _base(cell)
    return cell


class _Clock:
    """Counts rounds in the run directories: the same for local processes and for a cluster."""

    def __init__(self, cells: Sequence[Cell], folder: Path) -> None:
        self._folder = folder
        self._began = time.monotonic()
        self._before = {cell.name: self._lines(cell) for cell in cells}

    def read(self, cells: int, ended: Mapping[str, Outcome], running: Sequence[Cell], waiting: Sequence[Cell]) -> Progress:
        count = Counter(outcome.status for outcome in ended.values())
        now = {cell.name: self._lines(cell) for cell in running}
        done = [outcome.cell for outcome in ended.values() if outcome.status == "done"]
        new = sum(_steps(cell) - self._before[cell.name] for cell in done)
        new += sum(max(0, lines - self._before[name]) for name, lines in now.items())
        left = sum(_steps(cell) - self._before[cell.name] for cell in waiting)
        left += sum(max(0, _steps(cell) - now[cell.name]) for cell in running)
        return Progress(
            cells=cells,
            done=count["done"],
            skipped=count["skipped"],
            failed=count["failed"],
            waiting=len(waiting),
            running={cell.name: (now[cell.name] - 1 if now[cell.name] else None, _steps(cell) - 1) for cell in running},
            seconds_left=left * (time.monotonic() - self._began) / new if new > 1 else None,
        )

    def _lines(self, cell: Cell) -> int:
        try:
            return (self._folder / cell.name / "rounds.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0


def _steps(cell: Cell) -> int:
    """Lines that a finished run has: its rounds and the untouched base."""
    return cell.config.federation.rounds + 1
