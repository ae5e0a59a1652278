"""BSNR against Eq. 2-3 written out, its identities, its null, and explicitly formed weight updates."""

from __future__ import annotations

from itertools import combinations
from math import comb, inf, isnan, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsnr_by_the_book import by_the_book
from undertow.metrics import bsnr as module
from undertow.metrics.bsnr import gram, gram_delta_w, measure_bsnr, phases


def updates(clients: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((clients, width)))


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def bsnr(u: torch.Tensor, poisoned: object, delta: torch.Tensor) -> float:
    value = measure_bsnr(u, poisoned, delta, permutations=0, draw=draw()).value
    return nan if value is None else value


def projection(u: torch.Tensor, n: int, delta: torch.Tensor) -> float:
    d = u[:n].mean(0) - u[n:].mean(0)
    return float(delta @ d / d.norm())


CASE = st.tuples(st.integers(2, 8), st.integers(2, 40), st.integers(0, 10**6)).flatmap(
    lambda c: st.tuples(st.just(c[0]), st.just(c[1]), st.just(c[2]), st.integers(1, c[0] - 1))
)


def test_by_hand() -> None:
    u = torch.tensor([[3.0, 1.0], [1.0, 1.0]])  # d = (2, 0), delta = (2, 1): p = 2, BSNR = 4 / 1
    assert bsnr(u, [0], u.mean(0)) == 4.0
    products = gram(u, u.mean(0))
    assert products.G.tolist() == [[10, 4], [4, 2]]
    assert (products.g.tolist(), products.dd) == ([7, 3], 5)


@settings(deadline=None)
@given(CASE)
def test_equations_2_and_3(case: tuple[int, int, int, int]) -> None:
    clients, width, seed, n = case
    u = updates(clients, width, seed)
    delta = torch.from_numpy(draw(seed + 1).dirichlet(np.ones(clients))) @ u  # any weights, as unequal client sizes give
    poisoned = draw(seed).permutation(clients)[:n].tolist()
    expected = by_the_book(u.numpy(), poisoned, delta.numpy())
    assert bsnr(u, poisoned, delta) == pytest.approx(expected, rel=1e-8)
    assert measure_bsnr(u, poisoned, delta, permutations=0, draw=draw()).value == pytest.approx(expected, rel=1e-8)
    from_products = measure_bsnr(None, poisoned, None, permutations=0, draw=draw(), grams=gram(u, delta))
    assert from_products.value == pytest.approx(expected, rel=1e-8)


@settings(deadline=None)
@given(CASE)
def test_projection_identity_and_bsnr_from_p(case: tuple[int, int, int, int]) -> None:
    clients, width, seed, n = case
    u, poisoned = updates(clients, width, seed), list(range(n))
    delta = u.mean(0)
    d = u[:n].mean(0) - u[n:].mean(0)
    p = projection(u, n, delta)
    assert p == pytest.approx(float(u[n:].mean(0) @ d / d.norm() + n / clients * d.norm()), rel=1e-12, abs=1e-12)
    assert bsnr(u, poisoned, delta) == pytest.approx(p * p / (float(delta @ delta) - p * p), rel=1e-9)


@settings(deadline=None)
@given(CASE, st.floats(1e-3, 1e3))
def test_invariances(case: tuple[int, int, int, int], c: float) -> None:
    clients, width, seed, n = case
    u, poisoned = updates(clients, width, seed), list(range(n))
    delta = u.mean(0)
    value = bsnr(u, poisoned, delta)
    order = np.concatenate([draw(seed).permutation(n), n + draw(seed).permutation(clients - n)])
    assert bsnr(u[order], poisoned, delta) == pytest.approx(value, rel=1e-8)
    assert bsnr(c * u, poisoned, c * delta) == pytest.approx(value, rel=1e-8)
    assert bsnr(u, list(range(n, clients)), delta) == pytest.approx(value, rel=1e-8)
    # The same shift along v for all clients moves p by its length and leaves what is orthogonal.
    d = u[:n].mean(0) - u[n:].mean(0)
    shifted = u + c * d / d.norm()
    p, moved = projection(u, n, delta), projection(shifted, n, shifted.mean(0))
    orthogonal, left = float(delta @ delta) - p**2, float(shifted.mean(0) @ shifted.mean(0)) - moved**2
    assert moved == pytest.approx(p + c, rel=1e-9, abs=1e-9)
    assert left == pytest.approx(orthogonal, rel=1e-6, abs=1e-7 * c * c)


@pytest.mark.parametrize(
    "poisoned",
    [
        [1, 3],
        (3, 1),
        np.array([1, 3]),
        torch.tensor([1, 3]),
        [False, True, False, True],
        np.array([False, True, False, True]),
        torch.tensor([False, True, False, True]),
    ],
)
def test_labels_in_any_form(poisoned: object) -> None:
    u = updates(4, 10)
    assert bsnr(u, poisoned, u.mean(0)) == pytest.approx(by_the_book(u.numpy(), [1, 3], u.mean(0).numpy()))


def test_undefined_is_nan_and_parallel_is_infinite() -> None:
    u = updates(4, 10)
    for poisoned in ([], [0, 1, 2, 3], [False] * 4):
        assert isnan(bsnr(u, poisoned, u.mean(0)))
        assert measure_bsnr(u, poisoned, u.mean(0), permutations=5, draw=draw()).value is None
    same = updates(1, 50).repeat(6, 1).float()
    assert isnan(bsnr(same, [0, 1, 2], same.mean(0)))
    assert measure_bsnr(same, [0, 1, 2], same.mean(0), permutations=5, draw=draw()).value is None
    assert isnan(bsnr(u, [0], torch.zeros(10)))
    assert isnan(bsnr(u[:1], [0], u[0]))
    assert isnan(bsnr(u[:1], [], u[0]))
    d = u[:2].mean(0) - u[2:].mean(0)
    assert bsnr(u, [0, 1], -3 * d) == inf
    line = torch.tensor([[1.0], [2.0], [5.0]])
    measured = measure_bsnr(line, [0], line.mean(0), permutations=10, draw=draw())
    assert measured.value == measured.null_low == measured.null_high == inf
    assert measured.p == 1


def test_float32_updates_are_summed_in_float64() -> None:
    # The groups differ by 1e-3 on top of a common 10: float32 products would lose the difference altogether.
    rows = np.full((6, 5000), 10.0, dtype=np.float32) + np.float32(1e-3) * draw().standard_normal((6, 5000)).astype(np.float32)
    u = torch.from_numpy(rows)
    delta = u.double().mean(0)
    expected = by_the_book(rows.astype(np.float64), [0, 1], delta.numpy())
    assert bsnr(u, [0, 1], delta) == pytest.approx(expected, rel=1e-6)


def test_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    u = updates(5, 103)
    delta = u.mean(0)
    whole, value = gram(u, delta), bsnr(u, [1], delta)
    monkeypatch.setattr(module, "_CHUNK", 60)
    pieces = gram(u, delta)
    np.testing.assert_allclose(pieces.G, whole.G, rtol=1e-12)
    np.testing.assert_allclose(pieces.g, whole.g, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(whole.G, u.numpy() @ u.numpy().T, rtol=1e-12)
    assert bsnr(u, [1], delta) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_without_backdoor_bsnr_is_about_one_over_d(n: int) -> None:
    width = 500
    values = [bsnr(u, list(range(n)), u.mean(0)) for u in (updates(10, width, seed) for seed in range(600))]
    # p^2 / |delta|^2 is a squared cosine to an independent direction: mean 1/D, standard deviation about sqrt(2)/D.
    assert np.mean(values) == pytest.approx(1 / width, rel=0.25)


def with_backdoor(seed: int, strength: float) -> torch.Tensor:
    u = updates(12, 300, seed)
    u[:4] += strength * updates(1, 300, 999)[0]
    return u


def test_a_backdoor_leaves_the_null_and_noise_does_not() -> None:
    u = with_backdoor(0, 2.0)
    found = measure_bsnr(u, range(4), u.mean(0), permutations=200, draw=draw())
    assert found.permutations == 200
    assert found.p == 1 / 201
    assert found.value > found.null_high > found.null_median > found.null_low >= 0
    p_values = [
        measure_bsnr(u, range(4), u.mean(0), permutations=99, draw=draw(seed)).p
        for seed, u in ((seed, with_backdoor(seed, 0.0)) for seed in range(200))
    ]
    # Under the null p is uniform on 1/100 .. 1.
    assert np.mean(p_values) == pytest.approx(0.505, abs=0.08)
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.07)


@pytest.mark.parametrize(("clients", "n"), [(2, 1), (5, 2), (6, 3), (7, 1), (7, 6)])
def test_few_relabellings_are_enumerated(clients: int, n: int) -> None:
    u = updates(clients, 30)
    u[:n] += 1
    delta = u.mean(0)
    every = {labels: by_the_book(u.numpy(), list(labels), delta.numpy()) for labels in combinations(range(clients), n)}
    observed = every.pop(tuple(range(n)))
    found = measure_bsnr(u, range(n), delta, permutations=comb(clients, n) - 1, draw=draw())
    assert found.permutations == comb(clients, n) - 1
    reached = sum(value >= observed * (1 - 1e-9) for value in every.values())
    assert found.p == (1 + reached) / comb(clients, n)
    bands = np.quantile(list(every.values()), [0.025, 0.5, 0.975])
    np.testing.assert_allclose([found.null_low, found.null_median, found.null_high], bands, rtol=1e-8)
    if 2 * n == clients:  # swapped groups tie
        assert found.p >= 2 / comb(clients, n)
    assert measure_bsnr(u, range(n), delta, permutations=comb(clients, n) - 1, draw=draw(7)) == found


def test_the_random_null_is_that_of_the_labels() -> None:
    u = with_backdoor(1, 1.0)
    delta = u.mean(0)
    drawn = measure_bsnr(u, range(4), delta, permutations=400, draw=draw())
    exact = measure_bsnr(u, range(4), delta, permutations=comb(12, 4), draw=draw())
    assert exact.permutations == comb(12, 4) - 1
    assert drawn.value == exact.value
    assert drawn.null_median == pytest.approx(exact.null_median, rel=0.3)
    assert measure_bsnr(u, range(4), delta, permutations=400, draw=draw()) == drawn
    assert measure_bsnr(u, range(4), delta, permutations=400, draw=draw(1)) != drawn


def test_no_permutations_no_null() -> None:
    u = updates(4, 10)
    found = measure_bsnr(u, [0], u.mean(0), permutations=0, draw=draw())
    assert found.value == pytest.approx(bsnr(u, [0], u.mean(0)))
    nothing = {"null_low": None, "null_median": None, "null_high": None, "p": None, "permutations": 0}
    assert found.as_dict() == {"value": found.value, **nothing}


Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def adapters(clients: int, shapes: list[tuple[int, int]], rank: int, seed: int, step: float) -> tuple[Pairs, Pairs, Pairs]:
    source = draw(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(source.standard_normal(shape).astype(np.float32))

    local, before, after = [], [], []
    for out, width in shapes:
        a_0, b_0 = normal(rank, width), normal(out, rank)
        a, b = a_0 + step * normal(clients, rank, width), b_0 + step * normal(clients, out, rank)
        local.append((a, b))
        before.append((a_0, b_0))
        after.append((a.mean(0), b.mean(0)))
    return local, before, after


@pytest.mark.parametrize("step", [1.0, 1e-4])
def test_delta_w_products_are_those_of_the_formed_matrices(step: float) -> None:
    scale = 2.0
    local, before, after = adapters(5, [(7, 6), (3, 11)], 2, 0, step)

    def formed(a: torch.Tensor, b: torch.Tensor, i: int) -> torch.Tensor:
        a_0, b_0 = before[i]
        return scale * (b.double() @ a.double() - b_0.double() @ a_0.double())

    u = torch.cat([formed(a, b, i).flatten(1) for i, (a, b) in enumerate(local)], dim=1)
    delta = torch.cat([formed(a, b, i).flatten() for i, (a, b) in enumerate(after)])
    assert u.shape == (5, 7 * 6 + 3 * 11)
    made, expected = gram_delta_w(local, before, after, scale), gram(u, delta)
    rel = 1e-9
    np.testing.assert_allclose(made.G, expected.G, rtol=rel, atol=rel * expected.G.max())
    np.testing.assert_allclose(made.g, expected.g, rtol=rel, atol=rel * expected.dd)
    assert made.dd == pytest.approx(expected.dd, rel=rel)
    found = measure_bsnr(None, [0, 3], None, permutations=9, draw=draw(), grams=made)
    assert found.value == pytest.approx(bsnr(u, [0, 3], delta), rel=1e-6)
    assert found.p == measure_bsnr(u, [0, 3], delta, permutations=9, draw=draw()).p


def test_delta_w_does_not_see_the_gauge() -> None:
    local, before, after = adapters(4, [(6, 5)], 3, 1, 0.3)
    turn = torch.linalg.qr(updates(3, 3, 5))[0]

    def turned(pairs: Pairs) -> Pairs:
        return [(turn @ a.double(), b.double() @ turn.T) for a, b in pairs]

    plain, gauged = gram_delta_w(local, before, after, 1.0), gram_delta_w(turned(local), turned(before), turned(after), 1.0)
    np.testing.assert_allclose(gauged.G, plain.G, rtol=1e-9, atol=1e-9)
    assert gauged.dd == pytest.approx(plain.dd)


def test_nan_rows_are_named() -> None:
    u = updates(4, 10).float()
    u[2, 3], u[3, 0] = torch.nan, inf
    clean = updates(4, 10).mean(0)
    with pytest.raises(ValueError, match="row 2, 3 holds NaN"):
        bsnr(u, [0], clean)
    with pytest.raises(ValueError, match="row 2, 3 holds NaN"):
        measure_bsnr(u, [0], clean, permutations=2, draw=draw())
    with pytest.raises(ValueError, match="global update holds NaN"):
        bsnr(updates(4, 10), [0], u[2].double())
    with pytest.raises(ValueError, match="global update holds NaN"):
        gram(updates(4, 10), u[2].double())
    local, before, after = adapters(3, [(4, 4)], 2, 0, 1.0)
    local[0][0][1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        gram_delta_w(local, before, after, 1.0)


@pytest.mark.parametrize("poisoned", [[4], [-1], [0, 0], [0.5], [True, False], [[0]]])
def test_bad_labels_are_refused(poisoned: object) -> None:
    with pytest.raises(ValueError, match="poisoned"):
        bsnr(updates(4, 10), poisoned, torch.ones(10))


def test_bad_shapes_are_refused() -> None:
    u = updates(4, 10)
    for bad, delta in ((u[0], u[0]), (u, u[0, :5]), (u[:0], u[0]), (u, u)):
        with pytest.raises(ValueError, match=r"are not \[K, D\]"):
            bsnr(bad, [0], delta)
        with pytest.raises(ValueError, match=r"are not \[K, D\]"):
            gram(bad, delta)
    for vectors, change, grams in ((u, None, None), (None, None, None), (u, u[0], gram(u, u[0])), (None, u[0], gram(u, u[0]))):
        with pytest.raises(ValueError, match="grams alone"):
            measure_bsnr(vectors, [0], change, permutations=1, draw=draw(), grams=grams)
    with pytest.raises(ValueError, match="permutations = -1"):
        measure_bsnr(u, [0], u[0], permutations=-1, draw=draw())
    local, before, after = adapters(3, [(4, 5), (6, 3)], 2, 0, 1.0)
    for arguments in (([],) * 3, (local, before[:1], after), (local, before[::-1], after), (local, before, [local[0], after[1]])):
        with pytest.raises(ValueError, match=r"modules|local shapes"):
            gram_delta_w(*arguments, 1.0)
    with pytest.raises(ValueError, match=r"are not \[K, r, in\]"):
        gram_delta_w([local[0], (local[1][0][:2], local[1][1][:2])], before, after, 1.0)
    with pytest.raises(ValueError, match=r"are not \[K, r, in\]"):
        gram_delta_w([(local[0][1], local[0][0])], before[:1], after[:1], 1.0)


def test_one_client_in_the_products() -> None:
    assert measure_bsnr(None, [0], None, permutations=3, draw=draw(), grams=(torch.ones(1, 1), torch.ones(1), 1.0)).value is None


@pytest.mark.parametrize(
    ("values", "peak", "height"),
    [
        ([0, 1, 5, 4, 3, 0, 0], 3, 4.0),
        ([0, 9, 0, 0, 4, 4, 4], 5, 4.0),  # one high round is no phase
        ([9, 1, 1, 0], 1, 11 / 3),
        ([1, None, 2, 6, float("nan"), 4, 0], 3, 4.0),
        ([2, 2, 2, 2], 1, 2.0),
        ([1, 3], 1, 3.0),
        ([None, 7, None], 1, 7.0),
        ([inf, 1, 2, 3], 2, 2.0),
        ([], None, None),
        ([None, float("nan")], None, None),
    ],
)
def test_phases(values: list[float | None], peak: int | None, height: float | None) -> None:
    found = phases(values)
    assert found == {"peak": peak, "peak_value": None if height is None else pytest.approx(height)}
