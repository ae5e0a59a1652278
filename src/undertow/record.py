"""What a run writes about itself beside its rounds: what it is made of, and its final figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from undertow.config import Config
from undertow.files import write_json
from undertow.metrics.measure import headline
from undertow.poisoning.placement import Poisoning, write_ground_truth
from undertow.run_directory import RunDirectory
from undertow.versions import versions

if TYPE_CHECKING:
    from undertow.experiment import Federation


def describe(directory: RunDirectory, federation: Federation, command: str) -> None:
    """Write what the run is made of, before the first expensive step."""
    config = federation.config
    sizes = [len(client) for client in federation.poisoning.clients]
    counts = [0] * len(sizes)
    for touched in federation.poisoning.touched:
        counts[touched.client] += 1
    write_json(directory.folder / "versions.json", versions(config, federation.base.device, command))
    write_json(
        directory.folder / "data.json",
        {
            **federation.split.report,
            "clients": sizes,
            "affected": list(federation.poisoning.affected),
            "poisoned": counts,
            "natural": federation.poisoning.natural,
            **({"decoys": federation.poisoning.decoys} if federation.poisoning.decoys else {}),
            "base": federation.base.facts(),
            "sanitized": federation.sanitized,
            "weighed": federation.weighed,
        },
    )
    write_ground_truth(directory.folder / "poison.jsonl", federation.poisoning.touched)


def summarise(config: Config, folder: Path, rows: list[dict[str, Any]], poisoning: Poisoning, seconds: float) -> dict[str, Any]:
    """Return the final figures: what ``--json`` prints and ``result.json`` holds."""
    first, last = rows[0], rows[-1]
    space = config.measure.bsnr.spaces[0]
    return {
        "run": str(folder),
        "rounds": last["round"],
        "seconds": round(seconds, 3),
        **headline(last),
        "untouched": headline(first),
        "bsnr": [row["bsnr"][space]["value"] if row["bsnr"] else None for row in rows[1:]],
        "poison": {
            "clients": len(poisoning.affected),
            "samples": len(poisoning.touched),
            "total": sum(len(client) for client in poisoning.clients),
        },
    }
