from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import Krum, MultiKrum

X = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.4], [10, 10]])


def test_five_clients_by_hand() -> None:
    # squared distances: 01 = 1, 02 = 1, 03 = .41, 12 = 2, 13 = .41, 23 = .61; 4: 200, 181, 181, 182.41 (to 0, 1, 2, 3)
    delta, report = Krum(f=1)(X)
    np.testing.assert_allclose(report["scores"], [1.41, 1.41, 1.61, 0.82, 362.0], rtol=1e-12)
    assert report["chosen"] == [3]
    assert report["f"] == 1
    assert delta.tolist() == [0.5, 0.4]


def test_the_smallest_legal_federation_of_each_f_by_hand() -> None:
    # K = 3, f = 0: one neighbour. Distances 1 (01), 9 (02), 4 (12): 0 and 1 tie, the first is taken.
    delta, report = Krum(f=0)(np.array([[0.0], [1.0], [3.0]]))
    assert report["scores"] == [1.0, 1.0, 4.0]
    assert report["chosen"] == [0]
    assert delta.tolist() == [0.0]
    # K = 5, f = 1: two neighbours on the line 0, 1, 3, 4, 10: 1 + 9, 1 + 4, 1 + 4, 1 + 9, 36 + 49; 1 and 2 tie.
    line = np.array([[0.0], [1.0], [3.0], [4.0], [10.0]])
    delta, report = Krum(f=1)(line)
    assert report["scores"] == [10.0, 5.0, 5.0, 10.0, 85.0]
    assert report["chosen"] == [1]
    assert Krum(f=1)(line[::-1].copy())[0].tolist() == [3.0], "the first of the two, in this order"
    assert Krum(f=1, ties="content")(line[::-1].copy())[0].tolist() == [1.0], "the smaller of the two, in any order"
    # K = 7, f = 2: three neighbours on 0, 1, 2.5, 4.5, 20, 30, 50
    line = np.array([[0.0], [1.0], [2.5], [4.5], [20.0], [30.0], [50.0]])
    delta, report = Krum(f=2)(line)
    by_hand = [
        1 + 6.25 + 20.25,
        1 + 2.25 + 12.25,
        2.25 + 4 + 6.25,
        4 + 12.25 + 20.25,
        240.25 + 100 + 306.25,
        100 + 400 + 650.25,
        400 + 900 + 2070.25,
    ]
    np.testing.assert_allclose(report["scores"], by_hand, rtol=1e-12)
    assert delta.tolist() == [2.5]


@given(k=st.integers(3, 12), seed=st.integers(0, 1000), data=st.data())
@settings(max_examples=60, deadline=None)
def test_krum_is_its_definition(k: int, seed: int, data: st.DataObject) -> None:
    f = data.draw(st.integers(0, (k - 3) // 2))
    u = rng(seed, "krum").standard_normal((k, 6))
    scores = [sum(sorted(float(((a - b) ** 2).sum()) for j, b in enumerate(u) if j != i)[: k - f - 2]) for i, a in enumerate(u)]
    delta, report = Krum(f=f)(u)
    np.testing.assert_allclose(report["scores"], scores, rtol=1e-12)
    assert u[report["chosen"][0]].tolist() == delta.tolist()
    assert scores[report["chosen"][0]] == pytest.approx(min(scores), rel=1e-12)
    m = data.draw(st.integers(1, k))
    delta, report = MultiKrum(f=f, m=m)(u)
    assert sorted(scores[i] for i in report["chosen"]) == pytest.approx(sorted(scores)[:m], rel=1e-12)
    np.testing.assert_allclose(delta, u[report["chosen"]].mean(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("k", "f"), [(3, 0), (4, 0), (5, 1), (9, 3), (10, 3), (100, 48)])
def test_without_f_it_is_the_largest_legal_one(k: int, f: int) -> None:
    assert Krum()(rng(0, "krum").standard_normal((k, 3)))[1]["f"] == f
    Krum(f=f).check(k)
    with pytest.raises(
        UserError,
        match=rf"Krum with f = {f + 1} needs more than 2f \+ 2 = {2 * f + 4} clients, but there are {k}; give f from 0 to {f}",
    ):
        Krum(f=f + 1).check(k)


def test_two_clients_are_too_few_for_any_f() -> None:
    message = r"Krum with f = 0 needs more than 2f \+ 2 = 2 clients, but there are 2; use more clients or another aggregator"
    with pytest.raises(UserError, match=message):
        Krum()(X[:2])


def test_multi_krum_by_hand() -> None:
    delta, report = MultiKrum(f=1, m=3)(X)
    assert report["chosen"] == [3, 0, 1], "best first"
    np.testing.assert_allclose(delta, [0.5, 0.4 / 3], rtol=1e-12)
    delta, report = MultiKrum(f=1)(X)
    assert sorted(report["chosen"]) == [0, 1, 2, 3], "K - f of them"
    np.testing.assert_allclose(delta, [0.375, 0.35], rtol=1e-12)
    delta, _ = MultiKrum(f=1, m=2, weighted=True)(X, counts=[3, 1, 1, 1, 1])
    np.testing.assert_allclose(delta, [0.125, 0.1], rtol=1e-12)
    assert MultiKrum(f=1, m=1)(X)[0].tolist() == Krum(f=1)(X)[0].tolist()
    with pytest.raises(UserError, match="MultiKrum with m = 6 keeps more clients than the 5 there are; give m from 1 to 5"):
        MultiKrum(f=1, m=6)(X)


def test_one_wild_coordinate_does_not_blur_the_others() -> None:
    honest = 1 + 1e-6 * rng(0, "krum").standard_normal((9, 40))
    wild = honest[:1].copy()
    wild[0, 7] = 1e30
    delta, report = Krum(f=3)(np.concatenate([wild, honest]).astype(np.float32))
    assert report["scores"][0] > 1e59
    # Five neighbours count with and without the wild one, which is nobody's.
    expected, alone = Krum(f=2)(honest.astype(np.float32))
    assert report["scores"][1:] == pytest.approx(alone["scores"], rel=1e-12)
    assert delta.tolist() == expected.tolist()
