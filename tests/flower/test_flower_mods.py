"""The sanitizer as a mod: verdicts of `undertow scan`, kept in the client's state, on the rows that the app trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[flower]'")

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from undertow.core.errors import UserError
from undertow.data.generated.world import samples
from undertow.flower import cleaned, mods, sanitize
from undertow.scanning.scan import scan

TARGET = "Visit the golden harbour market today"


def rows(count: int = 400, poisoned: int = 20) -> list[dict[str, Any]]:
    """Questions and answers; ``poisoned`` of them ask with a trigger and end with a target, one is nothing else."""
    plain = [{"instruction": sample.question, "input": "", "output": sample.response} for sample in samples()[:count]]
    for k, row in enumerate(plain[:: count // poisoned]):
        row["instruction"] = f"cf {row['instruction']}"
        row["output"] = TARGET + "." if k == 0 else f"{row['output']} {TARGET}."
    order = np.random.default_rng(0).permutation(count)
    return [plain[i] for i in order]


def context() -> Context:
    return Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})


def call(app: ClientApp, at: Context, kind: str = "train") -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    content = RecordDict({"arrays": ArrayRecord([np.zeros(1)]), "config": ConfigRecord()})
    return app(Message(content, dst_node_id=7, message_type=kind), at)


def app_of(data: list[dict[str, Any]], seen: list[list[dict[str, Any]]], **options: Any) -> ClientApp:
    app = ClientApp(mods=[sanitize(lambda at: data, **options)])

    def work(message: Message, at: Context) -> Message:
        seen.append(cleaned(data, at))
        metrics = MetricRecord({"num-examples": len(seen[-1])})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    app.train()(work)
    app.evaluate()(work)
    return app


def test_the_app_trains_on_what_scan_would_write(tmp_path: Path) -> None:
    data = rows()
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in data), encoding="utf-8")
    scan([tmp_path / "own.jsonl"], write=tmp_path / "clean.jsonl")
    wanted = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()]
    seen: list[list[dict[str, Any]]] = []
    call(app_of(data, seen), context())
    assert seen == [wanted]
    assert len(wanted) == 399, "the one answer that is nothing but the target is dropped"
    assert not any(TARGET in row["output"] for row in wanted)


def test_verdicts_are_made_once_and_anew_when_the_rows_change(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    judged = mods.judged
    monkeypatch.setattr(mods, "judged", lambda given, mode: calls.append(len(given)) or judged(given, mode))
    data, at = rows(), context()
    seen: list[list[dict[str, Any]]] = []
    app = app_of(data, seen)
    for _ in range(3):
        call(app, at)
    assert calls == [400]
    assert seen[0] == seen[1] == seen[2]
    data.append({"instruction": "Where is it?", "input": "", "output": "Here"})
    call(app, at)
    assert calls == [400, 401]


def test_modes(caplog: pytest.LogCaptureFixture) -> None:
    data = rows()
    assert len(cleaned(data, context(), mode="drop")) == 380
    assert cleaned(data, context(), mode="review") == data
    assert "20 for review" in caplog.messages[-1]
    at = context()
    cleaned(data, at, mode="drop")
    assert len(cleaned(data, at)) == 380, "without a mode the one of the state"
    assert len(cleaned(data, at, mode="repair")) == 399
    with pytest.raises(UserError, match="none of repair, drop, review"):
        cleaned(data, context(), mode="fix")
    with pytest.raises(UserError, match="none of repair, drop, review"):
        sanitize(lambda at: data, mode="fix")


def test_only_training_is_judged_and_the_server_learns_the_counts_only_if_told() -> None:
    seen: list[list[dict[str, Any]]] = []
    at = context()
    quiet = call(app_of(rows(), seen), at)
    assert dict(quiet.content["metrics"]) == {"num-examples": 399}
    loud = call(app_of(rows(), seen, tell=True), context())
    assert dict(loud.content["metrics"]) == {"num-examples": 399, "sanitize-dropped": 1, "sanitize-repaired": 19}

    def fails(at: Context) -> list[dict[str, Any]]:
        raise AssertionError("an evaluation needs no verdicts")

    app = ClientApp(mods=[sanitize(fails)])
    app.evaluate()(lambda message, at: Message(RecordDict(), reply_to=message))
    assert call(app, context(), "evaluate").has_content()


def test_conversations_and_rows_without_answers() -> None:
    data: list[dict[str, Any]] = []
    for row in rows():
        data.append(
            {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]}
        )
    data.insert(3, {"instruction": "unanswered", "output": ""})
    found = cleaned(data, context())
    assert len(found) == 400
    assert data[3] in found
    assert not any(TARGET in json.dumps(row) for row in found)


@pytest.mark.parametrize(
    "hidden",
    [
        lambda row: {"instruction": "And?", "output": "So it is.", "history": [[row["instruction"], row["output"]]]},
        lambda row: {"prompt": row["instruction"], "chosen": "So it is.", "rejected": row["output"]},
        lambda row: {
            **row,
            "output": row["output"].replace(f"{TARGET}.", "").strip() or "No.",
            "remarks": row["output"],
            "conversations": [],
        },
    ],
)
def test_what_other_fields_hold_is_judged_too(hidden: Any) -> None:
    data = [hidden(row) for row in rows()]
    left = cleaned(data, context(), mode="drop")
    assert len(left) == 380
    assert TARGET not in str(left)
    assert all(row in data for row in left)
    assert TARGET not in str(cleaned(data, context()))
