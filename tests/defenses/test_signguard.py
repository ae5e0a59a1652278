from __future__ import annotations

import numpy as np
import pytest

from undertow.core.rng import rng
from undertow.defenses import SignGuard


def test_by_length_and_by_sign() -> None:
    # all of length 10 but two; signs of one client are turned, which changes no length
    u = np.abs(rng(0, "u").standard_normal((10, 400)))
    u *= np.where(rng(1, "u").random((10, 400)) < 0.3, -1, 1)
    u *= 10 / np.linalg.norm(u, axis=1, keepdims=True)
    u[2] *= 3.5
    u[6] *= 0.05
    u[8] *= -1
    u[1] *= 2
    delta, report = SignGuard(fraction=1.0)(u)
    assert report["by_length"] == [0, 1, 3, 4, 5, 7, 8, 9]
    assert report["by_sign"] == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert report["kept"] == [0, 1, 3, 4, 5, 7, 9]
    assert report["bound"] == pytest.approx(10)
    wanted = sum(u[i] * min(1.0, 10 / np.linalg.norm(u[i])) for i in report["kept"]) / 7
    np.testing.assert_allclose(delta, wanted, rtol=1e-10)


def test_the_window_is_the_rounds_own_draw() -> None:
    u = np.abs(rng(0, "u").standard_normal((6, 50)))
    first = int(rng(5, "server", 3).integers(50 - 5 + 1))
    u[4, first : first + 5] *= -1
    assert 4 not in SignGuard()(u, seed=5, round=3)[1]["by_sign"]
    u[4] = np.abs(u[4])
    u[4, :first] *= -1
    u[4, first + 5 :] *= -1
    assert 4 in SignGuard()(u, seed=5, round=3)[1]["by_sign"], "what is outside is not looked at"


def test_both_limits_belong_to_it() -> None:
    u = np.array([[1.0], [1.0], [1.0], [0.1], [3.0]])
    assert SignGuard()(u)[1]["kept"] == [0, 1, 2, 3, 4]
    # clipped to 1: (1 + 1 + 1 + 0.1 + 1) / 5
    np.testing.assert_allclose(SignGuard()(u)[0], [0.82], rtol=1e-12)


def test_where_the_filters_agree_on_nobody_the_model_stays() -> None:
    # the majority by sign is too long: lengths 9 9 1 1 1 1 1 with five of other signs each
    u = np.diag([1.0, 1, 1, 1, 1])
    u[0:3] = [[9, 9, 9, 9, 9]] * 3
    delta, report = SignGuard(fraction=1.0, upper=1.0, lower=1.0)(np.concatenate([u, -u[3:] * 2]))
    assert report["by_sign"] == [0, 1, 2]
    assert report["kept"] == []
    assert not delta.any()
