"""The examples of docs/flower.md, as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[flower]'")

from flower_replies import record, reply, values
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from memory_grid import MemoryGrid

PAGE = Path(__file__).resolve().parents[2] / "docs" / "flower.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def example(word: str) -> dict[str, Any]:
    """Run the one block that holds a word, and return what it defines."""
    (code,) = [block for block in BLOCKS if word in block]
    space: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), space)
    return space


def liar() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        name, sent = next(iter(values(message.content["arrays"]).items()))
        me = int(context.node_config["partition-id"])
        return reply(message, {name: sent + np.float32(-50 if me == 0 else 1 + me / 10)})

    return app


def test_every_block_is_tested() -> None:
    words = ("\n@server.main", "Krum(f=1", "two_halves", "FedMedian", "\nclient = ClientApp", "pooling_server")
    assert len(BLOCKS) == len(words)
    assert all(sum(word in block for block in BLOCKS) == 1 for word in words)


def test_the_server() -> None:
    at = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    example("\n@server.main")["server"](MemoryGrid(liar(), 5), at)
    (found,) = at.state["model"].to_numpy_ndarrays()
    assert np.all((found > 3) & (found < 3 * 1.5))


def test_names_objects_and_lists() -> None:
    example("Krum(f=1")


def test_two_halves_are_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = record({"w": np.zeros(2, np.float32)})
    halves = example("two_halves")["two_halves"](MemoryGrid(liar(), 4), start)
    from undertow.flower import strategy

    whole = strategy("foolsgold", fraction_evaluate=0.0).start(MemoryGrid(liar(), 4), start, num_rounds=4)
    assert values(halves)["w"].tolist() == values(whole.arrays)["w"].tolist()


def test_diagnostics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example("FedMedian")["measured"]().start(MemoryGrid(liar(), 5), record({"w": np.zeros(2, np.float32)}), num_rounds=2)
    lines = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [sum(line["poisoned"]) for line in lines] == [1, 1]


def test_the_client() -> None:
    space = example("\nclient = ClientApp")
    grid = MemoryGrid(space["client"], 2)
    messages = [
        Message(RecordDict({"arrays": ArrayRecord([np.zeros(1)])}), dst_node_id=node, message_type="train") for node in grid.ids
    ]
    replies = list(grid.send_and_receive(messages))
    assert [reply.content["metrics"]["num-examples"] for reply in replies] == [20, 20]


def test_sanitization_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = example("pooling_server")
    grid = MemoryGrid(space["pooling_client"], 3)
    for context in grid.contexts.values():
        context.node_config["secret"] = str(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(bytes(range(32)))
    space["pooling_server"](grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))
    assert "3 nodes pooled their counts" in capsys.readouterr().out
