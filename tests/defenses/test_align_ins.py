from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import AlignIns


def by_the_paper(u: Any, model: Any, counts: Any, sparsity: float, limit: float) -> tuple[Any, list[int]]:
    k, d = u.shape
    angle = np.array([row @ model / np.linalg.norm(row) / np.linalg.norm(model) for row in u])
    major = np.sign(np.sign(u).sum(axis=0))
    share = []
    for row in u:
        largest = np.argsort(-np.abs(row), kind="stable")[: max(1, int(sparsity * d))]
        share.append(np.mean(np.sign(row[largest]) == major[largest]))
    z = [np.abs(x - np.median(x)) / np.std(x) if np.std(x) > 1e-12 else np.zeros(k) for x in (angle, np.array(share))]
    kept = [i for i in range(k) if z[0][i] < limit and z[1][i] < limit]
    if not kept:
        return np.zeros(d), kept
    lengths = np.linalg.norm(u[kept], axis=1)
    clipped = [u[i] * min(1, np.median(lengths) / length) for i, length in zip(kept, lengths, strict=True)]
    return np.average(clipped, axis=0, weights=counts[kept]), kept


@given(
    k=st.integers(3, 9),
    seed=st.integers(0, 1000),
    sparsity=st.sampled_from([0.01, 0.3, 1.0]),
    limit=st.sampled_from([0.7, 1.1, 3.0]),
)
@settings(max_examples=60, deadline=None)
def test_it_is_its_definition(k: int, seed: int, sparsity: float, limit: float) -> None:
    draw = rng(seed, "u")
    u, model, n = draw.standard_normal((k, 11)) + 0.4, draw.standard_normal(11), np.arange(1, k + 1)
    wanted, kept = by_the_paper(u, model, n, sparsity, limit)
    delta, report = AlignIns(sparsity, limit, limit)(u, adapter=model, counts=n.tolist())
    assert report["kept"] == kept
    np.testing.assert_allclose(delta, wanted, rtol=1e-10, atol=1e-12)


def test_by_hand() -> None:
    # two of four coordinates: |-4| and |3|; 2 and 2 (the first two of equals); 5 and 5; 9 and 8
    u = np.array([[-4.0, 1, 3, 0.5], [2, 2, 2, 2], [1, 5, 5, 1], [9, 8, -1, -1.0]])
    # signs sum to 2 4 2 2: all positive
    report = AlignIns(sparsity=0.5, limit_t=9, limit_s=9)(u, adapter=np.array([1.0, 0, 0, 0]))[1]
    assert report["signs"] == [0.5, 1, 1, 1]
    np.testing.assert_allclose(report["angle"], u[:, 0] / np.linalg.norm(u, axis=1), rtol=1e-12)


def test_one_that_points_elsewhere_is_dropped() -> None:
    u = rng(0, "u").standard_normal((1, 60)) + 0.1 * rng(1, "u").standard_normal((8, 60))
    u[3] *= -1
    assert 3 not in AlignIns()(u, adapter=u[0])[1]["kept"]


def test_where_none_is_ordinary_the_model_stays() -> None:
    # angles 1, 1, -1, -1: the median is 0, all are one standard deviation away
    delta, report = AlignIns(sparsity=1.0)(np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]]), adapter=np.array([1.0, 0]))
    assert report["kept"] == []
    assert delta.tolist() == [0, 0]


def test_an_adapter_of_zero_has_no_angle() -> None:
    u = rng(0, "u").standard_normal((5, 6))
    assert AlignIns()(u, adapter=np.zeros(6))[1]["angle"] == [0] * 5


def test_it_asks_for_the_model_and_for_three_clients() -> None:
    with pytest.raises(UserError, match=r"looks at the global adapter; give adapter=\[D\]"):
        AlignIns()(np.zeros((5, 3)))
    with pytest.raises(UserError, match="AlignIns needs at least 3 clients, but there are 2"):
        AlignIns().check(2)
