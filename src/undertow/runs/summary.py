"""What a run writes about itself beside its rounds: what it is made of, and its final figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from undertow.config import Config
from undertow.core.files import write_json
from undertow.metrics.measure import headline
from undertow.runs.card import write_card
from undertow.runs.directory import RunDirectory
from undertow.runs.environment import versions
from undertow.runs.records import Result
from undertow.runs.seal import history, told_history


def describe(directory: RunDirectory, config: Config, device: torch.device, data: Mapping[str, Any], command: str) -> None:
    """Write what the run is made of, before the first expensive step, its config as the seal; ``data`` is for ``data.json``."""
    told = history(directory.folder)
    write_json(directory.folder / "versions.json", {**versions(config, device, command), **({"history": told} if told else {})})
    write_json(directory.folder / "data.json", data)


def summarise(
    directory: RunDirectory,
    space: str,
    seconds: float,
    poison: Mapping[str, int],
    extra: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    *,
    final: int,
) -> dict[str, Any]:
    """Write ``result.json`` and return it: the final figures, which ``--json`` prints; before it the card of the adapter.

    Args:
        directory: of the run, all rounds done.
        space: of the BSNR that is listed.
        seconds: that training and measuring took.
        poison: how much there was.
        extra: what the task adds.
        final: the number of the last round.
        provenance: what an adapter's card says of base and data; None where there is no adapter.
    """
    rows = directory.rounds()
    if told := told_history(directory.folder):
        extra = {**extra, "caveats": [*extra.get("caveats", []), *told]}
    first, last = rows[0], rows[-1]
    if last["round"] == final and first.get("held_out_loss") is not None and last.get("held_out_loss") is None:
        diverged = (
            "after the last round the model gives logits that are no numbers: its training diverged, and the rates say nothing"
        )
        extra = {**extra, "caveats": [*extra.get("caveats", []), diverged]}
    result = Result.model_validate(
        {
            "run": str(directory.folder),
            "rounds": last["round"],
            "seconds": round(seconds, 3),
            **headline(last),
            "untouched": headline(first),
            "bsnr": [row["bsnr"][space]["value"] if row["bsnr"] else None for row in rows[1:]],
            "poison": poison,
            **extra,
        }
    )
    if provenance is not None:
        write_card(directory.folder, result, provenance)
    write_json(directory.folder / Result.FILE, result.to_json())
    return result.to_json()
