"""What the page of a run shows beyond its row, as JSON: rounds, clients, poisoned samples, outputs side by side."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from undertow.core.errors import UserError
from undertow.runs.network_records import Exchange, OneProcess
from undertow.runs.records import DataFacts, Poisoned, Round, Score, check, read_json, read_lines, read_record, read_records
from undertow.runs.run import Run
from undertow.runs.threat import ThreatCard
from undertow.view.index import Stamp, numbers, stamp_of

#: Which outputs to show: the backdoor fired where it should not have been (``fooled``: with the trigger), ...
Show = Literal["all", "fooled", "resisted", "false-trigger", "wrong"]
#: Clients up to which a round's figures of each are sent.
MOST_CLIENTS = 200
#: Runs of which poisoned samples, and rounds of which outputs are kept in memory.
KEPT = 4

_T = TypeVar("_T")


class Kept:
    """The last few things that were read, as long as their files stay as they were; what many ask for at once is read once."""

    def __init__(self, most: int = KEPT) -> None:
        self._most = most
        self._found: OrderedDict[object, tuple[Stamp, Any]] = OrderedDict()
        self._lock, self._reading = threading.Lock(), threading.Lock()

    def get(self, key: object, stamp: Stamp, read: Callable[[], _T]) -> _T:
        """Return what ``read`` gave for this key and stamp, or what it gives now."""
        if (found := self._kept(key, stamp)) is not None:
            return cast(_T, found[0])
        with self._reading:
            if (found := self._kept(key, stamp)) is not None:
                return cast(_T, found[0])
            value = read()
            with self._lock:
                self._found[key] = (stamp, value)
                self._found.move_to_end(key)
                while len(self._found) > self._most:
                    self._found.popitem(last=False)
        return value

    def _kept(self, key: object, stamp: Stamp) -> tuple[Any] | None:
        with self._lock:
            if key not in self._found or self._found[key][0] != stamp:
                return None
            self._found.move_to_end(key)
            return (self._found[key][1],)


class Content:
    """Reads what pages of runs ask for."""

    def __init__(self) -> None:
        self._poison, self._outputs = Kept(), Kept()

    def page(self, run: Run) -> dict[str, Any]:
        """Return all that is not one line a sample: config, rounds, data facts, versions and what the network did."""
        folder, result = run.folder, run.result
        versions = read_json(folder / "versions.json") if (folder / "versions.json").is_file() else {}
        data = check(DataFacts, read_json(folder / "data.json"), folder / "data.json") if _has(folder, "data.json") else None
        return {
            "config_text": (folder / "config.yaml").read_text(encoding="utf-8"),
            "task": run.config.task.kind,
            "target": str(getattr(run.config.backdoor, "target_text", "") or ""),
            "rounds": [_round(record) for record in run.rounds],
            "result": result.to_json() if result else None,
            "data": data.model_dump() if data else None,
            "versions": {key: value for key, value in versions.items() if key != "config"},
            "network": _network(folder),
            "threat": read_record(folder, ThreatCard).to_json() if _has(folder, ThreatCard.FILE) else None,
            "poisoned": len(self._poisoned(run)),
            "outputs": outputs_of(run),
            "report": _has(folder, "report.html"),
        }

    def curves(self, run: Run) -> dict[str, Any]:
        """Return the rates of each measured round, and BSNR of each round."""
        return {"rounds": [_rates(record) for record in run.rounds], "status": "finished" if run.finished else "unfinished"}

    def poison(self, run: Run, query: str, offset: int, limit: int) -> dict[str, Any]:
        """Return a piece of the poisoned samples that hold ``query``, by client."""
        words = query.casefold()
        found = [
            sample
            for sample in self._poisoned(run)
            if words in f"{sample.poisoned_question}\n{sample.poisoned_response}\n{sample.id}".casefold()
        ]
        return {"total": len(found), "rows": [sample.model_dump() for sample in found[offset : offset + limit]]}

    def outputs(self, run: Run, round: int, show: Show, query: str, offset: int, limit: int) -> dict[str, Any]:
        """Return a piece of a round's outputs: a row for each question, with what came clean, triggered and near the trigger."""
        stamp = stamp_of(run.folder, (Score.FILE,))
        rows = self._outputs.get((run.folder, round), stamp, lambda: _paired(run, round))
        counts = {name: sum(map(wanted, rows)) for name, wanted in SHOWN.items()}
        words = query.casefold()
        found = [row for row in rows if SHOWN[show](row) and (not words or words in _text(row))]
        return {"total": len(found), "counts": counts, "rows": found[offset : offset + limit]}

    def _poisoned(self, run: Run) -> list[Poisoned]:
        return self._poison.get(run.folder, stamp_of(run.folder, (Poisoned.FILE,)), lambda: run.poison)


def _round(record: Round) -> dict[str, Any]:
    told = record.to_json()
    if len(record.client_loss or ()) > MOST_CLIENTS:
        for name in ("client_loss", "participants", "attackers"):
            told.pop(name, None)
    return told


def _rates(record: Round) -> dict[str, Any]:
    told: dict[str, Any] = {name: numbers(getattr(record, name)) for name in ("ma", "asr", "ftr", "ftr_near")}
    bsnr = next((value.value for value in (record.bsnr or {}).values() if value is not None), None)
    return {"round": record.round, **told, "bsnr": bsnr, "loss": record.loss}


def _network(folder: Path) -> dict[str, Any] | None:
    if not _has(folder, Exchange.FILE):
        return None
    nodes: dict[str, dict[str, Any]] = {}
    for exchange in read_records(folder, Exchange):
        told = nodes.setdefault(exchange.node, {"node": exchange.node, "messages": 0, "seconds": 0.0, "bytes": 0, "dropped": []})
        told["messages"] += 1
        told["seconds"] += exchange.seconds or 0
        told["bytes"] += exchange.sent_bytes + exchange.received_bytes
        told["dropped"] += [{"round": exchange.round, **lost.model_dump()} for lost in exchange.dropped]
    one = read_record(folder, OneProcess).to_json() if _has(folder, OneProcess.FILE) else None
    return {"nodes": list(nodes.values()), "one_process": one}


def outputs_of(run: Run) -> list[int]:
    """Return the rounds of which outputs are kept, the last first; those that the records of rounds say were measured."""
    if not _has(run.folder, Score.FILE):
        return []
    return [record.round for record in reversed(run.rounds) if record.ma or record.asr or record.ftr]


def _paired(run: Run, round: int) -> list[dict[str, Any]]:
    """Return a row for each question asked in a round, in the order asked."""
    config, result = run.config, run.result
    scoring = (result.scoring if result else None) or config.measure.scoring
    rows: dict[str, dict[str, Any]] = {}
    path = run.folder / Score.FILE
    for number, values in read_lines(path):
        if values.get("round") != round:
            continue
        score = check(Score, values, path, number)
        row = rows.setdefault(score.id, {"id": score.id, "answers": score.answers})
        right = score.surplus.get(scoring, score.surplus.get("exact"))
        row[score.kind] = {"question": score.question, "output": score.output, "target": score.target, "right": right}
    return list(rows.values())


def _fired(row: dict[str, Any], *kinds: str) -> bool:
    return any(row[kind]["target"] for kind in kinds if kind in row)


#: What each choice shows of the rows of a round.
SHOWN: dict[Show, Callable[[dict[str, Any]], bool]] = {
    "all": lambda row: True,
    "fooled": lambda row: _fired(row, "triggered"),
    "resisted": lambda row: "triggered" in row and not _fired(row, "triggered"),
    "false-trigger": lambda row: _fired(row, "clean", "near"),
    "wrong": lambda row: "clean" in row and row["clean"]["right"] is False,
}


def _text(row: dict[str, Any]) -> str:
    parts: Sequence[str] = [row["id"], *row["answers"]]
    told = [f"{row[kind]['question']}\n{row[kind]['output']}" for kind in ("clean", "triggered", "near") if kind in row]
    return "\n".join([*parts, *told]).casefold()


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def shown(name: str) -> Show:
    """Return a choice of outputs by its name; :class:`UserError` where there is none."""
    for choice in SHOWN:
        if choice == name:
            return choice
    raise UserError(f"show = {name!r}: choose one of {', '.join(SHOWN)}")
