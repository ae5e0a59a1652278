"""The anomaly detector by its formulas, and its ROC."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from undertow.defenses import Anomaly, Median
from undertow.metrics.detection import detection


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_scores_are_their_formulas() -> None:
    draw = np.random.default_rng(1)
    updates, state = draw.normal(size=(7, 50)), draw.normal(size=50)
    wanted = {
        "length": [np.linalg.norm(u) for u in updates],
        "update-cosine": [1 - cosine(u, updates.sum(axis=0) - u) for u in updates],
        "model-cosine": [1 - cosine(state + u, state) for u in updates],
    }
    for score, values in wanted.items():
        report = Anomaly(score)(updates, adapter=state)[1]
        np.testing.assert_allclose(report["prepared"][0]["scores"], values, rtol=1e-10, atol=1e-12)


def test_small_updates_keep_their_digits() -> None:
    draw = np.random.default_rng(2)
    updates, state = 1e-6 * draw.normal(size=(5, 400)), draw.normal(size=400)
    across = [u - (u @ state) / (state @ state) * state for u in updates]
    wanted = [a @ a / (state @ state) / 2 for a in across]
    scores = Anomaly()(updates, adapter=state)[1]["prepared"][0]["scores"]
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=3e-16)


def test_what_is_beyond_the_limit_is_left_out() -> None:
    updates = np.random.default_rng(3).normal(size=(9, 30))
    updates[4] *= 50
    delta, report = Anomaly("length")(updates)
    told = report["prepared"][0]
    scores = np.array(told["scores"])
    spread = 1.4826 * np.median(np.abs(scores - np.median(scores)))
    assert told["beyond"] == [4]
    assert told["limit"] == pytest.approx(np.median(scores) + 3.5 * spread)
    np.testing.assert_allclose(delta, np.delete(updates, 4, axis=0).mean(axis=0), atol=1e-7)
    kept, report = Anomaly("length", drop=False)(updates)
    assert report["prepared"][0]["beyond"] == [4]
    np.testing.assert_allclose(kept, updates.mean(axis=0), atol=1e-6)


def test_the_others_keep_their_counts_and_the_next_rule_gets_them() -> None:
    updates = np.random.default_rng(4).normal(size=(6, 8))
    updates[0] += 1000
    delta, _ = Anomaly("length")(updates, counts=[9, 1, 2, 3, 4, 5])
    np.testing.assert_allclose(delta, np.average(updates[1:], axis=0, weights=[1, 2, 3, 4, 5]), atol=1e-7)
    np.testing.assert_allclose(Anomaly("length", then=Median())(updates)[0], np.median(updates[1:], axis=0), atol=1e-7)


def test_alike_updates_are_all_kept() -> None:
    updates = np.ones((5, 10))
    assert Anomaly()(updates, adapter=np.arange(10.0))[1]["prepared"][0]["beyond"] == []


def row(scores: list[float], participants: list[int]) -> dict[str, object]:
    return {"participants": participants, "defenses": [{"name": "attack"}, {"name": "anomaly", "scores": scores}]}


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    rounds = [row([0.1, 0.4, 0.3], [0, 1, 2]), row([0.2, 0.25, 0.9], [1, 5, 6])]
    found = detection(rounds, [[1], [1]])
    assert found is not None
    pairs = [(a > b) + 0.5 * (a == b) for a in (0.4, 0.2) for b in (0.1, 0.3, 0.25, 0.9)]
    assert found["auc"] == pytest.approx(np.mean(pairs))
    assert (found["rounds"], found["attackers"], found["others"]) == (2, 2, 4)
    assert found["low"] <= found["auc"] <= found["high"]
    assert found["roc"][0] == [0, 0]
    assert found["roc"][-1] == [1, 1]


def test_no_attack_or_no_scores_is_no_detection() -> None:
    assert detection([row([1, 2], [0, 1])], [[]]) is None
    assert detection([{"participants": [0, 1], "defenses": []}], [[0]]) is None
