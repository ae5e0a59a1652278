"""Reads what a run left on disk and checks every field before the report uses it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from undertow.config import validate
from undertow.core.errors import UserError
from undertow.runs.network_records import Exchange, OneProcess
from undertow.runs.records import (
    DataFacts,
    PoisonCount,
    Poisoned,
    Result,
    Round,
    Score,
    check,
    read_json,
    read_lines,
    read_record,
    read_records,
)
from undertow.runs.report.terms import TERMS, Terms
from undertow.runs.seal import refuse_edited
from undertow.runs.threat import ThreatCard


@dataclass(frozen=True)
class RunFiles:
    """A run as recorded.

    Attributes:
        name: name of the run's folder.
        config: effective values, plain data by the short names of fields.
        config_text: as written.
        rounds: one record a round, in order, round 0 first if it was measured.
        result: final figures, or None while the run is unfinished.
        poison: the first poisoned samples of up to ``SHOWN_CLIENTS`` clients, one a client.
        scores: outputs of round 0 and of the last scored round, by (round, kind, id), in file order.
        network: exchanges with the nodes of a federation, in order; none for a run in one process.
        one_process: the same config in one process, where `undertow federate --check` ran it.
        threat: the threat card; None of older runs.
    """

    name: str
    config: dict[str, Any]
    config_text: str
    versions: dict[str, Any]
    data: DataFacts
    rounds: list[Round]
    result: Result | None
    poison: list[Poisoned]
    scores: dict[tuple[int, str, str], Score]
    network: list[Exchange] = field(default_factory=list)
    one_process: OneProcess | None = None
    threat: ThreatCard | None = None

    @property
    def planned(self) -> int:
        """Rounds the config asks for."""
        return int(self.config["federation"]["rounds"])

    @property
    def scoring(self) -> str:
        """The headline scoring of MA: what ``undertow score`` chose last, else the config's."""
        return str((self.result.scoring if self.result else None) or self.setting("measure", "scoring") or "")

    def setting(self, group: str, field: str) -> Any:
        """Return one effective config value, or None where the config has none."""
        values = self.config.get(group)
        return values.get(field) if isinstance(values, dict) else None

    @property
    def terms(self) -> Terms:
        """What the run's task calls things; runs of older versions are instruction tuning."""
        return TERMS.get(str(self.config.get("task")), TERMS["instruction"])

    @property
    def instruction(self) -> bool:
        """Whether questions were answered in words."""
        return self.terms is TERMS["instruction"]

    def measured(self) -> list[Round]:
        """Rounds in which the model was asked."""
        return [record for record in self.rounds if record.ma or record.asr or record.ftr]

    def poison_count(self) -> PoisonCount:
        """Exact counts, also of an unfinished run."""
        if self.result:
            return self.result.poison
        own = self.data.surplus.get("synthetic")
        counts = {"synthetic": own.get("poisoned", 0), "synthetic_total": own.get("samples", 0)} if isinstance(own, dict) else {}
        unknown = bool(self.setting("federate", "private"))
        return PoisonCount(
            clients=len(self.data.poisoned_clients),
            samples=sum(self.data.poisoned),
            total=sum(self.data.clients),
            unknown=unknown,
            **counts,
        )


#: Poisoned samples kept for the page, one from each of the first clients.
SHOWN_CLIENTS = 4


def read(run: Path) -> RunFiles:
    """Read a run directory.

    Args:
        run: folder with config.yaml, versions.json, data.json and rounds.jsonl; result.json, poison.jsonl and
            scores.jsonl may be missing (unfinished run, no poison, nothing scored).

    Raises:
        UserError: a file is missing, unreadable or holds a value outside its rule; the file and line are named.
    """
    if not run.is_dir():
        raise UserError(f"no run directory {run}: give the folder that `undertow run` wrote")
    config_text = _text(run, "config.yaml")
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError as error:
        raise UserError(f"{run / 'config.yaml'}: not YAML ({_one_line(error)}); repeat the run") from error
    if not isinstance(config, dict) or not isinstance((config.get("federation") or {}).get("rounds"), int):
        raise UserError(f"{run / 'config.yaml'}: has no federation.rounds; it is not the effective config of a run, repeat the run")
    rounds = {record.round: record for record in read_records(run, Round)}
    if not rounds:
        raise UserError(f"{run / 'rounds.jsonl'}: holds no round yet; repeat the `undertow run` command, it resumes")
    effective = validate(config, str(run / "config.yaml"))
    refuse_edited(run, effective)
    return RunFiles(
        name=run.resolve().name,
        config=effective.short_values(),
        config_text=config_text,
        versions=read_json(run / "versions.json"),
        data=check(DataFacts, read_json(run / "data.json"), run / "data.json"),
        rounds=[rounds[number] for number in sorted(rounds)],
        result=read_record(run, Result) if (run / Result.FILE).exists() else None,
        poison=_first_of_each_client(run),
        scores=_first_and_last(run),
        network=list(read_records(run, Exchange)) if (run / Exchange.FILE).exists() else [],
        one_process=read_record(run, OneProcess) if (run / OneProcess.FILE).exists() else None,
        threat=read_record(run, ThreatCard) if (run / ThreatCard.FILE).exists() else None,
    )


def _first_of_each_client(run: Path) -> list[Poisoned]:
    kept: dict[int, Poisoned] = {}
    if (run / Poisoned.FILE).exists():
        for sample in read_records(run, Poisoned):
            kept.setdefault(sample.client, sample)
    return [kept[client] for client in sorted(kept)][:SHOWN_CLIENTS]


def _first_and_last(run: Path) -> dict[tuple[int, str, str], Score]:
    path = run / Score.FILE
    if not path.exists():
        return {}
    lines = [(number, values) for number, values in read_lines(path) if isinstance(values.get("round"), int)]
    last = max((values["round"] for _, values in lines), default=0)
    kept = [check(Score, values, path, number) for number, values in lines if values["round"] in (0, last)]
    return {(score.round, score.kind, score.id): score for score in kept}


def _text(run: Path, name: str) -> str:
    try:
        return (run / name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{run} has no {name}; give the folder of an undertow run") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{run / name}: cannot be read ({_one_line(error)}); repair it or repeat the run") from error


def finite(value: float | None) -> bool:
    """Tell whether a recorded number exists and can be drawn."""
    return value is not None and math.isfinite(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
