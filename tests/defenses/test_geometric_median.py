from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.rng import rng
from undertow.defenses import GeometricMedian


@given(k=st.integers(1, 9), steps=st.integers(1, 6), seed=st.integers(0, 1000), mean=st.booleans())
@settings(max_examples=50, deadline=None)
def test_it_is_its_definition(k: int, steps: int, seed: int, mean: bool) -> None:
    u, n = rng(seed, "u").standard_normal((k, 5)), np.arange(1, k + 1)
    share = n / n.sum()
    v = share @ u if mean else np.zeros(5)
    for _ in range(steps):
        pull = share / np.maximum(0.5, np.sqrt(((u - v) ** 2).sum(axis=1)))
        v = (pull[:, None] * u).sum(axis=0) / pull.sum()
    delta, report = GeometricMedian(iterations=steps, nu=0.5, start="mean" if mean else "zero")(u, counts=n.tolist())
    np.testing.assert_allclose(delta, v, rtol=1e-10, atol=1e-12)
    assert sum(report["weights"]) == pytest.approx(1)


def test_many_steps_minimise_the_sum_of_distances() -> None:
    u = rng(3, "u").standard_normal((9, 4))
    found = scipy.optimize.minimize(lambda v: np.linalg.norm(u - v, axis=1).sum(), u.mean(axis=0), tol=1e-14)
    delta, _ = GeometricMedian(iterations=500)(u)
    np.testing.assert_allclose(delta, found.x, atol=1e-6)
    three, _ = GeometricMedian()(u)
    assert np.abs(three - found.x).max() > 1e-3, "three steps from zero have not arrived"


def test_by_hand() -> None:
    # three of five sit on one point: that is the median, wherever the others are
    u = np.array([[1.0, 2.0]] * 3 + [[1e4, 0.0], [0.0, -1e4]])
    np.testing.assert_allclose(GeometricMedian(iterations=100)(u)[0], [1, 2], atol=1e-6)
    # one step from zero: shares 1/3 and 1/4 of lengths 3 and 4, over their sum 7/12
    delta, report = GeometricMedian(iterations=1)(np.array([[3.0, 0.0], [0.0, 4.0]]))
    np.testing.assert_allclose(report["weights"], [4 / 7, 3 / 7], rtol=1e-12)
    np.testing.assert_allclose(delta, [12 / 7, 12 / 7], rtol=1e-12)
