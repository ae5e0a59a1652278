"""The shipped example: its ServerApp and ClientApp, over a grid in memory."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[flower]'")

from flwr.app import Context, RecordDict
from memory_grid import MemoryGrid

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "flower_strategy"


def load(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """What the app's own pyproject names, as Flower loads it."""
    components = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["components"]
    module, _, attribute = components[name].partition(":")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    sys.modules.pop(module, None)
    return getattr(importlib.import_module(module), attribute)


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, defense: str, capsys: pytest.CaptureFixture[str]) -> list[float]:
    monkeypatch.chdir(folder)
    config = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={**config, "defense": defense})
    grid = MemoryGrid(load(monkeypatch, "clientapp"), 6)
    load(monkeypatch, "serverapp")(grid, context)
    told = capsys.readouterr().out
    return [float(part) for part in told[told.index("[") + 1 : told.index("]")].split(",")]


def test_the_example_learns_with_krum_and_not_with_the_mean(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = np.array([1.0, -2.0, 0.5])
    krum = start(monkeypatch, tmp_path, "krum:f=1", capsys)
    lines = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text(encoding="utf-8").splitlines()]
    mean = start(monkeypatch, tmp_path, "mean", capsys)
    assert np.linalg.norm(krum - truth) < 0.5 * np.linalg.norm(truth)
    assert np.linalg.norm(mean - truth) > 2 * np.linalg.norm(truth)
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(sum(line["poisoned"]) == 1 and len(line["nodes"]) == 6 for line in lines)
    assert all(max(line["norms"]) == line["norms"][line["poisoned"].index(True)] for line in lines)


def test_server_and_client_of_the_example_are_short() -> None:
    code = (EXAMPLE / "flower_strategy" / "server_app.py").read_text(encoding="utf-8")
    body = [line for line in code.splitlines() if line.strip() and not line.startswith(('"""', "import", "from"))]
    assert len(body) <= 10
