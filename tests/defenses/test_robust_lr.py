from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import RobustLR


@given(k=st.integers(1, 9), theta=st.none() | st.integers(0, 9), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_it_is_its_definition(k: int, theta: int | None, seed: int) -> None:
    theta = None if theta is None else min(theta, k)
    u, n = rng(seed, "u").standard_normal((k, 7)), np.arange(1, k + 1)
    agree = np.abs(np.sign(u).sum(axis=0))
    rate = np.where(agree >= (np.ceil(0.4 * k) if theta is None else theta), 1, -1)
    delta, report = RobustLR(theta)(u, counts=n.tolist())
    np.testing.assert_allclose(delta, rate * np.average(u, axis=0, weights=n), rtol=1e-10, atol=1e-13)
    assert report["turned"] == pytest.approx(np.mean(rate < 0))


def test_by_hand() -> None:
    # sums of signs 3, 1, -3, 0 of three clients; with 2 the second and fourth turn
    u = np.array([[1.0, 6, -1, 0], [2, -1, -2, 1], [3, 1, -3, -4]])
    delta, report = RobustLR()(u)
    np.testing.assert_allclose(delta, [2, -2, -2, 1], rtol=1e-12)
    assert report == {"theta": 2, "turned": 0.5}
    assert RobustLR()(np.ones((10, 2)))[1]["theta"] == 4


def test_more_votes_than_clients_are_refused() -> None:
    with pytest.raises(UserError, match="theta = 4 turns every coordinate of 3 clients; give theta from 0 to 3"):
        RobustLR(4).check(3)
