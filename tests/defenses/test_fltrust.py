from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import Bucketing, FLTrust


def by_the_paper(u: Any, root: Any) -> Any:
    score = np.maximum(0, u @ root / np.linalg.norm(u, axis=1) / np.linalg.norm(root))
    scaled = [np.linalg.norm(root) / np.linalg.norm(row) * row for row in u]
    return sum(s * row for s, row in zip(score, scaled, strict=True)) / score.sum(), score


@given(k=st.integers(1, 8), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_it_is_its_definition(k: int, seed: int) -> None:
    draw = rng(seed, "u")
    u, root = draw.standard_normal((k, 6)), draw.standard_normal(6)
    u[0] = 3 * root  # somebody agrees
    wanted, score = by_the_paper(u, root)
    delta, report = FLTrust()(u, trusted=root)
    np.testing.assert_allclose(delta, wanted, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(report["trust"], score, atol=1e-12)


def test_by_hand() -> None:
    # cosines 1, 0.6 and -1; lengths are brought to 2: (1 (2, 0) + 0.6 (1.2, 1.6)) / 1.6
    u = np.array([[9.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
    delta, report = FLTrust()(u, trusted=np.array([2.0, 0.0]))
    np.testing.assert_allclose(delta, [2.72 / 1.6, 0.96 / 1.6], rtol=1e-12)
    np.testing.assert_allclose(report["trust"], [1, 0.6, 0], atol=1e-12)


@pytest.mark.parametrize("root", [[1.0, 0.0], [0.0, 0.0]])
def test_where_nobody_agrees_the_model_stays(root: list[float]) -> None:
    delta, report = FLTrust()(np.array([[-1.0, 0.0], [0.0, 0.0]]), trusted=np.array(root))
    assert delta.tolist() == [0, 0]
    assert report == {"trust": [0, 0], "kept_model": True}


def test_a_trusted_client_is_the_root_and_is_not_averaged() -> None:
    u = rng(0, "u").standard_normal((6, 5)) + 1
    delta, report = FLTrust(client=7)(u, clients=[1, 4, 7, 8, 9, 11])
    np.testing.assert_allclose(delta, by_the_paper(np.delete(u, 2, axis=0), u[2])[0], rtol=1e-10)
    assert report["trust"][2] is None


def test_without_a_root_it_refuses() -> None:
    u = np.ones((3, 2))
    with pytest.raises(UserError, match=r"needs an update from trusted data; give trusted=\[D\], or client"):
        FLTrust()(u)
    with pytest.raises(UserError, match=r"trusts client 5, but it has no row in round 3; set federation.participation=1"):
        FLTrust(client=5)(u, round=3)
    with pytest.raises(UserError, match="do not put bucketing before it"):
        Bucketing(then=FLTrust(client=1))(u)
