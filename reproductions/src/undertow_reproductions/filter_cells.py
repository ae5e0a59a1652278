"""The cells of the filter study: one small JSON file for each draw of clients, made once and checked when it is read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from undertow.core.errors import UserError
from undertow.core.files import write_json
from undertow.data.sample import Sample
from undertow.sanitization import Rules
from undertow_reproductions import corpora
from undertow_reproductions.filter_level import Counts, deal, pooled, scanned
from undertow_reproductions.kinds import attack_of
from undertow_reproductions.study import FilterGrid

Method = Literal["pooled", "alone"]
METHODS: tuple[Method, ...] = ("pooled", "alone")
#: Triggers and targets whose every combination is drawn with every seed; the others with the first seed alone.
MAIN = (("natural", "badnets1"), ("append", "replace_five"))
#: Cells between two lines of progress.
_STRIDE = 100


@dataclass(frozen=True)
class FilterCell:
    """One draw of clients, poisoned in one way.

    Attributes:
        corpus: a name of :data:`undertow_reproductions.corpora.CORPORA`.
        method: the federated protocol over all clients (``pooled``), or a scan of each client's samples (``alone``).
        trigger, target: names of :mod:`undertow_reproductions.kinds`; empty without poison.
        ratio: PR, raised to one sample a client where it is less; 0 without poison.
        share: rho.
        seed: of the draw of samples and poison.
        clients, size: how many, and samples of each; fewer where the half holds fewer.
    """

    corpus: str
    method: Method
    trigger: str
    target: str
    ratio: float
    share: float
    seed: int
    clients: int
    size: int

    @property
    def name(self) -> str:
        """Its file: what it is, and a hash of its values and the thresholds; a change of the filters' code needs the folder
        removed."""
        told = f"{self.trigger}-{self.target}-pr{self.ratio:g}-rho{self.share:g}" if self.ratio else "clean"
        values = json.dumps({**asdict(self), "half": corpora.SEALED, "rules": asdict(Rules())}, sort_keys=True)
        return f"{self.corpus}-{self.method}-{told}-s{self.seed}-{hashlib.sha256(values.encode()).hexdigest()[:12]}.json"


@dataclass(frozen=True)
class Measured:
    """A finished cell: its counts, or why nothing could be poisoned."""

    cell: FilterCell
    counts: Counts | None
    nothing: str = ""


def grid(names: Sequence[str], values: FilterGrid) -> list[FilterCell]:
    """Return the cells of some corpora: clean draws first, then every trigger, target, PR and, where clients pool, rho."""
    found = []
    for corpus in names:
        for method in METHODS:
            plain = FilterCell(corpus, method, "", "", 0.0, 0.0, 0, values.clients, values.size)
            found += [replace(plain, seed=seed) for seed in range(values.seeds)]
            found += [
                replace(plain, trigger=trigger, target=target, ratio=ratio, share=share, seed=seed)
                for trigger in values.triggers
                for target in values.targets
                for ratio in values.ratios
                for share in (values.rhos if method == "pooled" else (1.0,))
                for seed in range(values.seeds if trigger in MAIN[0] and target in MAIN[1] else 1)
            ]
    return found


def measure(cell: FilterCell, samples: Sequence[Sample]) -> Measured:
    """Measure a cell on the samples of its corpus's half."""
    from undertow.defenses.data.sanitization import Sanitization

    clients = deal(samples, cell.clients, cell.size, cell.seed)
    own = len(clients[0])
    if not own:
        return Measured(cell, None, f"{len(samples)} samples are too few for {cell.clients} clients")
    together = own * (cell.clients if cell.method == "pooled" else 1)
    ratio = max(cell.ratio, 1 / own) if cell.ratio else 0.0
    attack = attack_of(cell.corpus, cell.trigger, cell.target, ratio, together, cell.share)
    try:
        if cell.method == "pooled":
            return Measured(cell, pooled(clients, attack, cell.seed, Sanitization()))
        return Measured(cell, scanned(clients, attack, cell.seed, together=False))
    except UserError as error:
        # A topic that no sample of the poisoned clients has: there is nothing to find, which is a result too.
        return Measured(cell, None, str(error))


def write(folder: Path, done: Measured, data: str) -> None:
    """Write a finished cell atomically; ``data``: the fingerprint of its corpus file."""
    told = {"nothing": done.nothing} if done.counts is None else {"counts": asdict(done.counts)}
    write_json(folder / done.cell.name, {"cell": asdict(done.cell), "half": corpora.SEALED, "data": data, **told})


def read(folder: Path, cell: FilterCell, data: str | None) -> Measured | None:
    """Return a finished cell; None where it is missing.

    Args:
        folder: of the cells.
        cell: which.
        data: the fingerprint of the corpus file at hand; None where there is none to compare with.

    Raises:
        ValueError: the file is damaged, is another cell's, or was made from another corpus file.
    """
    try:
        found: Any = json.loads((folder / cell.name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if not isinstance(found, dict) or found.get("cell") != asdict(cell) or found.get("half") != corpora.SEALED:
        raise ValueError("it is not this cell")
    if data is not None and found.get("data") != data:
        raise ValueError("it was made from another corpus file")
    if "counts" not in found:
        if not isinstance(found.get("nothing"), str) or not found["nothing"]:
            raise ValueError("it has no counts")
        return Measured(cell, None, found["nothing"])
    return Measured(cell, _checked(found["counts"]))


def _checked(found: Any) -> Counts:
    """Return counts of a file, if they can be true."""
    try:
        made = Counts(**found)
    except TypeError as error:
        raise ValueError("its counts have other names") from error
    whole = [made.samples, made.poison, made.hits, made.lost, made.fewest, made.support]
    if not isinstance(made.details, dict):
        raise ValueError("its details are no object")
    if any(type(count) is not int or count < 0 for count in [*whole, *made.details.values()]):
        raise ValueError("a count is no whole number from 0")
    if any(type(value) not in (int, float) or not math.isfinite(value) or value < 0 for value in (made.worst, made.seconds)):
        raise ValueError("a number is out of its range")
    if made.hits > made.poison or made.poison > made.samples or made.lost > made.samples - made.poison or made.worst > 1:
        raise ValueError("its counts contradict each other")
    return made


class FilterWork:
    """The cells of a study: what is there, and making what is missing.

    Args:
        folder: of the cells.
        data: folder with the corpora; None where there is none, and nothing can be made.
        names: the corpora.
        values: the grid.
    """

    def __init__(self, folder: Path, data: Path | None, names: Sequence[str], values: FilterGrid) -> None:
        self.folder, self.data = folder, data
        self.cells = grid(names, values)
        self._prints = {name: corpora.fingerprint(data, name) for name in names} if data else {}
        self._known: dict[FilterCell, Measured] = {}

    def results(self) -> tuple[list[Measured], list[str]]:
        """Return the finished cells in the order of the grid, and a line for each file that cannot be used."""
        damaged = []
        for cell in self.cells:
            if cell not in self._known:
                try:
                    found = read(self.folder, cell, self._prints.get(cell.corpus))
                except ValueError as error:
                    damaged.append(f"{self.folder / cell.name}: {error}; it is made again where --data is given")
                    continue
                if found is not None:
                    self._known[cell] = found
        return [self._known[cell] for cell in self.cells if cell in self._known], damaged

    def complete(self) -> bool:
        """Tell whether every cell is there."""
        return len(self.results()[0]) == len(self.cells)

    def todo(self) -> int:
        """Return the number of cells that :meth:`run` would make."""
        return len(self.cells) - len(self.results()[0]) if self.data else 0

    def told(self) -> str:
        """Say how many of the cells are there."""
        return f"{len(self.results()[0])} of {len(self.cells)} cells"

    def run(self, jobs: int, say: Callable[[str], None]) -> dict[str, str]:
        """Make what is missing, ``jobs`` cells at a time, and return the errors of those that failed, by file name.

        An interrupt leaves the finished ones. ``say`` is told of damaged files, and how far it is.
        """
        if self.data is None:
            return {}
        done, damaged = self.results()
        for line in damaged:
            say(line)
        left = [cell for cell in self.cells if cell not in self._known]
        failed: dict[str, str] = {}
        for number, (cell, error) in enumerate(self._finish(left, jobs), start=1):
            if error:
                failed[cell.name] = error
            if number % _STRIDE == 0 or number == len(left):
                missing = f", {len(failed)} failed" if failed else ""
                say(f"filter: {len(done) + number - len(failed)} of {len(self.cells)} cells{missing}")
        return failed

    def _finish(self, left: Sequence[FilterCell], jobs: int) -> Any:
        """Yield each cell when it is finished, with its error or an empty text."""
        assert self.data is not None
        if jobs == 1 or len(left) < 2:
            for cell in left:
                yield cell, _make(cell, self.folder, self.data, self._prints[cell.corpus])
            return
        # fresh processes: a fork of one that has loaded torch can hang
        pool = ProcessPoolExecutor(min(jobs, len(left)), mp_context=get_context("spawn"), initializer=_be_a_worker)
        try:
            waiting = {pool.submit(_make, cell, self.folder, self.data, self._prints[cell.corpus]): cell for cell in left}
            for future in as_completed(waiting):
                try:
                    error = future.result()
                except BrokenProcessPool:
                    error = "its process was killed; give fewer --jobs if memory is short"
                yield waiting[future], error
        finally:
            pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=1)
def _samples(data: Path, corpus: str) -> list[Sample]:
    return corpora.read(data, corpus, corpora.SEALED)


def _be_a_worker() -> None:
    """Leave interrupts to the parent, which lets its processes end what they began; and end with it if it is killed.

    Of themselves, the processes of a killed pool make one cell more and then wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # cells are written whole or not at all

    Thread(target=follow, daemon=True).start()


def _make(cell: FilterCell, folder: Path, data: Path, fingerprint: str) -> str:
    """Make one cell and write it; return its error or an empty text."""
    try:
        write(folder, measure(cell, _samples(data, cell.corpus)), fingerprint)
    except UserError as error:
        return str(error)
    return ""
