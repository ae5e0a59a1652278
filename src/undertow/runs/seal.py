"""The effective config of a run is sealed when the run begins.

A ``config.yaml`` that somebody edits later would change what the run's figures mean, so a run whose config is not the sealed one is
refused wherever it is read.

The seal is the value ``config`` of ``versions.json``, which a run writes before its first expensive step. More rounds are the one
change that is allowed later, if it is asked for; ``history`` there keeps each such change.
"""

from __future__ import annotations

import difflib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from undertow.config import Config, by_short_names
from undertow.core.errors import UserError
from undertow.core.files import write_json, write_text
from undertow.runs.records import read_json

FILE = "versions.json"


def refuse_edited(folder: Path, config: Config) -> None:
    """Compare a run's config with the sealed one; runs of older versions have no seal.

    Raises:
        UserError: they differ; the lines are named.
    """
    path = folder / FILE
    try:
        kept = read_json(path).get("config") if path.is_file() else None
        if kept == config.values():
            return
        sealed = by_short_names(Config.model_validate(kept).identity()) if isinstance(kept, dict) else None
    except ValueError:  # a damaged file is told of where it is needed
        return
    own = by_short_names(config.identity())
    if sealed is None or sealed == own:
        return
    raise UserError(
        f"{folder / 'config.yaml'} was edited after the run began ({changes(sealed, own)}); undo that, or run other values "
        "in another --out"
    )


def extend(folder: Path, found: Config, config: Config) -> None:
    """Let a run have more rounds than it was planned for: its seal and ``config.yaml`` become those of ``config``.

    The figures of before go, and the history says so. A kill at any moment leaves a folder that the same call takes up.

    Args:
        folder: of the run.
        found: what its ``config.yaml`` holds.
        config: the same but for ``federation.rounds``.

    Raises:
        UserError: fewer rounds, other values, or an edited ``config.yaml``.
    """
    before, after = found.federation.rounds, config.federation.rounds
    if _with_rounds(found, after) != by_short_names(config.identity()) or before == after:
        return  # other values are refused as ever
    if after < before:
        raise UserError(f"{folder} holds a run of {before} rounds, and --more-rounds asks for {after}; give more, or another --out")
    kept = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    if kept.get("config") != config.values():  # else it was interrupted between the two files
        refuse_edited(folder, found)
        (folder / "result.json").unlink(missing_ok=True)
        step = {"rounds_before": before, "rounds": after, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        kept |= {"config": config.values(), "config_digest": config.digest(), "history": [*kept.get("history", []), step]}
        write_json(folder / FILE, kept)
    write_text(folder / "config.yaml", yaml.safe_dump(config.values(), sort_keys=False, allow_unicode=True))


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the changes of a run's config that :func:`extend` made, oldest first."""
    path = folder / FILE
    return list(read_json(path).get("history", [])) if path.is_file() else []


def told_history(folder: Path) -> list[str]:
    """Return a line for each of them."""
    return [
        f"federation.rounds was raised from {step['rounds_before']} to {step['rounds']} at {step['at']}: until then, what depends "
        f"on the number of rounds was done for {step['rounds_before']}, and round {step['rounds_before']} measured as the last"
        for step in history(folder)
    ]


def _with_rounds(config: Config, rounds: int) -> Any:
    changed = config.model_copy(update={"federation": config.federation.model_copy(update={"rounds": rounds})})
    return by_short_names(changed.identity())


def changes(old: Any, new: Any) -> str:
    """Return the lines in which two configs differ, at most six, old ones with a minus."""
    before, after = (yaml.safe_dump(value, sort_keys=True, allow_unicode=True).splitlines() for value in (old, new))
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    found = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return "; ".join(" ".join(line.split()) for line in found[:6])
