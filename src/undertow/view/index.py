"""What is in a folder: its runs, and the JSON of scans and audits, read anew where files have changed.

The table needs of a run its config, its status and its last figures; nothing else is kept. A run that is damaged, edited or of a
newer version keeps its place in the table, with what is wrong.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undertow.config.names import leaves
from undertow.core.errors import UserError
from undertow.core.registry import defense_text
from undertow.runs.damage import mend
from undertow.runs.records import Rate, Result, Round, Untouched, read_lines
from undertow.runs.run import Run
from undertow.view import status

#: Seconds within which a folder is not looked at again, however many readers ask.
REST = 2.0
#: Share of a core that searching for new folders may take; in between only runs that are not finished are looked at.
SHARE = 0.01
#: Runs after which the first search shows what it has.
PART = 20
#: Files of a run whose change changes its row.
_WATCHED = ("config.yaml", "versions.json", "rounds.jsonl", "result.json")
#: Any of these makes a folder a run, whole or damaged.
_MARKS = {"config.yaml", "rounds.jsonl", "result.json"}
#: Files of a run that pages read beside these.
_READ = ("data.json", "threat.json", "scores.jsonl", "poison.jsonl", "network.jsonl", "one-process.json", "report.html")
#: Folders that hold no runs, and are large.
_PASSED = {"node_modules", "site-packages", "__pycache__"}
#: How the JSON of a scan or an audit begins, and a log of inspect_ai.
_DOCUMENT = re.compile(rb'\s*\{\s*("(undertow|adapter)"\s*:\s*"|"version"\s*:\s*\d+,\s*"status"\s*:)')
_RATES = ("ma", "asr", "ftr", "ftr_near")

Stamp = tuple[tuple[int, int], ...]


@dataclass
class Entry:
    """One run of the table.

    Attributes:
        path: its folder below the root, with ``/``; ``.`` for the root itself.
        folder: the directory.
        stamp: of the files that ``row`` was read from.
        config: the effective config by dotted short names; lists as JSON text, defenses in short.
        row: what the table shows, as JSON.
    """

    path: str
    folder: Path
    stamp: Stamp
    config: dict[str, Any] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The table as it is sent: its tag, which changes with it, and its JSON plain and packed by gzip, made once for all readers."""

    tag: str
    plain: bytes
    packed: bytes


class Index:
    """The runs and documents below a folder, as they were at the last look."""

    def __init__(self, root: Path) -> None:
        """Take a folder; nothing is read yet.

        Raises:
            UserError: no such folder.
        """
        if not root.is_dir():
            raise UserError(f"no folder {root}; give a folder that holds runs, such as runs/ or sweeps/")
        self.root = root.resolve()
        self.runs: dict[str, Entry] = {}
        self.documents: dict[str, Path] = {}
        self.complete = False
        self._version = 0
        self._written = (-1, Table("", b"", b""))
        self._looked = self._searched = self._rest = 0.0
        self._busy, self._writing = threading.Lock(), threading.Lock()
        self._configs: list[dict[str, Any]] = []
        self._keys: tuple[list[str], dict[str, Any]] = ([], {})
        self._rows: dict[str, tuple[Entry, str]] = {}

    def known(self) -> Table | None:
        """Return the table where nobody has to look or write for it; for callers that must not wait."""
        version, table = self._written
        return table if version == self._version and time.monotonic() - self._looked <= REST else None

    def look(self) -> Table:
        """Return the table; the folder is looked at every :data:`REST` seconds at most.

        While one reader's look goes on all others get what is known, which at the start is a part of the table.
        """
        if time.monotonic() - self._looked > REST and self._busy.acquire(blocking=False):
            try:
                began = time.monotonic()
                if self.complete and began - self._searched <= self._rest:
                    self._follow()
                else:
                    self._search()
                    self._searched = time.monotonic()
                    self._rest = (self._searched - began) / SHARE
            finally:
                self._looked = time.monotonic()
                self._busy.release()
        with self._writing:
            version, table = self._written
            if version != self._version:
                version = self._version
                content = self._json().encode()
                table = Table(f'"{os.getpid()}-{version}"', content, gzip.compress(content, 1))
                self._written = version, table
        return table

    def run(self, path: str) -> Run:
        """Return a run of the table.

        Raises:
            UserError: there is none of this name below the folder, or a file of it leads out.
        """
        folder = self.entry(path).folder
        refuse_links(self.root, folder)
        return Run(folder)

    def entry(self, path: str) -> Entry:
        """Return a row of the table; :class:`UserError` where there is none."""
        if path not in self.runs:
            raise UserError(f"no run '{path}' in this folder; it may have been moved, load the page again")
        return self.runs[path]

    def document(self, path: str) -> Path:
        """Return the file of a scan or an audit; :class:`UserError` where there is none."""
        if path not in self.documents:
            raise UserError(f"no scan or audit '{path}' in this folder; it may have been moved, load the page again")
        return self.documents[path]

    def _search(self) -> None:
        locks = status.held()
        runs: list[Path] = []
        documents: dict[str, Path] = {}
        for folder, is_run, names in _folders(self.root):
            if is_run:
                runs.append(folder)
            documents |= {self._name(folder / name): folder / name for name in names if _is_document(folder / name)}
        kept: dict[str, Entry] = {}
        changed = documents != self.documents or len(runs) != len(self.runs)
        for folder in runs:
            path = self._name(folder)
            entry, fresh = self._read(path, folder, locks)
            kept[path] = entry
            changed |= fresh
            if not self.complete and len(kept) % PART == 0:
                self.runs = dict(kept)
                self._version += 1
        # new ones in place of old ones: other threads read them meanwhile
        self.runs, self.documents = kept, documents
        if changed or not self.complete:
            self.complete = True
            self._version += 1

    def _follow(self) -> None:
        """Look at the runs that are not finished."""
        locks, kept, changed = status.held(), dict(self.runs), False
        for path, entry in self.runs.items():
            if entry.row["status"] != "finished" and entry.folder.is_dir():
                kept[path], fresh = self._read(path, entry.folder, locks)
                changed |= fresh
        if changed:
            self.runs = kept
            self._version += 1

    def _read(self, path: str, folder: Path, locks: frozenset[int]) -> tuple[Entry, bool]:
        """Return a run's entry, and whether it is another than before."""
        stamp = stamp_of(folder)
        old = self.runs.get(path)
        if old is not None and old.stamp == stamp:
            if old.row["status"] not in ("running", "stopped"):
                return old, False
            now = status.status(folder, False, old.row["pace"], locks)
            if now == old.row["status"]:
                return old, False
            return Entry(path, folder, stamp, old.config, {**old.row, "status": now}), True
        config, row = _row(self.root, path, folder, locks)
        # the same object for the same config, so that a new round is no new table
        return Entry(path, folder, stamp, old.config if old is not None and old.config == config else config, row), True

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _json(self) -> str:
        """Return all rows; a field with one value in all runs that have it is told once."""
        entries = sorted(self.runs.values(), key=lambda entry: entry.path)
        configs = [entry.config for entry in entries]
        if len(configs) != len(self._configs) or any(a is not b for a, b in zip(configs, self._configs, strict=True)):
            keys = dict.fromkeys(key for config in configs for key in config)
            whole = [entry for entry in entries if entry.config]
            shared = {key: whole[0].config[key] for key in keys if _same(key, whole)}
            self._configs, self._keys, self._rows = configs, ([key for key in keys if key not in shared], shared), {}
        fields, shared = self._keys
        self._rows = {entry.path: (entry, self._row_text(entry, shared)) for entry in entries}
        told = {
            "folder": self.root.name or str(self.root),
            "complete": self.complete,
            "fields": fields,
            "shared": shared,
            "documents": sorted(self.documents),
        }
        return f'{json.dumps(told, ensure_ascii=False)[:-1]}, "runs": [{", ".join(text for _, text in self._rows.values())}]}}'

    def _row_text(self, entry: Entry, shared: dict[str, Any]) -> str:
        """Return a row as JSON; one that is as it was is not written again."""
        if entry.path in self._rows and self._rows[entry.path][0] is entry:
            return self._rows[entry.path][1]
        own = {key: value for key, value in entry.config.items() if key not in shared}
        return json.dumps({**entry.row, "config": own}, ensure_ascii=False)


def stamp_of(folder: Path, names: tuple[str, ...] = _WATCHED) -> Stamp:
    """Return the time and size of a run's files; zeros where one is missing."""
    found = []
    for name in names:
        try:
            now = os.stat(folder / name)
            found.append((now.st_mtime_ns, now.st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def inside(root: Path, path: Path) -> Path:
    """Return where a path really leads.

    Raises:
        UserError: out of the folder, by a link or otherwise.
    """
    real = path.resolve()
    if not real.is_relative_to(root):
        raise UserError(f"{path.name} leads out of the folder that is shown; give `undertow view` the folder that holds it")
    return real


def refuse_links(root: Path, folder: Path) -> None:
    """Raise :class:`UserError` where a file of a run is a link out of the folder that is shown."""
    for name in (*_WATCHED, *_READ):
        if os.path.islink(f"{folder}/{name}"):
            inside(root, folder / name)


def numbers(rate: Rate | None) -> list[float | int | None] | None:
    """Return a rate as value, low, high and n; None where there is none."""
    return None if rate is None or rate.value is None else [rate.value, rate.low, rate.high, rate.n]


def _row(root: Path, path: str, folder: Path, locks: frozenset[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    parent, _, name = path.rpartition("/")
    row: dict[str, Any] = {"path": path, "group": parent or ".", "name": name, "changed": _changed(folder)}
    try:
        refuse_links(root, folder)
        run = Run(folder)
        values = run.config.short_values()
        values["defenses"] = defense_text(values["defenses"])
        values.pop("format", None)
        config = {key: _plain(value) for key, value in leaves(values)}
        result = run.result
        if result:
            _refuse_lost_rounds(folder, result)
        told = _of_result(result) if result else _of_rounds(run.rounds, config["federation.rounds"], folder, locks)
    except (OSError, ValueError) as error:
        return {}, {**row, "status": "damaged", "error": " ".join(str(error).split())}
    return config, {**row, **told}


def _refuse_lost_rounds(folder: Path, result: Result) -> None:
    """Raise :class:`UserError` where a finished run's rounds cannot be read, or end before the last."""
    path, last = folder / Round.FILE, None
    for _, values in read_lines(path):
        last = values.get("round")
    if last != result.rounds:
        raise UserError(f"{path} does not end with round {result.rounds}, the last of {Result.FILE}; {mend(path)}")


def _of_result(result: Result) -> dict[str, Any]:
    peak = max((value for value in result.bsnr if value is not None), default=None)
    return {
        "status": "finished",
        "round": result.rounds,
        "seconds": result.seconds,
        "bsnr": peak,
        "caveats": len(result.caveats),
        **_figures(result, result.untouched),
    }


def _of_rounds(rounds: list[Round], planned: int, folder: Path, locks: frozenset[int]) -> dict[str, Any]:
    pace = status.pace(rounds)
    done = rounds[-1].round if rounds else 0
    measured = [record for record in rounds if record.ma or record.asr]
    first = measured[0] if measured and measured[0].round == 0 else Untouched()
    return {
        "status": status.status(folder, False, pace, locks),
        "round": done,
        "pace": pace,
        "left": pace * (planned - done) if pace is not None else None,
        "seconds": sum(record.seconds or 0 for record in rounds),
        "caveats": 0,
        **_figures(measured[-1] if measured else Untouched(), first),
    }


def _figures(after: Result | Round | Untouched, before: Untouched | Round) -> dict[str, Any]:
    now = {name: numbers(getattr(after, name)) for name in _RATES}
    return {**now, "before": {name: numbers(getattr(before, name)) for name in _RATES}}


def _folders(root: Path) -> Iterator[tuple[Path, bool, list[str]]]:
    """Give every folder that is a run or holds JSON, and those JSON files; nothing below a run is looked into."""
    for place, folders, files in os.walk(root):
        federation = "nodes" in folders and "config.yaml" in files  # its run is in ``run``; the nodes' folders hold keys
        is_run = bool(_MARKS & set(files)) and not federation
        if is_run or federation:
            folders[:] = ["run"] if federation and "run" in folders else []
        else:
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _PASSED)
        names = [name for name in files if name.endswith(".json")] if not is_run else []
        if is_run or names:
            yield Path(place), is_run, names


def _is_document(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return _DOCUMENT.match(file.read(200)) is not None
    except OSError:
        return False


def _same(key: str, entries: list[Entry]) -> bool:
    if not entries or key not in entries[0].config:
        return False
    value = entries[0].config[key]
    return key != "seed" and all(key in entry.config and entry.config[key] == value for entry in entries)


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _changed(folder: Path) -> float:
    return max(time for time, _ in stamp_of(folder)) / 1e9
