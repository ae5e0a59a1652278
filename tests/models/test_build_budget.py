"""Steps of pre-training from a time: as many as fit, told, and kept when the command is typed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from undertow.core.errors import UserError
from undertow.pretraining import budget
from undertow.pretraining.build import Recipe
from undertow.pretraining.corpus import Corpus

CORPUS = Corpus(groups=((1.0, ("a text",)),), asked=(), known=())
CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """``machine(0.5)``: a step takes half a second, the first ten times as long."""

    def takes(seconds: float) -> None:
        clock = [100.0]

        def build(corpus: Corpus, out: Path, recipe: Recipe, *, progress: Callable[[dict[str, Any]], None], device: object) -> None:
            for step in range(recipe.steps):
                clock[0] += seconds * (10 if step == 0 else 1)
                progress({"step": step + 1})

        monkeypatch.setattr(budget, "build", build)
        monkeypatch.setattr(budget.time, "monotonic", lambda: clock[0])

    return takes


@pytest.mark.parametrize(("seconds", "minutes", "steps"), [(0.5, 1.0, 120), (0.031, 0.5, 970), (0.001, 10.0, 1800), (2.0, 1.7, 51)])
def test_as_many_steps_as_fit(machine: Callable[[float], None], tmp_path: Path, seconds: float, minutes: float, steps: int) -> None:
    machine(seconds)
    recipe, told = budget.steps_within(CORPUS, tmp_path / "base", Recipe.for_facts(), minutes, CPU)
    assert recipe.steps == steps
    assert told.startswith(f"{steps:,} of the recipe's 1,800 steps fit into {minutes:g} minutes")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("seconds", "minutes", "told"),
    [(2.0, 1.0, "give 1.7 or more"), (0.1, 0.0, "above 0"), (0.1, -3, "above"), (0.1, float("nan"), "above")],
)
def test_too_short_a_time_is_refused(
    machine: Callable[[float], None], tmp_path: Path, seconds: float, minutes: float, told: str
) -> None:
    machine(seconds)
    with pytest.raises(UserError, match=told):
        budget.steps_within(CORPUS, tmp_path / "base", Recipe.for_facts(), minutes, CPU)


@pytest.mark.parametrize("place", ["recipe.json", "building/state.json"])
def test_a_build_that_is_there_keeps_its_steps(machine: Callable[[float], None], tmp_path: Path, place: str) -> None:
    machine(5.0)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(json.dumps({"recipe": {"steps": 777}}))
    recipe, told = budget.steps_within(CORPUS, tmp_path, Recipe.for_facts(), 1.0, CPU)
    assert (recipe.steps, told.split(",")[0]) == (777, "777 steps")
