from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import Flame


def federation(seed: int = 0) -> Any:
    """Seven clients around one direction, of lengths 1 to 7, and three around its opposite."""
    draw = rng(seed, "u")
    way = draw.standard_normal(40)
    u = way + 0.1 * draw.standard_normal((10, 40))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    u *= np.arange(1, 11)[:, None]
    u[7:] *= -1
    return u


@pytest.mark.parametrize("seed", range(4))
def test_the_majority_is_kept_clipped_and_noised(seed: int) -> None:
    u = federation(seed)
    delta, report = Flame(noise=0.01)(u, seed=3)
    kept = report["kept"]
    # Where the only cluster is the root, HDBSCAN labels its densest min_cluster_size = 6 points and no more.
    assert set(kept) < set(range(7))
    assert len(kept) == 6
    assert not report["fallback"]
    lengths = np.arange(1, 11)
    bound = np.median(lengths)  # of all, the dropped ones too
    wanted = sum(u[i] * min(1, bound / lengths[i]) for i in kept) / 6
    wanted = wanted + 0.01 * bound * rng(3, "server", 1).standard_normal(40)
    np.testing.assert_allclose(delta, wanted, rtol=1e-10, atol=1e-12)
    assert report["bound"] == pytest.approx(5.5)
    assert report["sigma"] == pytest.approx(0.055)


def test_two_halves_are_no_majority() -> None:
    u = federation()
    u[5:7] *= -1
    kept = Flame(noise=0)(u)[1]["kept"]
    assert kept not in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])


def test_one_client_is_refused() -> None:
    with pytest.raises(UserError, match="Flame clusters clients and needs at least 2, but there is 1"):
        Flame().check(1)
