"""Whether a run goes on at this moment, told without touching it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from undertow.runs.records import Round

Status = Literal["finished", "running", "stopped", "damaged"]

#: Locks that processes of this machine hold (Linux alone).
LOCKS = Path("/proc/locks")
#: A run that no process of this machine holds may go on elsewhere: for so many seconds after its last line, or three rounds, it
#: counts as running.
PATIENCE = 20.0


def held() -> frozenset[int]:
    """Return the inodes of all files that a process of this machine holds with ``flock``; empty where the system does not tell.

    A run holds the file ``lock`` of its folder. Trying to lock it would refuse a run that begins at that moment.
    """
    try:
        lines = LOCKS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    fields = [line.split() for line in lines if " FLOCK " in line and "->" not in line]
    return frozenset(int(inode) for field in fields if len(field) > 5 and (inode := field[5].rpartition(":")[2]).isdecimal())


def status(folder: Path, finished: bool, seconds: float | None, locks: frozenset[int]) -> Status:
    """Tell where a run stands.

    Args:
        folder: its directory.
        finished: whether its result is there.
        seconds: what a round takes, if any is done.
        locks: from :func:`held`.
    """
    if finished:
        return "finished"
    try:
        if os.stat(folder / "lock").st_ino in locks:
            return "running"
        grown = max(_changed(folder / name) for name in ("rounds.jsonl", "config.yaml"))
    except OSError:
        return "stopped"
    # a clock that was set back since leaves times that are still to come
    return "running" if abs(time.time() - grown) < max(PATIENCE, 3 * (seconds or 0)) else "stopped"


def pace(rounds: Sequence[Round]) -> float | None:
    """Return the median seconds of the last five rounds; None before there is one."""
    taken = sorted(record.seconds for record in rounds[-5:] if record.seconds is not None and record.round)
    return taken[len(taken) // 2] if taken else None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
