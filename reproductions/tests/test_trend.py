"""Lines and powers against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from undertow.core.rng import rng
from undertow_reproductions.trend import compare_powers, linear_share, slope

RHOS = (0.1, 0.2, 0.3, 0.4, 0.5)


def noisy(power: float, noise: float, seeds: int = 3) -> dict[int, list[tuple[float, float]]]:
    draw = rng(0, "test powers")
    return {s: [(x, 0.7 * x**power * float(np.exp(noise * draw.standard_normal()))) for x in RHOS] for s in range(seeds)}


def test_slope_and_share_agree_with_scipy() -> None:
    draw = rng(1, "test slope")
    x, y = draw.random(12), draw.random(12)
    expected = stats.linregress(x, y)
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    assert slope(points) == pytest.approx(expected.slope)
    assert linear_share(points) == pytest.approx(expected.rvalue**2)


def test_one_place_has_no_slope() -> None:
    assert slope([(0.5, 1.0), (0.5, 2.0)]) is None
    assert slope([]) is None
    assert linear_share([(0.1, 1.0), (0.2, 2.0)]) is None
    assert linear_share([(0.1, 1.0), (0.2, 1.0), (0.3, 1.0)]) is None


@pytest.mark.parametrize("power", [1, 2])
def test_the_power_that_made_the_data_wins(power: int) -> None:
    found = compare_powers(noisy(power, 0.1))
    assert found is not None
    assert found.points == 15
    assert found.exponent.value == pytest.approx(power, abs=0.15)
    assert found.exponent.low <= found.exponent.value <= found.exponent.high
    assert found.aic > 20 if power == 1 else found.aic < -20
    assert (found.errors[0] < found.errors[1]) == (power == 1)


def test_halfway_between_the_powers_neither_wins_clearly() -> None:
    found = compare_powers(noisy(1.5, 0.3))
    assert found is not None
    assert abs(found.aic) < 10
    assert 1 < found.exponent.value < 2


def test_aic_is_that_of_two_regressions() -> None:
    curves = noisy(1.3, 0.2)
    x, y = (np.log([point[i] for line in curves.values() for point in line]) for i in (0, 1))
    sums = [float(np.sum((y - k * x - np.mean(y - k * x)) ** 2)) for k in (1, 2)]
    found = compare_powers(curves)
    assert found is not None
    assert found.aic == pytest.approx(len(x) * np.log(sums[1] / sums[0]))
    expected = stats.linregress(x, y).slope
    assert found.exponent.value == pytest.approx(expected)


def test_too_few_seeds_or_places_give_nothing() -> None:
    assert compare_powers({}) is None
    assert compare_powers({0: [(0.1, 1.0), (0.2, 2.0)]}) is None
    assert compare_powers({0: [(0.1, 1.0)], 1: [(0.1, 2.0)]}) is None
    # BSNR of exactly zero has no logarithm
    assert compare_powers({0: [(0.1, 0.0), (0.2, 0.0)], 1: [(0.1, 1.0), (0.2, 2.0)]}) is None
