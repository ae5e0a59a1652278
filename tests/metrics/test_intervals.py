"""Wilson intervals against scipy."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.metrics.intervals import Rate

stats = pytest.importorskip("scipy.stats")


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(pair: tuple[int, int]) -> None:
    hits, n = pair
    rate = Rate(hits, n)
    oracle = stats.binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert rate.value == hits / n
    assert rate.low == pytest.approx(oracle.low, abs=1e-12)
    assert rate.high == pytest.approx(oracle.high, abs=1e-12)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_the_ends_are_exact() -> None:
    assert Rate(0, 300).low == 0.0
    assert Rate(300, 300).high == 1.0
    assert Rate(0, 300).high == pytest.approx(0.01264, abs=1e-5)


def test_no_samples_no_value() -> None:
    assert Rate(0, 0).as_dict() == {"value": None, "n": 0, "hits": 0, "low": None, "high": None}


def test_as_dict_goes_into_json() -> None:
    shown = json.loads(json.dumps(Rate(3, 4).as_dict()))
    assert list(shown) == ["value", "n", "hits", "low", "high"]
    assert (shown["value"], shown["n"], shown["hits"]) == (0.75, 4, 3)


@pytest.mark.parametrize(("hits", "n"), [(-1, 3), (4, 3), (1, 0), (0, -1)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="hits"):
        Rate(hits, n)
