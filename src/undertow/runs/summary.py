"""What a run writes about itself beside its rounds: what it is made of, and its final figures."""

from __future__ import annotations

from typing import Any

from undertow.config import Config
from undertow.core.files import write_json
from undertow.metrics.measure import headline
from undertow.runs.directory import RunDirectory
from undertow.runs.environment import versions
from undertow.tasks.contract import Task


def describe(directory: RunDirectory, config: Config, task: Task, command: str) -> None:
    """Write what the run is made of, before the first expensive step."""
    write_json(directory.folder / "versions.json", versions(config, task.device, command))
    write_json(directory.folder / "data.json", task.describe(directory.folder))


def summarise(config: Config, directory: RunDirectory, task: Task, seconds: float) -> dict[str, Any]:
    """Write ``result.json`` and return it: the final figures, which ``--json`` prints."""
    rows = directory.rounds()
    first, last = rows[0], rows[-1]
    space = config.measure.bsnr.spaces[0]
    result = {
        "run": str(directory.folder),
        "rounds": last["round"],
        "seconds": round(seconds, 3),
        **headline(last),
        "untouched": headline(first),
        "bsnr": [row["bsnr"][space]["value"] if row["bsnr"] else None for row in rows[1:]],
        "poison": task.poison_counts(),
        **task.extra,
    }
    write_json(directory.folder / "result.json", result)
    return result
