"""The effective config of a run is sealed when the run begins.

A ``config.yaml`` that somebody edits later would change what the run's figures mean, so a run whose config is not the sealed one is
refused wherever it is read.

The seal is the value ``config`` of ``versions.json``, which a run writes before its first expensive step.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from undertow.config import Config, by_short_names
from undertow.core.errors import UserError
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


def changes(old: Any, new: Any) -> str:
    """Return the lines in which two configs differ, at most six, old ones with a minus."""
    before, after = (yaml.safe_dump(value, sort_keys=True, allow_unicode=True).splitlines() for value in (old, new))
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    found = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return "; ".join(" ".join(line.split()) for line in found[:6])
