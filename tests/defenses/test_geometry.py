from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from undertow.core.rng import rng
from undertow.defenses.aggregation import geometry
from undertow.defenses.aggregation.geometry import cosine_distances, ranked, squared_distances, trimmed, weighted_mean

K, D = 9, 700


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng(seed, "geometry").standard_normal(shape))


def wild(*rows: int) -> Tensor:
    u = normal(K, D).float()
    u[list(rows), 5] = 1e30
    return u


def clusters() -> Tensor:
    u = 1e-5 * normal(K, D)
    u[::2] += 1.0
    return u


def duplicates() -> Tensor:
    u = 100 + normal(K, D).float()
    u[4] = u[1]
    u[7] = u[1]
    return u


HARD = {
    "plain": normal(K, D),
    "a millionth of the weights": (normal(1, D) + 1e-6 * normal(K, D, seed=1)).float(),
    "a millionth in float64": normal(1, D) + 1e-6 * normal(K, D, seed=1),
    "tiny": 1e-30 * normal(K, D).float(),
    "half": normal(K, D).half(),
    "bfloat": (3 + normal(K, D)).bfloat16(),
    "duplicates": duplicates(),
    "one wild row": wild(0),
    "the middle wild": wild(K // 2),
    "two wild anchors": wild(0, K - 1),
    "all wild": wild(*range(K)),
    "two tight clusters": clusters(),
    "zeros": torch.zeros(K, D),
}


def exact(u: Tensor) -> list[list[Fraction]]:
    """Squared distances in rational numbers."""
    rows = [[Fraction(x) for x in row] for row in u.double().tolist()]
    found = [[Fraction(0)] * len(rows) for _ in rows]
    for i, a in enumerate(rows):
        for j in range(i):
            found[i][j] = found[j][i] = sum(((x - y) ** 2 for x, y in zip(a, rows[j], strict=True)), Fraction(0))
    return found


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("direct", [True, False])
def test_distances_have_twelve_digits(case: str, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "BLOCK", 256 * K)  # three blocks, the last one short
    if not direct:
        monkeypatch.setattr(geometry, "DIRECT", 0)
    found, truth = squared_distances(HARD[case]), exact(HARD[case])
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    for i in range(K):
        for j in range(K):
            if truth[i][j] == 0:
                assert found[i, j] == 0
            else:
                assert abs(Fraction(float(found[i, j])) / truth[i][j] - 1) < Fraction(1, 10**12), (i, j)


def test_the_gram_matrix_alone_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases are hard: without the way back to differences they fail."""
    monkeypatch.setattr(geometry, "DIRECT", 0)
    monkeypatch.setattr(geometry, "CANCELS", -1.0)
    found, truth = squared_distances(HARD["two tight clusters"]), exact(HARD["two tight clusters"])
    errors = [abs(float(Fraction(float(found[i, j])) / truth[i][j] - 1)) for i in range(K) for j in range(i)]
    assert max(errors) > 1e-9


def test_cosine_distances_by_hand() -> None:
    v = torch.tensor([[1, 0], [0, 2], [-3, 0], [3, 3], [0, 0], [0, 0]], dtype=torch.float64)
    half = 1 - 0.5**0.5
    by_hand = [
        [0, 1, 2, half, 1, 1],
        [1, 0, 1, half, 1, 1],
        [2, 1, 0, 2 - half, 1, 1],
        [half, half, 2 - half, 0, 1, 1],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
    ]
    np.testing.assert_allclose(cosine_distances(v).numpy(), by_hand, rtol=0, atol=1e-15)


def test_cosine_distances_of_almost_parallel_vectors_keep_their_digits() -> None:
    angle = 1e-9  # 1 - cos of it is 5e-19, below what 1 - x can tell
    v = torch.tensor([[1, 0], [np.cos(angle), np.sin(angle)]], dtype=torch.float64)
    assert float(cosine_distances(v)[0, 1]) == pytest.approx(angle**2 / 2, rel=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 10])
@pytest.mark.parametrize("block", [1 << 18, 256])
def test_trimmed_means_are_scipys(k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "BLOCK", block)
    u = normal(k, D)
    for drop in range((k - 1) // 2 + 1):
        expected = scipy.stats.trim_mean(u.numpy(), (drop + 0.5) / k if drop else 0.0, axis=0)
        np.testing.assert_allclose(trimmed(u, drop).numpy(), expected, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(trimmed(u, (k - 1) // 2).numpy(), np.median(u.numpy(), axis=0), rtol=1e-14)
    again = torch.cat([u, u[[0, 0]]])
    assert torch.equal(trimmed(u, 1, again=[0, 0]), trimmed(again, 1))


def test_weighted_means_leave_out_weight_zero() -> None:
    u = normal(4, D)
    np.testing.assert_allclose(
        weighted_mean(u, [1, 0, 2, 5]).numpy(), np.average(u.numpy(), axis=0, weights=[1, 0, 2, 5]), rtol=1e-13, atol=1e-15
    )
    big = torch.full((3, 2), 3e38)
    assert weighted_mean(big, [1, 1, 1]).float().tolist() == big[0].tolist()


def test_equal_scores_are_ordered_by_index_or_by_content() -> None:
    u = torch.tensor([[5.0, 1.0], [5.0, 0.0], [9.0, 9.0], [5.0, 0.0], [-1.0, 7.0]])
    scores = torch.tensor([2.0, 2.0 * (1 + 1e-15), 1.0, 2.0, 2.0 * (1 + 1e-9)], dtype=torch.float64)
    assert ranked(scores, u, "index") == [2, 0, 1, 3, 4]
    assert ranked(scores, u, "content") == [2, 1, 3, 0, 4]
    assert ranked(torch.zeros(5, dtype=torch.float64), u, "content") == [4, 1, 3, 0, 2]
