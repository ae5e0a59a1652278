from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import Bulyan


def by_the_paper(u: Any, f: int) -> Any:
    """Krum with removal until K - 2f are chosen; then, by coordinate, the K - 4f values closest to the median."""
    left, chosen = list(range(len(u))), []
    while len(chosen) < len(u) - 2 * f:
        scores = {}
        for i in left:
            squares = sorted(float(((u[i] - u[j]) ** 2).sum()) for j in left if j != i)
            scores[i] = sum(squares[: max(1, len(left) - f - 2)])
        best = min(left, key=lambda i: scores[i])
        chosen.append(best)
        left.remove(best)
    picked = u[chosen]
    out = np.empty(u.shape[1])
    for d in range(u.shape[1]):
        column = picked[:, d]
        out[d] = sorted(column, key=lambda x: abs(x - np.median(column)))[: len(u) - 4 * f] @ np.ones(len(u) - 4 * f)
    return out / (len(u) - 4 * f), chosen


@given(k=st.integers(3, 13), f=st.integers(0, 2), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_it_is_its_definition(k: int, f: int, seed: int) -> None:
    k = max(k, 4 * f + 3)
    u = rng(seed, "u").standard_normal((k, 5))
    wanted, chosen = by_the_paper(u, f)
    delta, report = Bulyan(f=f, ties="index")(u)
    if f:  # without bad clients the last choices tie
        assert set(report["chosen"]) == set(chosen)
    np.testing.assert_allclose(delta, wanted, rtol=1e-10, atol=1e-12)


def test_seven_clients_by_hand() -> None:
    # f = 1: 5 are chosen, and the 3 closest to their median averaged. The distances of 0, 1, 3, 6, 10, 15 grow to the right.
    # n = 7, 4 nearest: scores of 0: 1+9+36+100, 1: 1+4+25+81, 3: 4+9+9+49 = 71, 6: 9+16+25+36 = 86, 10: 16+25+49+81 ... -> 3
    # n = 6, 3 nearest: 0: 1+36+100 = 137, 1: 1+25+81 = 107, 6: 16+25+36 = 77, 10: 16+25+81 = 122 -> 6
    # n = 5, 2 nearest: 0: 1+100 = 101, 1: 1+81 = 82, 10: 25+81 = 106, 15: 25+196 -> 1
    # n = 4, 1 nearest: 0: 100, 10: 25, 15: 25 -> 10 before 15; n = 3, 1 nearest: 0: 225, 15: 225 -> 0 before 15
    u = np.array([[0.0], [1.0], [3.0], [6.0], [10.0], [15.0], [1e6]])
    delta, report = Bulyan(f=1)(u)
    assert report["chosen"] == [2, 3, 1, 4, 0]
    # median of 3 6 1 10 0 is 3; closest are 3, 1, then 6 and 0 at the same distance: the smaller one
    np.testing.assert_allclose(delta, [4 / 3], rtol=1e-12)


def test_ten_clients_bear_one_and_bad_ones_are_not_followed() -> None:
    u = rng(1, "u").standard_normal((10, 6))
    u[4] = 1e6
    delta, report = Bulyan()(u)
    assert report["f"] == 1
    assert 4 not in report["chosen"]
    assert np.abs(delta).max() < 3


def test_too_few_are_refused_with_the_legal_range() -> None:
    with pytest.raises(
        UserError, match=r"Bulyan with f = 2 needs at least 4f \+ 3 = 11 clients, but there are 10; give f from 0 to 1"
    ):
        Bulyan(f=2)(np.zeros((10, 3)))
    with pytest.raises(UserError, match="use more clients or another aggregator"):
        Bulyan().check(2)
