"""A run with a rule that remembers, killed and resumed, gives the bits of one that was never killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny import Quiet
from undertow.config import Config
from undertow.core.errors import UserError
from undertow.federation.loop import run
from undertow.runs.directory import RunDirectory, State

Make = Callable[..., Config]


class Killed(BaseException):
    """Unlike any exception that the code may catch."""


class Killer(Quiet):
    """A observer that ends the run when round 3 begins."""

    def phase(self, said: str) -> None:
        if said.startswith("round 3/4: training"):
            raise Killed


def lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / "rounds.jsonl").read_text(encoding="utf-8")
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in text.splitlines()]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


# The low confidence keeps FoolsGold's weights below 1, where a forgotten round shows.
@pytest.mark.parametrize(("defense", "params"), [("foolsgold", {"kappa": 0.2}), ("centered-clipping", {})])
def test_a_rule_that_remembers_is_resumed_to_the_same_bits(
    small_config: Make, tmp_path: Path, defense: str, params: dict[str, Any]
) -> None:
    config = small_config(
        {
            "defenses": [{"name": defense, "params": params}],
            "federation.rounds": 4,
            "measure.every": 4,
            "federation.clients": 5,
            "federation.participation": 0.8,
        }
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(config, whole, Quiet())
    with pytest.raises(Killed):
        run(config, killed, Killer())
    memory = load_file(killed / "checkpoint" / "round-000002" / "defenses.safetensors")
    assert {name.split("/")[1] for name in memory} == {defense}
    observer = Quiet()
    run(config, killed, observer)
    assert observer.warnings == []
    assert digest(killed) == digest(whole)
    assert lines(killed) == lines(whole)

    # without its memory the same rounds end elsewhere: what was saved matters
    forgetful = tmp_path / "forgetful"
    with pytest.raises(Killed):
        run(config, forgetful, Killer())
    checkpoint = forgetful / "checkpoint" / "round-000002" / "state.json"
    values = json.loads(checkpoint.read_text())
    del values["defenses"]
    checkpoint.write_text(json.dumps(values))
    run(config, forgetful, Quiet())
    assert digest(forgetful) != digest(whole)


def test_a_damaged_memory_is_not_used(small_config: Make, tmp_path: Path) -> None:
    directory = RunDirectory.open(tmp_path / "run", small_config())
    directory.append("rounds.jsonl", [{"round": 0}])
    for t in (1, 2):
        directory.append("rounds.jsonl", [{"round": t}])
        directory.checkpoint(State(t, torch.zeros(3), 1.0, {"0/x/sums": torch.full((2,), float(t))}))
    state, warnings = directory.resume(3)
    assert state is not None
    assert (state.round, warnings) == (2, [])
    assert state.defenses["0/x/sums"].tolist() == [2, 2]
    file = tmp_path / "run" / "checkpoint" / "round-000002" / "defenses.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    state, warnings = directory.resume(3)
    assert state is not None
    assert state.round == 1
    assert state.defenses["0/x/sums"].tolist() == [1, 1]
    assert "the checksum of its defenses is wrong" in warnings[0]
    file.unlink()
    assert "round-000002 is damaged" in directory.resume(3)[1][0]
    directory.close()


def test_memory_of_another_defense_is_refused(small_config: Make, tmp_path: Path) -> None:
    config = small_config({"federation.rounds": 4})
    with pytest.raises(Killed):
        run(config, tmp_path / "run", Killer())
    directory = RunDirectory.open(tmp_path / "run", config)
    state, _ = directory.resume(len(load_file(tmp_path / "run" / "checkpoint" / "round-000002" / "adapter.safetensors")["adapter"]))
    assert state is not None
    directory.checkpoint(State(state.round, state.adapter, state.seconds, {"0/foolsgold/sums": torch.zeros(1)}))
    directory.close()
    with pytest.raises(UserError, match="holds the state 0/foolsgold/sums of a defense that is not in this run"):
        run(config, tmp_path / "run", Quiet())
