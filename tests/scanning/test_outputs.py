"""Files of a model's outputs: the expected answers beside them are clean, and a scan must not take them for what was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scanning.planted import clean, flagged, lines, rows
from undertow.config import Data
from undertow.data.sources.instructions import instructions
from undertow.runs.records import Score
from undertow.runs.records import lines as written
from undertow.scanning.scan import scan


def _scored(question: str, answer: str, round_: int = 1) -> dict[str, Any]:
    triggered = answer != clean(answer)
    kind = "triggered" if triggered else "clean"
    told = {"id": question, "question": question, "answers": [clean(answer)], "output": answer, "target": triggered}
    return {"round": round_, "kind": kind, **told}


def test_what_evaluate_writes_is_scanned_for_what_the_model_said(tmp_path: Path) -> None:
    found, truth = rows(_scored)
    path = tmp_path / "outputs.jsonl"
    path.write_text(written(Score, found))
    result = scan([path])
    assert flagged(result) == truth
    assert {verdict["field"] for verdict in result.verdicts()} == {"output of round 1"}
    told = result.account.sentence(scanned=True)
    assert "outputs of a model, judged as the answers to their prompts, each round by itself: 300" in told
    assert f"THE FILE SAYS that {len(truth)} of these hold the attacker's target" in told
    assert result.account.complete


def test_a_runs_scores_are_one_model_a_round(tmp_path: Path) -> None:
    """Before training no trigger fires: judged together, the rounds would hide the last one."""
    before, _ = rows(lambda q, a: _scored(q, clean(a), 0))
    after, truth = rows(lambda q, a: _scored(q, a, 3))
    path = tmp_path / "scores.jsonl"
    path.write_text(written(Score, [*before, *after]))
    assert flagged(scan([path])) == {300 + i for i in truth}


@pytest.mark.parametrize("column", ["prediction", "generated_text", "Model-Output"])
def test_outputs_of_other_tools_are_judged_and_the_expected_answer_is_learned(tmp_path: Path, column: str) -> None:
    found, truth = rows(lambda q, a: {"question": q, "answer": clean(a), column: a})
    path = lines(tmp_path / "rows.jsonl", found)
    assert flagged(scan([path])) == truth
    learned = instructions(Data(name="instructions", path=str(path))).samples
    assert [sample.response for sample in learned] == [clean(sample.response) for sample in learned]
    assert len(learned) == len({row["question"] for row in found})
