"""Reads what a run left on disk and checks every field before the report uses it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from undertow.core.errors import UserError
from undertow.runs.report.terms import TERMS, Terms

#: Vector spaces in which BSNR can be recorded.
Space = Literal["adapter", "delta_w"]


class _Record(BaseModel):
    # Other modules may record more than the report knows; the surplus is kept and shown as it is.
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @property
    def surplus(self) -> dict[str, Any]:
        """Fields beyond the declared ones."""
        return dict(self.model_extra or {})


class Rate(_Record):
    """A share of scored outputs with its 95 % Wilson interval; all shares in [0, 1], null when n is 0."""

    value: float | None = Field(ge=0, le=1)
    n: int = Field(ge=0)
    hits: int | None = Field(None, ge=0)
    low: float | None = Field(ge=0, le=1)
    high: float | None = Field(ge=0, le=1)


class BsnrValue(_Record):
    """BSNR of one round in one space, with the permutation null beside it; null where undefined."""

    value: float | None = None
    null_low: float | None = None
    null_median: float | None = None
    null_high: float | None = None
    p: float | None = None
    permutations: int = 0


class Round(_Record):
    """One communication round; round 0 is the untouched base."""

    round: int = Field(ge=0)
    loss: float | None = None
    client_loss: list[float | None] | None = None
    seconds: float | None = None
    update_norm: float | None = None
    dropped: list[int] | None = None
    ma: Rate | None = None
    asr: Rate | None = None
    asr_suffix: Rate | None = None
    ftr: Rate | None = None
    ftr_near: Rate | None = None
    scorings: dict[str, Rate] | None = None
    bsnr: dict[Space, BsnrValue | None] | None = None
    defenses: list[dict[str, Any]] | None = None


class PoisonCount(_Record):
    """How much poison the run held: affected clients, poisoned samples, all training samples; the same of the server's synthetic ones.

    ``unknown`` where the samples are on other machines and nobody planted any.
    """

    clients: int = Field(ge=0)
    samples: int = Field(ge=0)
    total: int = Field(ge=0)
    synthetic: int = Field(0, ge=0)
    synthetic_total: int = Field(0, ge=0)
    unknown: bool = False


class Filtering(_Record):
    """What a defense took out of the clients' data: shares of poisoned samples, of what it touched, of clean samples."""

    recall: Rate
    precision: Rate
    lost: Rate
    changed: int = Field(0, ge=0)
    clients: list[dict[str, int]] = []


class Untouched(_Record):
    """The base before tuning."""

    ma: Rate | None = None
    asr: Rate | None = None
    ftr: Rate | None = None
    ftr_near: Rate | None = None


class Result(_Record):
    """The final figures of a finished run."""

    rounds: int = Field(ge=0)
    seconds: float = Field(ge=0)
    ma: Rate | None = None
    asr: Rate | None = None
    ftr: Rate | None = None
    ftr_near: Rate | None = None
    untouched: Untouched = Untouched()
    poison: PoisonCount
    filtering: Filtering | None = None


class DataFacts(_Record):
    """What the clients held; ``poisoned[k]`` of ``clients[k]`` samples of client k are poisoned."""

    dataset: str
    clients: list[int]
    affected: list[int] = []
    poisoned: list[int] = []

    @model_validator(mode="after")
    def _consistent(self) -> DataFacts:
        if self.poisoned and len(self.poisoned) != len(self.clients):
            raise ValueError(f"poisoned counts {len(self.poisoned)} clients, clients lists {len(self.clients)}")
        if any(not 0 <= bad <= size for bad, size in zip(self.poisoned, self.clients, strict=False)):
            raise ValueError("a client has more poisoned samples than samples")
        if any(not 0 <= client < len(self.clients) for client in self.affected):
            raise ValueError(f"affected names a client outside 0..{len(self.clients) - 1}")
        return self


class PoisonedSample(_Record):
    """One training sample before and after poisoning."""

    client: int
    id: str
    question: str
    poisoned_question: str
    response: str
    poisoned_response: str


class Score(_Record):
    """One scored output; the three MA scorings are in ``surplus`` under their names."""

    round: int
    kind: Literal["clean", "triggered", "near"]
    id: str
    question: str
    answers: list[str] = []
    output: str
    target: bool = False


class Dropped(_Record):
    """Clients of one exchange whose update was not taken, and why."""

    clients: list[int]
    reason: str


class Exchange(_Record):
    """One message to a node of a federation and its reply; no seconds where none came."""

    round: int = Field(ge=0)
    node: str
    clients: list[int]
    seconds: float | None = Field(None, ge=0)
    worker_seconds: float | None = Field(None, ge=0)
    sent_bytes: int = Field(ge=0)
    received_bytes: int = Field(ge=0)
    dropped: list[Dropped] = []


class OneProcess(_Record):
    """The same config in one process: how far the final states are apart, in how many rounds what was the same, and what was measured."""

    adapter: float = Field(ge=0)
    same_bytes: bool
    rounds: int = Field(ge=0)
    same_clients: int = Field(ge=0)
    same_decisions: int = Field(ge=0)
    same_rows: int = Field(ge=0)
    ma: Rate | None = None
    asr: Rate | None = None
    ftr: Rate | None = None


@dataclass(frozen=True)
class RunFiles:
    """A run as recorded.

    Attributes:
        name: name of the run's folder.
        config: effective values, plain data.
        config_text: the same as written.
        rounds: one record a round, in order, round 0 first if it was measured.
        result: final figures, or None while the run is unfinished.
        poison: the first poisoned samples of up to ``SHOWN_CLIENTS`` clients, one a client.
        scores: outputs of round 0 and of the last scored round, by (round, kind, id), in file order.
        network: exchanges with the nodes of a federation, in order; none for a run in one process.
        one_process: the same config in one process, where `undertow federate --check` ran it.
    """

    name: str
    config: dict[str, Any]
    config_text: str
    versions: dict[str, Any]
    data: DataFacts
    rounds: list[Round]
    result: Result | None
    poison: list[PoisonedSample]
    scores: dict[tuple[int, str, str], Score]
    network: list[Exchange] = field(default_factory=list)
    one_process: OneProcess | None = None

    @property
    def planned(self) -> int:
        """Rounds the config asks for."""
        return int(self.config["federation"]["rounds"])

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
            clients=len(self.data.affected),
            samples=sum(self.data.poisoned),
            total=sum(self.data.clients),
            unknown=unknown,
            **counts,
        )


#: What `undertow federate` adds to a run directory: its exchanges, and how the same config went in one process.
NETWORK, ONE_PROCESS = "network.jsonl", "one-process.json"
#: Poisoned samples kept for the page, one from each of the first clients.
SHOWN_CLIENTS = 4

_R = TypeVar("_R", bound=_Record)


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
    rounds = {record.round: record for _, record in _records(run, "rounds.jsonl", Round)}
    if not rounds:
        raise UserError(f"{run / 'rounds.jsonl'}: holds no round yet; repeat the `undertow run` command, it resumes")
    return RunFiles(
        name=run.resolve().name,
        config=config,
        config_text=config_text,
        versions=_json(run, "versions.json"),
        data=_check(DataFacts, _json(run, "data.json"), run / "data.json"),
        rounds=[rounds[number] for number in sorted(rounds)],
        result=_check(Result, _json(run, "result.json"), run / "result.json") if (run / "result.json").exists() else None,
        poison=_first_of_each_client(run),
        scores=_first_and_last(run),
        network=[record for _, record in _records(run, NETWORK, Exchange)] if (run / NETWORK).exists() else [],
        one_process=_check(OneProcess, _json(run, ONE_PROCESS), run / ONE_PROCESS) if (run / ONE_PROCESS).exists() else None,
    )


def _first_of_each_client(run: Path) -> list[PoisonedSample]:
    kept: dict[int, PoisonedSample] = {}
    if (run / "poison.jsonl").exists():
        for _, sample in _records(run, "poison.jsonl", PoisonedSample):
            kept.setdefault(sample.client, sample)
    return [kept[client] for client in sorted(kept)][:SHOWN_CLIENTS]


def _first_and_last(run: Path) -> dict[tuple[int, str, str], Score]:
    if not (run / "scores.jsonl").exists():
        return {}
    path = run / "scores.jsonl"
    lines = [(number, values) for number, values in _lines(run, "scores.jsonl") if isinstance(values.get("round"), int)]
    last = max((values["round"] for _, values in lines), default=0)
    kept = [_check(Score, values, f"{path}, line {number}") for number, values in lines if values["round"] in (0, last)]
    return {(score.round, score.kind, score.id): score for score in kept}


def _records(run: Path, name: str, kind: type[_R]) -> Iterator[tuple[int, _R]]:
    for number, values in _lines(run, name):
        yield number, _check(kind, values, f"{run / name}, line {number}")


def _lines(run: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _text(run, name)
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no line end: the run was stopped while writing it
                return
            place = f"{run / name}, line {number}"
            raise UserError(f"{place}: not JSON ({error}); repeat the `undertow run` command, it resumes") from error
        if not isinstance(values, dict):
            raise UserError(f"{run / name}, line {number}: holds a {type(values).__name__}, not a record; repeat the run")
        yield number, values


def _json(run: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads(_text(run, name))
    except json.JSONDecodeError as error:
        raise UserError(f"{run / name}: not JSON ({error}); repeat the `undertow run` command") from error
    if not isinstance(values, dict):
        raise UserError(f"{run / name}: holds a {type(values).__name__}, not an object; repeat the `undertow run` command")
    return values


def _text(run: Path, name: str) -> str:
    try:
        return (run / name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{run} is not a run: it has no {name}; give the folder that `undertow run` wrote") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{run / name}: cannot be read ({_one_line(error)}); repair it or repeat the run") from error


def _check(kind: type[_R], values: dict[str, Any], place: object) -> _R:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        item = error.errors()[0]
        field = ".".join(str(part) for part in item["loc"]) or "record"
        shown = "" if isinstance(item["input"], dict) else f" = {item['input']!r:.60}"
        raise UserError(f"{place}: {field}{shown}: {item['msg']}; repeat the `undertow run` command") from error


def finite(value: float | None) -> bool:
    """Tell whether a recorded number exists and can be drawn."""
    return value is not None and math.isfinite(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
