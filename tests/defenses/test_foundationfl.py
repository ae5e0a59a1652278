from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import FoundationFL, Median, TrimmedMean

X = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.4], [10, 10]])


def test_five_clients_by_hand() -> None:
    # top (10, 10), bottom (0, 0): the outlier is an extreme itself; (1, 0) and (0, 1) tie, the first is taken.
    delta, report = FoundationFL(m=2)(X)
    np.testing.assert_allclose(report["scores"], [0, 1, 1, 0.41**0.5, 0], rtol=1e-12, atol=0)
    assert report["copied"] == 1
    assert (report["copies"], report["trimmed"]) == (2, 3)
    assert delta.tolist() == [1.0, 0.0], "the copies drag the median off (0.5, 0.4)"
    assert FoundationFL(m=2, ties="content")(X)[1]["copied"] == 2, "(0, 1) comes before (1, 0) in any order"
    # seven values a coordinate: 0 0 .5 1 1 1 10 and 0 0 0 0 .4 1 10, without the ends
    delta, report = FoundationFL(base="trimmed-mean", m=2, b=1)(X)
    np.testing.assert_allclose(delta, [3.5 / 5, 1.4 / 5], rtol=1e-12)
    assert report["trimmed"] == 1


def test_the_smallest_federations_by_hand() -> None:
    delta, report = FoundationFL()(np.array([[3.0, 4.0]]))
    assert (delta.tolist(), report["copies"], report["scores"]) == ([3.0, 4.0], 0, [0.0])
    # (0, 0) and (3, 4): both are an envelope; a copy of the first makes it the median of three
    delta, report = FoundationFL()(np.array([[0.0, 0.0], [3.0, 4.0]]))
    assert (delta.tolist(), report["copies"], report["copied"]) == ([0.0, 0.0], 1, 0)
    # (0, 4), (3, 0), (1, 1): top (3, 4), bottom (0, 0): min(3, 4) = 3, min(4, 3) = 3, min(13 ** .5, 2 ** .5)
    delta, report = FoundationFL()(np.array([[1.0, 1.0], [0.0, 4.0], [3.0, 0.0]]))
    np.testing.assert_allclose(report["scores"], [2**0.5, 3, 3], rtol=1e-12)
    assert report["copied"] == 1
    np.testing.assert_allclose(delta, [0.5, 2.5], rtol=1e-12)  # 0 0 1 3 and 0 1 4 4


@given(k=st.integers(1, 11), m=st.none() | st.integers(0, 6), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_it_is_its_definition(k: int, m: int | None, seed: int) -> None:
    u = rng(seed, "u").standard_normal((k, 5))
    copies = k // 2 if m is None else m
    far = np.minimum(np.linalg.norm(u - u.max(0), axis=1), np.linalg.norm(u - u.min(0), axis=1))
    delta, report = FoundationFL(m=m)(u)
    np.testing.assert_allclose(report["scores"], far, rtol=1e-12)
    assert far[report["copied"]] == pytest.approx(far.max(), rel=1e-12)
    rows = np.concatenate([u, np.repeat(u[[report["copied"]]], copies, axis=0)])
    np.testing.assert_allclose(delta, np.median(rows, axis=0), rtol=1e-12)
    delta, report = FoundationFL(base="trimmed-mean", m=m)(u)
    np.testing.assert_allclose(delta, scipy.stats.trim_mean(rows, 0.2, axis=0), rtol=1e-12, atol=1e-14)
    assert report["trimmed"] == int(0.2 * (k + copies))


def test_without_copies_it_is_the_plain_rule() -> None:
    assert FoundationFL(m=0)(X)[0].tolist() == Median()(X)[0].tolist()
    assert FoundationFL(base="trimmed-mean", m=0, b=1)(X)[0].tolist() == TrimmedMean(b=1)(X)[0].tolist()


def test_ten_clients_trim_three() -> None:
    report = FoundationFL(base="trimmed-mean")(np.eye(10))[1]
    assert (report["copies"], report["trimmed"]) == (5, 3)


def test_b_that_leaves_nothing_is_refused() -> None:
    message = (
        "FoundationFL with b = 4 needs more than 2b = 8 rows, but 5 clients and 2 copies are 7; give b from 0 to 3, a larger m"
    )
    with pytest.raises(UserError, match=message):
        FoundationFL(base="trimmed-mean", b=4)(X)
    FoundationFL(base="trimmed-mean", b=4, m=4).check(5)
