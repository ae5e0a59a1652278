from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses import Bucketing, FoolsGold


def by_the_paper(history: Any, kappa: float = 1.0) -> Any:
    """Algorithm 1, pair by pair."""
    k = len(history)
    cs = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in history] for a in history])
    most = [max(cs[i][j] for j in range(k) if j != i) for i in range(k)]
    alpha = np.empty(k)
    for i in range(k):
        row = [cs[i][j] * most[i] / most[j] if most[j] > most[i] else cs[i][j] for j in range(k) if j != i]
        alpha[i] = min(1.0, max(0.0, 1 - max(row)))
    alpha /= alpha.max()
    with np.errstate(divide="ignore"):
        alpha = kappa * (np.log(alpha / (1 - alpha)) + 0.5)
    return np.clip(alpha, 0, 1)


@given(k=st.integers(2, 8), seed=st.integers(0, 1000), kappa=st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=40, deadline=None)
def test_it_is_its_definition_over_the_rounds(k: int, seed: int, kappa: float) -> None:
    rules = {divide: FoolsGold(kappa=kappa, divide=divide) for divide in ("clients", "weights", "none")}
    past: dict[int, Any] = {}
    for t in range(3):
        draw = rng(seed, "u", t)
        u = draw.standard_normal((k, 6)) + 0.5
        clients = draw.choice(10, size=k, replace=False).tolist()
        past |= {c: past.get(c, 0) + row for c, row in zip(clients, u, strict=True)}
        weights = by_the_paper([past[c] for c in clients], kappa)
        for divide, rule in rules.items():
            delta, report = rule(u, clients=clients)
            np.testing.assert_allclose(report["weights"], weights, atol=1e-10)
            over = {"clients": k, "weights": weights.sum(), "none": 1}[divide]
            np.testing.assert_allclose(delta, weights @ u / over, rtol=1e-9, atol=1e-11)


def test_sybils_lose_their_say() -> None:
    u = rng(0, "u").standard_normal((8, 50))
    u[5] = u[6] = u[7]
    delta, report = FoolsGold(divide="weights")(u)
    assert report["weights"][5:] == [0, 0, 0]
    assert min(report["weights"][:5]) == 1
    np.testing.assert_allclose(delta, u[:5].mean(axis=0), rtol=1e-12)


def test_two_of_one_direction_get_nothing() -> None:
    u = np.outer([1.0, 3.0, 0.3, 0.7], rng(0, "u").standard_normal(9))
    for divide in ("clients", "weights", "none"):
        delta, report = FoolsGold(divide=divide)(u)
        assert report["weights"] == [0, 0, 0, 0]
        assert not delta.any()


def test_it_may_remember_a_part() -> None:
    layout = Layout.of({"q.lora_A": (2, 3), "q.lora_B": (3, 2)})
    u = rng(0, "u").standard_normal((5, 12)) + 0.5
    rule = FoolsGold(tensors="lora_B")
    weights = rule(u, layout=layout)[1]["weights"]
    np.testing.assert_allclose(weights, by_the_paper(u[:, 6:]), atol=1e-10)
    assert rule.state()["sums"].shape == (5, 6)
    with pytest.raises(UserError, match="tensors = lora_C finds none"):
        FoolsGold(tensors="lora_C")(u, layout=layout)


def test_rows_that_are_no_clients_another_model_and_a_strange_state_are_refused() -> None:
    u = np.ones((6, 4))
    with pytest.raises(UserError, match="remembers clients, but its rows are none, as after bucketing"):
        Bucketing(s=2, then=FoolsGold())(u)
    rule = FoolsGold()
    rule(u)
    with pytest.raises(UserError, match="got 5 columns after 4"):
        rule(np.ones((6, 5)))
    for state in (
        {"clients": torch.tensor([1])},
        {"clients": torch.tensor([1]), "sums": torch.zeros(2, 4)},
        {"clients": torch.tensor([1]), "sums": torch.tensor([[np.nan]])},
    ):
        with pytest.raises(UserError, match="FoolsGold cannot take back the state"):
            rule.restore(state)
