"""The run directory is the state: the same command run again resumes, or finds nothing left to do.

    config.yaml     effective values            rounds.jsonl   one line per round; round 0 = the untouched base
    versions.json   what it ran on              scores.jsonl   every scored output
    data.json       split, clients, natural     poison.jsonl   ground truth, for metrics only
    threat.json     who attacks, who knows what
    checkpoint/     the last two rounds         adapter/       the final adapter in PEFT format
    result.json     the final figures           report.html, figures/

A checkpoint records how long the two growing files were when it was written; a resumed run cuts them back to
that length, so a kill at any moment leaves no half line and no line twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from undertow.config import Config, by_short_names
from undertow.core.errors import UserError
from undertow.core.files import check_folder, write_bytes, write_json, write_text
from undertow.runs.damage import damage
from undertow.runs.records import Result, Round, Score, Written, check, lines, read_json, read_jsonl
from undertow.runs.seal import FILE as SEALED
from undertow.runs.seal import changes, extend, refuse_edited

GROWING: dict[str, type[Written]] = {kind.FILE: kind for kind in (Round, Score)}
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class State:
    """What a round leaves behind.

    Attributes:
        round: its number.
        adapter: the global adapter ``[D]``.
        seconds: spent so far.
        defenses: what the defenses remember, by name.
    """

    round: int
    adapter: Tensor
    seconds: float
    defenses: Mapping[str, Tensor] = field(default_factory=dict)


class RunDirectory:
    """One run on disk, held by one process at a time."""

    def __init__(self, folder: Path, lock: IO[str]) -> None:
        self.folder = folder
        self._lock = lock

    @classmethod
    def open(cls, folder: Path, config: Config, more_rounds: bool = False) -> RunDirectory:
        """Create the directory of a run, or take up an existing one.

        Until a first checkpoint exists the config may still change: a try that was refused for a wrong value is
        mended and run again in the same place. With ``more_rounds`` a run whose config differs in a larger number of rounds alone
        is taken up, too (:func:`undertow.runs.seal.extend`).

        Raises:
            UserError: the folder holds another config's run (with the differing lines), something that is no run,
                cannot be written, or is in use.
        """
        effective = folder / "config.yaml"
        if not (folder / Result.FILE).exists():
            check_folder("--out", folder)
        if folder.is_dir() and not effective.exists() and any(p.name not in ("lock", ".config.yaml.new") for p in folder.iterdir()):
            raise UserError(f"{folder} holds files but no run; give --out an empty or new folder")
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise UserError(f"{folder} is in use by another process; wait for it, or give another --out") from error
        try:
            if effective.exists() and not _only_begun(folder):
                if more_rounds:
                    extend(folder, _read_config(effective), config)
                _refuse_other_config(effective, config)
                refuse_edited(folder, config)
            else:
                (folder / SEALED).unlink(missing_ok=True)
                write_text(effective, yaml.safe_dump(config.values(), sort_keys=False, allow_unicode=True))
        except BaseException:
            lock.close()
            raise
        return cls(folder, lock)

    def close(self) -> None:
        """Let another process use the directory."""
        self._lock.close()

    def result(self) -> dict[str, Any] | None:
        """Return the final figures, or None while the run is unfinished.

        Raises:
            UserError: they are damaged.
        """
        path = self.folder / Result.FILE
        if not path.exists():
            return None
        values = read_json(path)
        check(Result, values, path)
        return values

    def append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows to one of the growing files as records of its kind, and wait until they are on disk."""
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(lines(GROWING[name], rows))
            file.flush()
            os.fsync(file.fileno())

    def checkpoint(self, state: State) -> None:
        """Save a finished round atomically and drop all but the last two.

        Checkpoints of later rounds are damaged ones that a resumed run went back from; kept, they would push out the good.
        """
        root = self.folder / "checkpoint"
        fresh, final = root / ".new", root / f"round-{state.round:06d}"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        fresh.mkdir(parents=True)
        weights = save({"adapter": state.adapter})
        write_bytes(fresh / "adapter.safetensors", weights)
        offsets = {name: _size(self.folder / name) for name in GROWING}
        values = {
            "round": state.round,
            "seconds": state.seconds,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "offsets": offsets,
        }
        if state.defenses:
            memory = save({name: value.contiguous() for name, value in state.defenses.items()})
            write_bytes(fresh / "defenses.safetensors", memory)
            values["defenses"] = hashlib.sha256(memory).hexdigest()
        write_json(fresh / "state.json", values)
        fresh.rename(final)
        found = sorted(root.glob("round-*"))
        place = found.index(final) + 1
        for old in [*found[: max(0, place - KEPT_CHECKPOINTS)], *found[place:]]:
            shutil.rmtree(old)

    def resume(self, size: int) -> tuple[State | None, list[str]]:
        """Return the newest checkpoint that is intact, and a line for each damaged one.

        A checkpoint is not intact either where the growing files are damaged before it: a line that cannot be read, a round
        without one. They are cut back to that round; without any checkpoint they are emptied.

        Args:
            size: D, what the adapter must have.
        """
        warnings: list[str] = []
        for folder in sorted((self.folder / "checkpoint").glob("round-*"), reverse=True):
            try:
                state, offsets = _read_checkpoint(folder, size)
                for name, kind in GROWING.items():
                    wrong = damage(self.folder / name, offsets[name], kind, state.round if kind is Round else None)
                    if wrong is not None:
                        raise ValueError(wrong)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                warnings.append(f"checkpoint {folder.name} is damaged ({reason}); going back to the one before it")
                continue
            for name in GROWING:
                _cut(self.folder / name, offsets[name])
            return state, warnings
        for name in GROWING:
            _cut(self.folder / name, 0)
        return None, warnings

    def rounds(self) -> list[dict[str, Any]]:
        """Return the lines of ``rounds.jsonl``."""
        return read_jsonl(self.folder / "rounds.jsonl")

    def scores(self) -> list[dict[str, Any]]:
        """Return the lines of ``scores.jsonl``."""
        return read_jsonl(self.folder / "scores.jsonl")


def refit_checkpoints(folder: Path) -> None:
    """Let a run's checkpoints know the lengths of its growing files after these were written anew, row by row as they were.

    A damaged checkpoint stays as it is: a resumed run passes it over.
    """
    for state in sorted((folder / "checkpoint").glob("round-*/state.json")):
        try:
            values = read_json(state)
        except UserError:
            continue
        if not isinstance(values.get("offsets"), dict) or not isinstance(values.get("round"), int):
            continue
        for name in GROWING:
            with open(folder / name, "rb") as file:
                values["offsets"][name] = sum(len(line) for line in file if json.loads(line)["round"] <= values["round"])
        write_json(state, values)


def _only_begun(folder: Path) -> bool:
    """Tell whether a run failed before it measured anything, so that another config loses nothing."""
    if {p.name for p in folder.iterdir()} - {"config.yaml", "lock", "versions.json", "data.json", "poison.jsonl", "threat.json"}:
        return False
    try:
        Config.model_validate(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return False  # not ours to overwrite
    return True


def _read_config(path: Path) -> Config:
    try:
        return Config.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is damaged; remove the folder or give another --out") from error


def _refuse_other_config(path: Path, config: Config) -> None:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged; remove the folder or give another --out") from error
    try:
        # a run of an older version lacks newer fields, which are at their defaults then
        found = by_short_names(Config.model_validate(found).identity())
    except ValueError:
        found = {k: v for k, v in found.items() if k not in ("compare", "tracking")} if isinstance(found, dict) else found
    own = by_short_names(config.identity())
    if found == own:
        return
    shown = changes(found, own)
    raise UserError(
        f"{path.parent} holds a run with other values ({shown}); give another --out, or the same values{_hint(found, own)}"
    )


def _hint(found: Any, own: Any) -> str:
    """Name --more-rounds where it is all that is missing."""
    rounds = [values.get("federation", {}).get("rounds", 0) if isinstance(values, dict) else 0 for values in (found, own)]
    if not (isinstance(found, dict) and isinstance(found.get("federation"), dict) and rounds[1] > rounds[0]):
        return ""
    same = {**found, "federation": {**found["federation"], "rounds": rounds[1]}} == own
    return "; for more rounds of the same run add --more-rounds" if same else ""


def _read_checkpoint(folder: Path, size: int) -> tuple[State, dict[str, int]]:
    values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    weights = (folder / "adapter.safetensors").read_bytes()
    if hashlib.sha256(weights).hexdigest() != values["sha256"]:
        raise ValueError("its checksum is wrong")
    adapter = load(weights)["adapter"]
    if adapter.shape != (size,) or not torch.isfinite(adapter).all():
        raise ValueError(f"its adapter has shape {list(adapter.shape)}, this model needs [{size}] finite values")
    defenses: dict[str, Tensor] = {}
    if "defenses" in values:
        memory = (folder / "defenses.safetensors").read_bytes()
        if hashlib.sha256(memory).hexdigest() != values["defenses"]:
            raise ValueError("the checksum of its defenses is wrong")
        defenses = load(memory)
    return State(int(values["round"]), adapter, float(values["seconds"]), defenses), {
        k: int(v) for k, v in values["offsets"].items()
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cut(path: Path, length: int) -> None:
    if _size(path) > length:
        os.truncate(path, length)
