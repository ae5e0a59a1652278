from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import Mean, WeakDP
from undertow.defenses.making import make_defenses

U = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, -2.0], [0.0, 0.0]])


def epsilon(mu: float, delta: float) -> float:
    """Solve Balle and Wang's Theorem 8 for a Gaussian mechanism of sensitivity / sigma = mu."""
    phi = scipy.stats.norm.cdf

    def excess(eps: float) -> float:
        return float(phi(mu / 2 - eps / mu) - np.exp(eps) * phi(-mu / 2 - eps / mu) - delta)

    return float(scipy.optimize.brentq(excess, 0, 200, xtol=1e-13))


def test_clipping_by_hand() -> None:
    # lengths 5 1 2 0, median 1.5: scales 0.3, 1, 0.75, 1
    delta, report = WeakDP(weighted=False)(U)
    np.testing.assert_allclose(delta, [0.9 / 4, (1.2 + 1 - 1.5) / 4], rtol=1e-12)
    assert report == {"bound": 1.5, "clipped": [0, 2], "sigma": 0.0}
    delta, report = WeakDP(bound=2.5)(U, counts=[2, 1, 1, 4])
    np.testing.assert_allclose(delta, [3 / 8, (4 + 1 - 2) / 8], rtol=1e-12)
    assert report["clipped"] == [0]
    np.testing.assert_allclose(WeakDP(bound=99.0)(U, counts=[2, 1, 1, 4])[0], Mean()(U, counts=[2, 1, 1, 4])[0], rtol=1e-12)


def test_the_noise_is_the_rounds_own_gaussian() -> None:
    pytest.importorskip("dp_accounting")
    u = rng(0, "u").standard_normal((5, 70_000))
    still, noised = WeakDP(bound=1.0)(u)[0], WeakDP(bound=1.0, sigma=0.3)(u, seed=4, round=2)[0]
    np.testing.assert_allclose(noised - still, 0.3 * rng(4, "server", 2).standard_normal(70_000), atol=1e-12)
    assert not np.array_equal(noised, WeakDP(bound=1.0, sigma=0.3)(u, seed=4, round=3)[0])


def test_the_account_is_that_of_the_composed_mechanism() -> None:
    pytest.importorskip("dp_accounting")
    rule = WeakDP(bound=2.0, sigma=0.5, delta=1e-6)
    spent = 0.0
    for t, counts in enumerate([[1, 1, 1, 1], [4, 2, 1, 1], [1, 1, 1, 1]], 1):
        spent += (2.0 * max(counts) / sum(counts) / 0.5) ** 2
        report = rule(U, counts=counts, round=t)[1]
        assert report["epsilon"] == pytest.approx(epsilon(spent**0.5, 1e-6), rel=1e-9)
        assert report["delta"] == 1e-6


def test_the_account_agrees_with_the_librarys_own_composition() -> None:
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    rule = WeakDP(bound=1.0, sigma=0.5, weighted=False)
    reports = [rule(U, round=t)[1] for t in range(1, 8)]
    accountant = pld.PLDAccountant()
    accountant.compose(dp.GaussianDpEvent(0.5 * 4 / 1.0), 7)
    assert reports[-1]["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert [r["epsilon"] for r in reports] == sorted(r["epsilon"] for r in reports)


def test_nothing_is_promised_where_nothing_holds() -> None:
    assert "epsilon" not in WeakDP(sigma=0.1)(U)[1], "a bound from the updates themselves"
    assert "epsilon" not in WeakDP(bound=1.0)(U)[1], "no noise"


def test_without_the_accountant_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(UserError, match=r"needs dp-accounting; pip install -e '\.\[privacy\]' in the clone, or set sigma = 0"):
        make_defenses([Options(name="weak-dp", params={"bound": 1.0, "sigma": 0.1})])
    WeakDP(bound=1.0)(U)
    WeakDP(sigma=0.1)(U)


@pytest.mark.parametrize("spent", [-1.0, float("nan"), float("inf")])
def test_a_state_that_is_none_is_refused(spent: float) -> None:
    import torch

    with pytest.raises(UserError, match="WeakDP cannot take back the state spent"):
        WeakDP().restore({"spent": torch.tensor(spent)})
