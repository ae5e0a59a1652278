"""Whether a run over the network is the run in one process: the same config both ways, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from undertow.config import load
from undertow.core.errors import UserError
from undertow.core.files import write_json
from undertow.core.observer import Observer
from undertow.federate.folder import Folder
from undertow.federation.loop import run
from undertow.runs.network_records import OneProcess
from undertow.runs.records import read_json, read_jsonl
from undertow.runs.report.page import write_report
from undertow.runs.tensors import read_tensors

#: What may differ between two runs of one kind: how long they took.
_TIMES = ("seconds",)


def check(folder: Folder, observer: Observer, compare: Path | None = None) -> dict[str, Any]:
    """Run a finished federation's config in one process too, and write what differs into its report.

    Args:
        folder: with a finished run; ``one-process/`` in it is the run directory of the other.
        observer: is told what happens.
        compare: a run without poison shown beside, as in the report before.

    Returns:
        :func:`differences`.

    Raises:
        UserError: whatever a run raises.
    """
    here = folder.path / "one-process"
    observer.phase("the same in one process")
    run(load(str(folder.path / "config.yaml")), here, observer, command="undertow federate --check")
    found = differences(folder.run, here)
    write_json(folder.run / OneProcess.FILE, OneProcess.model_validate(found).to_json())
    write_report(folder.run, compare)
    return found


def differences(there: Path, here: Path) -> dict[str, Any]:
    """Compare two finished runs of one config.

    Args:
        there: over the network.
        here: in one process.

    Returns:
        ``adapter`` ‖a - b‖ / ‖b‖ of the final states (b in one process), ``same_bytes`` whether they are equal to the last bit,
        ``rounds`` compared, of these ``same_clients`` with updates of the same clients, ``same_decisions`` in which all that
        defenses reported but for real numbers is the same, ``same_rows`` in which all that was recorded is but for the seconds, and
        what the run in one process measured: ``ma``, ``asr``, ``ftr``.

    Raises:
        UserError: one is unfinished.
    """
    theirs, ours = ({row["round"]: row for row in read_jsonl(folder / "rounds.jsonl")} for folder in (there, here))
    common = sorted(set(theirs) & set(ours) - {0})
    a, b = (_final(folder) for folder in (there, here))
    if a.shape != b.shape:
        raise UserError(f"{there} and {here} are runs of different models; give --out a new folder")
    result = read_json(here / "result.json")
    pairs = [(theirs[t], ours[t]) for t in common]
    return {
        "adapter": float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)),
        "same_bytes": bool(torch.equal(a, b)),
        "rounds": len(common),
        "same_clients": sum(x["participants"] == y["participants"] for x, y in pairs),
        "same_decisions": sum(_decided(x["defenses"]) == _decided(y["defenses"]) for x, y in pairs),
        "same_rows": sum(_lasting(x) == _lasting(y) for x, y in pairs),
        **{key: result[key] for key in ("ma", "asr", "ftr")},
    }


def _final(folder: Path) -> torch.Tensor:
    found = sorted((folder / "checkpoint").glob("round-*"))
    if not found:
        raise UserError(f"{folder} has no checkpoint; give the same command again")
    file = found[-1] / "adapter.safetensors"
    tensors = read_tensors(file)
    if "adapter" not in tensors:
        raise UserError(f"{file} holds no tensor 'adapter'; give the folder of a run")
    return tensors["adapter"].to(torch.float64)


def _decided(report: Any) -> Any:
    """A report without its real numbers, which sums in another order change in the last digits."""
    if isinstance(report, dict):
        return {key: _decided(value) for key, value in report.items()}
    if isinstance(report, list):
        return [_decided(value) for value in report]
    return None if isinstance(report, float) else report


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in _TIMES}
