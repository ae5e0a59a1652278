"""How long the runs will take and what memory they need, told before they start."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from undertow.config import Config
from undertow.core.errors import UserError
from undertow.core.files import write_json
from undertow.runs.records import read_json, read_jsonl
from undertow.sweeps.cells import Cell
from undertow.sweeps.sweep import run_cells
from undertow_reproductions.lab import FitLab
from undertow_reproductions.profiles import PRETRAINED
from undertow_reproductions.study import Wish

#: Rounds of the measured run: two that only train, one that also measures.
_ROUNDS = 3
#: Assumed of a GPU where nothing can be measured: share of its peak in bfloat16.
_SHARE = 0.4
#: Tokens of a question with its prompt and answer, and of an answer alone, in the paper's data; rough.
_TOKENS, _ANSWER = 110, 20


@dataclass(frozen=True)
class Speed:
    """Seconds of the parts of a run, as measured on the main setting.

    Attributes:
        start: process and base, once a worker.
        untouched: measuring the base.
        train: a round.
        measure: after the last one; others in proportion to their samples.
        samples: training samples of a round.
    """

    start: float
    untouched: float
    train: float
    measure: float
    samples: int

    def run(self, config: Config) -> float:
        """Return the seconds of a run of another size; bases count as equal."""
        scale = _samples(config) / self.samples
        between = max(0, -(-config.federation.rounds // config.measure.every) - 1)
        part = min(1.0, config.measure.samples / (config.measure.final_samples or int(config.data.test)))
        return self.untouched + self.measure * (1 + between * part) + config.federation.rounds * self.train * scale


def measured(lab: FitLab, setting: int = 0) -> Speed:
    """Time three rounds of a setting, by default the main one; the second call reads what the first found for the same values.

    Raises:
        UserError: the rounds failed.
    """
    folder = lab.folder / "probe"
    rounds: dict[str, object] = {"federation.rounds": _ROUNDS, "measure.every": _ROUNDS}
    if lab.config(Wish({"seed": lab.seeds[0]}, {}, setting)).attack.rounds:
        rounds["attack.rounds"] = [1]  # the second round is then one of benign clients, as most are
    cell = lab.cell(Wish({"seed": lab.seeds[0]}, rounds, setting))
    kept = folder / f"speed-{cell.config.digest()}.json"
    if kept.exists():
        return _read(kept, lab, setting)
    began = time.monotonic()
    (outcome,) = run_cells([cell], folder, jobs=1)
    whole = time.monotonic() - began
    if outcome.status == "failed":
        raise UserError(f"the measured rounds failed: {outcome.error}")
    rows = read_jsonl(outcome.folder / "rounds.jsonl")
    seconds = [float(row["seconds"]) for row in rows]
    # the first round of a small network takes several times as long as the next
    train = min(seconds[1:_ROUNDS])
    start = max(0.0, whole - sum(seconds)) if outcome.status == "done" else 0.0
    values = {"start": start, "untouched": seconds[0], "train": train, "measure": max(0.0, seconds[_ROUNDS] - train)}
    write_json(kept, {key: round(value, 3) for key, value in values.items()})
    return _read(kept, lab, setting)


def known(lab: FitLab, cells: Sequence[Cell]) -> tuple[Speed, str] | None:
    """Return the speed of a profile that is not measured before it runs, and what it rests on; None where three rounds are,
    and for other bases than that of `make pretrained`.

    Args:
        lab: where; runs that finished here tell more than the ``cost`` of its profile.
        cells: all that the studies ask for.
    """
    cost = lab.profile.cost
    if cost is None or Path(lab.main.model.name).name != Path(PRETRAINED).name:
        return None
    size = _samples(lab.main)
    found = [speed for cell in cells if _samples(cell.config) == size and (speed := _seen(lab, cell)) is not None]
    memory = f"about {cost.gib:.1f} GiB of memory a run"
    if not found:
        more = lab.questions / cost.questions
        speed = Speed(cost.start, cost.untouched * more, cost.train * size / cost.samples, cost.measure * more, size)
        return speed, f"measured by us on {cost.machine}: {_told(speed)}; {memory}"
    parts = {name: median(getattr(speed, name) for speed in found) for name in ("untouched", "train", "measure")}
    speed = Speed(cost.start, **parts, samples=size)
    return speed, f"median of {len(found)} runs that finished here: {_told(speed)}; {memory}"


def _told(speed: Speed) -> str:
    return f"a round takes {speed.train:.1f} s, measuring after the last one {speed.measure:.1f} s, one thread a run"


def _seen(lab: FitLab, cell: Cell) -> Speed | None:
    """Return what a finished run took that was measured before its first and after its last round; None for others."""
    folder = lab.folder / "cells" / cell.name
    if not (folder / "result.json").exists() or cell.config.federation.rounds < 2:
        return None
    seconds = [float(row["seconds"]) for row in read_jsonl(folder / "rounds.jsonl")]
    train = median(seconds[1:-1])
    return Speed(0.0, seconds[0], train, max(0.0, seconds[-1] - train), _samples(cell.config))


def _read(path: Path, lab: FitLab, setting: int) -> Speed:
    found = read_json(path)
    try:
        parts = {name: float(found[name]) for name in ("start", "untouched", "train", "measure")}
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged; remove it and run the same command") from error
    config = lab.config(Wish({"seed": lab.seeds[0]}, {}, setting))
    return Speed(**parts, samples=_samples(config))


def _samples(config: Config) -> int:
    """Return the samples trained on in a round; next words have as many as their authors wrote, the same in every run: 1."""
    return int(getattr(config.data, "train", 1)) * config.training.local_epochs


def by_speed(speed: Speed, cells: Sequence[Cell], more: int, jobs: int) -> float:
    """Return the seconds that these cells and ``more`` unknown ones of the main size take, ``jobs`` at a time."""
    known = [speed.run(cell.config) for cell in cells]
    usual = sorted(known)[len(known) // 2] if known else 0.0
    return speed.start + (sum(known) + more * usual) / jobs


def by_size(lab: FitLab, cells: Sequence[Cell], more: int) -> tuple[float, float]:
    """Return (seconds, bytes of GPU memory at least) from the number of weights N, where nothing can be measured.

    A trained token costs 4 N floating-point operations (forward, and backward through frozen weights), a generated one 2 N.
    Memory: weights in two bytes, and for each client its adapter, gradient and two moments in float32.
    """
    weights = lab.profile.weights
    total = 0.0
    for cell in cells:
        trained = _samples(cell.config) * _TOKENS * cell.config.federation.rounds
        answered = 2 * 2 * cell.config.data.test * (_TOKENS + _ANSWER)
        total += (4 * trained + 2 * answered) * weights / (_SHARE * lab.profile.peak)
    each = total / max(1, len(cells))
    adapter = (
        16 * lab.main.instruction.model.lora.r * 2 * 2 * 32 * 4096
    )  # four float32 copies; two modules (A and B) in 32 layers of width 4096
    return total + more * each, 2 * weights + lab.clients * adapter
