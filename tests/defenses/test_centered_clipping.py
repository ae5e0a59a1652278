from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import CenteredClipping


@given(k=st.integers(1, 8), steps=st.integers(1, 3), seed=st.integers(0, 1000), tau=st.none() | st.floats(0.1, 5))
@settings(max_examples=40, deadline=None)
def test_it_is_its_definition_over_the_rounds(k: int, steps: int, seed: int, tau: float | None) -> None:
    rule, v = CenteredClipping(tau=tau, iterations=steps), np.zeros(5)
    for t in range(3):
        u = rng(seed, "u", t).standard_normal((k, 5))
        for _ in range(steps):
            far = np.linalg.norm(u - v, axis=1)
            radius = np.median(far) if tau is None else tau
            v = v + sum((u[i] - v) * (min(1.0, radius / far[i]) if far[i] > 0 else 1.0) for i in range(k)) / k
        delta, report = rule(u)
        np.testing.assert_allclose(delta, v, rtol=1e-10, atol=1e-12)
        assert report["tau"] == pytest.approx(radius)


def test_by_hand() -> None:
    # from 0: (3, 4) clipped to length 1 is (0.6, 0.8), (0, 0.5) stays; from there (0.3, 0.65) to the next
    rule = CenteredClipping(tau=1.0)
    delta, report = rule(np.array([[3.0, 4.0], [0.0, 0.5]]))
    np.testing.assert_allclose(delta, [0.3, 0.65], rtol=1e-12)
    assert report["clipped"] == [0]
    delta, report = rule(np.array([[0.3, 0.65], [0.3, 10.65]]))
    np.testing.assert_allclose(delta, [0.3, 1.15], rtol=1e-12)
    assert report["clipped"] == [1]


def test_a_wide_radius_is_the_mean_and_no_client_moves_it_beyond_its_share() -> None:
    u = rng(0, "u").standard_normal((4, 3))
    np.testing.assert_allclose(CenteredClipping(tau=1e9)(u)[0], u.mean(axis=0), rtol=1e-12)
    wild = u.copy()
    wild[2] = 1e9
    moved = CenteredClipping(tau=2.0)(wild)[0] - CenteredClipping(tau=2.0)(u)[0]
    assert np.linalg.norm(moved) <= 2 * 2.0 / 4 + 1e-12


def test_another_model_or_a_strange_state_is_refused() -> None:
    rule = CenteredClipping()
    rule(np.zeros((3, 4)))
    with pytest.raises(UserError, match="got updates of 5 columns after an aggregate of 4; use a new one"):
        rule(np.zeros((3, 5)))
    for state in ({"last": torch.zeros(2, 2)}, {"last": torch.tensor([np.nan])}, {"first": torch.zeros(2)}):
        with pytest.raises(UserError, match="CenteredClipping cannot take back the state"):
            rule.restore(state)
