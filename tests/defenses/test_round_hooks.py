"""begin, select and decode: what a run makes of them, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import rows_of

from tiny import Quiet
from undertow.config import Config
from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.data.template import Encoded
from undertow.defenses import composition
from undertow.defenses.base import Defense, NeedsModel
from undertow.defenses.contexts import Setting
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.making import make_defenses
from undertow.federation.loop import run

Make = Callable[..., Config]
ROWS = [Encoded((1,), (token, 2)) for token in range(5, 11)]


class Every(LossDefense):
    """Keeps every ``step``-th sample."""

    def __init__(self, step: int) -> None:
        self.step = step

    def select(self, data: Any, adapter: Any, context: Any) -> Any:
        return [i % self.step == 0 for i in range(len(data))], {"context": context}


class Fixed(LossDefense):
    def __init__(self, stays: list[bool]) -> None:
        self.stays = stays

    def select(self, data: Any, adapter: Any, context: Any) -> Any:
        return self.stays, {}


def select(*defenses: Defense, chosen: tuple[int, ...] = (0, 2)) -> Any:
    named = [(f"d{i}", d) for i, d in enumerate(defenses)]
    return composition.select([ROWS, ROWS[:2], ROWS[3:]], chosen, torch.zeros(1), named, lambda name, k: f"{name} {k}")  # type: ignore[arg-type, return-value]


def test_selections_follow_each_other_on_the_participants_alone() -> None:
    assert select(LossDefense()) == ([ROWS, ROWS[:2], ROWS[3:]], [])
    found, reports = select(Every(2), Every(3))
    assert found == [[ROWS[0]], ROWS[:2], [ROWS[3]]]
    assert [report["name"] for report in reports] == ["d0", "d1"]
    assert reports[0]["clients"] == [
        {"client": 0, "samples": 6, "selected": 3, "context": "d0 0"},
        {"client": 2, "samples": 3, "selected": 2, "context": "d0 2"},
    ]
    assert [(c["samples"], c["selected"]) for c in reports[1]["clients"]] == [(3, 1), (2, 1)]


@pytest.mark.parametrize("stays", [[True] * 5, [False] * 6, []])
def test_a_selection_that_does_not_fit_or_leaves_nothing_is_refused(stays: list[bool]) -> None:
    with pytest.raises(
        UserError, match=r"defense 'd0' selects \d of \d for the 6 samples of client 0; return one truth value a sample"
    ):
        select(Fixed(stays))


def test_who_cannot_begin_is_named() -> None:
    class Picky(NeedsModel):
        def begin(self, setting: Setting) -> None:
            raise UserError("no")

    with pytest.raises(UserError, match="defense picky: no"):
        composition.begin([("plain", Defense()), ("picky", Picky())], None)  # type: ignore[arg-type]


def test_two_decoders_exclude_each_other_and_without_one_nothing_changes() -> None:
    with pytest.raises(UserError, match="defenses cleangen and cleangen both replace greedy generation; keep one of them"):
        make_defenses([Options(name="cleangen"), Options(name="cleangen", params={"alpha": 3})])
    reports: list[dict[str, Any]] = []
    assert composition.decoder([("plain", Defense())], torch.zeros(1), None, reports) is None  # type: ignore[arg-type]
    assert reports == []


FILE = """
from undertow.defenses import LossDefense

class Front(LossDefense):
    def begin(self, setting):
        self.rounds = setting.rounds

    def select(self, data, adapter, context):
        assert len(adapter) == context.base.layout.size
        return [i < 4 + context.round for i in range(len(data))], {"of": self.rounds}

class Wrong(Front):
    def begin(self, setting):
        from undertow.core.errors import UserError
        raise UserError("nothing to begin with")
"""


def test_a_run_begins_before_it_trains_and_counts_what_was_selected(small_config: Make, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(FILE, encoding="utf-8")
    run(
        small_config({"defenses": [f"{file}:Front"], "measure.bsnr": {"counterfactuals": True, "permutations": 0}}),
        tmp_path / "run",
        Quiet(),
    )
    told = [row["defenses"][0]["clients"] for row in rows_of(tmp_path / "run")[1:]]
    assert [[c["selected"] for c in row] for row in told] == [[5, 5, 5], [6, 6, 6]]
    assert all(c["of"] == 2 for row in told for c in row)
    observer = Quiet()
    with pytest.raises(UserError, match="nothing to begin with"):
        run(small_config({"defenses": [f"{file}:Wrong"]}), tmp_path / "wrong", observer)
    assert observer.rounds == [], "not even the untouched base was measured"
