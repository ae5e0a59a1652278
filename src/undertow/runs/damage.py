"""Damage to the files of a run: what to do about it, and whether the growing files hold what a checkpoint counted on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from undertow.core.rules import first_rule

_RESULT = "result.json"
#: Written line by line: a run goes back to a checkpoint before the damage.
_GROWING = ("rounds.jsonl", "scores.jsonl")
#: Read before they are written again, so that they must go first.
_FIRST = (_RESULT, "versions.json", "tracking.json", "network.jsonl", "audits.jsonl")
#: Written again by a run that is taken up.
_AGAIN = ("data.json", "poison.jsonl", "threat.json", "neighbourhood.jsonl")


def mend(path: Path) -> str:
    """Return what to do about a damaged file, true as the run stands now: a finished one does nothing until its result is gone."""
    if path.name == "one-process.json":
        return "give `undertow federate --check` again"
    if path.name not in (*_GROWING, *_FIRST, *_AGAIN):
        return "mend it, or copy it again"
    gone = ["it"] if path.name in _FIRST else []
    if path.name != _RESULT and path.with_name(_RESULT).exists():
        gone.append(f"{_RESULT} beside it")
    delete = f"delete {' and '.join(gone)} and " if gone else ""
    how = "goes back to a round before the damage" if path.name in _GROWING else "makes it again"
    return f"{delete}repeat the run's command, which {how}"


def absent(path: Path) -> str:
    """Return what to do where a file of a run is not there: a run that has begun is unfinished, any other folder is none."""
    begun = path.with_name("config.yaml").exists() and not path.with_name(_RESULT).exists()
    return "the run is unfinished: repeat its command, it resumes" if begun else "give the folder of an undertow run"


def damage(path: Path, length: int, kind: type[BaseModel], last: int | None) -> str | None:
    """Say what is wrong with the first ``length`` bytes of a growing file.

    Args:
        path: of the file.
        length: that it had at a checkpoint.
        kind: of its lines.
        last: there must be a line for each round up to this one, in order; None for a file with any number of lines a round.

    Returns:
        One line; None for a sound file.
    """
    content = path.read_bytes() if path.exists() else b""
    if len(content) < length:
        return f"{path.name} is shorter than when it was saved"
    rounds: list[int] = []
    *whole, rest = content[:length].split(b"\n")
    for number, line in enumerate(whole, 1):
        try:
            row: Any = json.loads(line)
            kind.model_validate(row)
        except ValidationError as error:
            return f"{path.name} line {number}: {first_rule(error)}"
        except ValueError as error:
            return f"{path.name} line {number}: not JSON ({error})"
        if last is not None:
            rounds.append(row["round"])
    if rest:
        return f"{path.name} line {len(whole) + 1} has lost its end"
    if last is not None and rounds != list(range(last + 1)):
        return f"{path.name} does not hold one line for each round from 0 to {last}"
    return None
