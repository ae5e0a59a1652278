"""Mean, median and trimmed mean against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import Mean, Median, TrimmedMean
from undertow.federation.server import fedavg

X = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.4], [10, 10]])


@given(k=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_they_are_numpys_and_scipys(k: int, seed: int) -> None:
    u = rng(seed, "u").standard_normal((k, 7))
    counts = rng(seed, "n").integers(1, 50, k).tolist()
    np.testing.assert_allclose(Median()(u)[0], np.median(u, axis=0), rtol=1e-12)
    np.testing.assert_allclose(Mean()(u, counts=counts)[0], np.average(u, axis=0, weights=counts), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(Mean(weighted=False)(u, counts=counts)[0], u.mean(0), rtol=1e-12, atol=1e-14)
    for share in (0.0, 0.1, 0.2, 0.34, 0.49):
        np.testing.assert_allclose(TrimmedMean(share=share)(u)[0], scipy.stats.trim_mean(u, share, axis=0), rtol=1e-12, atol=1e-14)


def test_the_mean_is_the_engines_fedavg() -> None:
    u = torch.from_numpy(rng(0, "u").standard_normal((5, 1000))).float()
    assert torch.equal(Mean()(u, counts=[3, 1, 4, 1, 5])[0], fedavg(u, [3, 1, 4, 1, 5]))


def test_by_hand() -> None:
    assert Median()(X)[0].tolist() == [0.5, 0.4]
    assert Median()(X[:2])[0].tolist() == [0.5, 0.0]
    delta, report = TrimmedMean()(X)
    np.testing.assert_allclose(delta, [0.5, 1.4 / 3], rtol=1e-12)
    assert report == {"trimmed": 1}
    assert TrimmedMean(b=2)(X)[0].tolist() == [0.5, 0.4]
    assert TrimmedMean()(np.zeros((10, 1)))[1] == {"trimmed": 2}


def test_b_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(
        UserError, match="TrimmedMean with b = 3 needs more than 2b = 6 clients, but there are 5; give b from 0 to 2"
    ):
        TrimmedMean(b=3)(X)


def test_large_values_do_not_overflow() -> None:
    big = torch.full((4, 3), 3e38)
    for rule in (Mean(), Median(), TrimmedMean(b=1)):
        assert torch.equal(rule(big)[0], big[0])
