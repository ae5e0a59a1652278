"""Means over seeds and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from undertow.metrics.intervals import Rate
from undertow_reproductions.estimate import Answer, Estimate, at_least, at_most, bootstrap, of_numbers, of_rates, overall


def made(low: float, high: float, wilson: tuple[float, float] | None = None) -> Estimate:
    ends = wilson or (None, None)
    return Estimate((low + high) / 2, low, high, *ends, 400, 3)


@pytest.mark.parametrize(
    ("found", "least", "most"),
    [
        (made(0.8, 0.9), "holds", "does not hold"),
        (made(0.5, 0.6), "does not hold", "holds"),
        (made(0.6, 0.8), "undecided", "undecided"),
        (made(0.71, 0.75, (0.68, 0.78)), "undecided", "undecided"),  # the wider of both intervals counts
        (None, "undecided", "undecided"),
    ],
)
def test_a_bar_is_passed_missed_or_neither(found: Estimate | None, least: Answer, most: Answer) -> None:
    assert at_least(found, 0.7) == least
    assert at_most(found, 0.7) == most


def test_a_mean_of_shares_has_both_intervals() -> None:
    rates = [Rate(30, 100), Rate(40, 100), Rate(50, 100)]
    found = of_rates(rates)
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert (found.wilson_low, found.wilson_high) == (Rate(120, 300).low, Rate(120, 300).high)
    assert (found.n, found.seeds) == (300, 3)
    # the mean of three draws lies at an end with probability 1/27 > 2.5 %
    assert (found.low, found.high) == (pytest.approx(0.3), pytest.approx(0.5))
    assert found.least == min(found.low, Rate(120, 300).low or 0)


def test_the_bootstrap_resamples_seeds() -> None:
    values = np.arange(50, dtype=float)
    found = of_numbers(values.tolist())
    assert found is not None
    error = values.std() / np.sqrt(50)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    draws = bootstrap(4, lambda draw: float(len(draw)), "any")
    assert set(draws.tolist()) == {4.0}
    assert np.array_equal(bootstrap(3, lambda d: float(d[0]), "x"), bootstrap(3, lambda d: float(d[0]), "x"))


def test_nothing_gives_nothing() -> None:
    assert of_numbers([]) is None
    assert of_rates([Rate(0, 0)]) is None


def test_parts_make_a_whole() -> None:
    assert overall([]) == "undecided"
    assert overall(["holds", "holds"]) == "holds"
    assert overall(["holds", "undecided"]) == "undecided"
    assert overall(["undecided", "does not hold", "holds"]) == "does not hold"


def test_one_seed_without_counts_decides_nothing() -> None:
    alone = of_numbers([0.001])
    assert alone is not None
    assert alone.alone
    assert at_most(alone, 0.01) == at_least(alone, 0.0) == "undecided"
    assert at_most(of_numbers([0.001, 0.002]), 0.01) == "holds"
