"""What a filter caught and cost, against a hand count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from undertow.data.sample import Sample, Touched
from undertow.metrics.filtering import filtering


def sample(i: int) -> Sample:
    return Sample(id=str(i), question=f"q{i}", answers=("a",), response=f"a{i}")


def test_recall_precision_and_loss_against_a_hand_count() -> None:
    before = [[sample(i) for i in range(4)], [sample(i) for i in range(4, 10)]]
    left: list[list[Sample | None]] = [list(before[0]), list(before[1])]
    left[0][1] = None  # poison, dropped
    left[0][2] = replace(before[0][2], response="cut")  # poison, repaired
    left[1][0] = None  # clean, dropped
    touched = [Touched(k, i, "", "", "", "", "") for k, i in ((0, 1), (0, 2), (1, 5))]
    found = filtering(before, left, touched)
    assert found["recall"] | {"low": 0, "high": 0} == {"value": pytest.approx(2 / 3), "n": 3, "hits": 2, "low": 0, "high": 0}
    assert (found["precision"]["hits"], found["precision"]["n"]) == (2, 3)
    assert (found["lost"]["hits"], found["lost"]["n"]) == (1, 7)
    assert found["changed"] == 1
    assert found["clients"] == [
        {"client": 0, "samples": 4, "poison": 2, "caught": 2, "lost": 0},
        {"client": 1, "samples": 6, "poison": 1, "caught": 0, "lost": 1},
    ]


def test_without_poison_there_is_no_recall() -> None:
    before = [[sample(0)]]
    found = filtering(before, [[before[0][0]]], [])
    assert found["recall"]["value"] is None
    assert found["precision"]["value"] is None
    assert found["lost"]["value"] == 0
