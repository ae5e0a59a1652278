from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses import DnC


def by_the_paper(u: Any, f: int, c: float, fraction: float, iterations: int, draw: np.random.Generator) -> tuple[Any, list[int]]:
    good = set(range(len(u)))
    for _ in range(iterations):
        columns = draw.choice(u.shape[1], size=max(1, int(fraction * u.shape[1])), replace=False)
        x = u[:, columns] - u[:, columns].mean(axis=0)
        v = np.linalg.svd(x)[2][0]
        good &= set(np.argsort((x @ v) ** 2)[: len(u) - int(c * f)].tolist())
    kept = sorted(good)
    return (u[kept].mean(axis=0) if kept else np.zeros(u.shape[1])), kept


@given(k=st.integers(3, 10), f=st.integers(0, 2), c=st.sampled_from([0.5, 1.0, 1.4]), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_it_is_its_definition(k: int, f: int, c: float, seed: int) -> None:
    u = rng(seed, "u").standard_normal((k, 30))
    wanted, kept = by_the_paper(u, f, c, 0.4, 3, rng(seed, "server", 2))
    delta, report = DnC(f=f, c=c, fraction=0.4, iterations=3)(u, seed=seed, round=2)
    assert report["kept"] == kept
    np.testing.assert_allclose(delta, wanted, rtol=1e-10, atol=1e-12)


def test_those_that_stand_out_together_are_dropped() -> None:
    u = rng(0, "u").standard_normal((10, 200))
    u[[2, 5, 7]] += 3 * rng(1, "u").standard_normal(200)
    delta, report = DnC()(u)
    assert report == {"kept": [0, 1, 3, 4, 6, 8, 9], "dropped": 3}
    np.testing.assert_allclose(delta, u[report["kept"]].mean(axis=0), rtol=1e-12)


def test_where_no_client_is_always_good_the_model_stays() -> None:
    u = rng(0, "u").standard_normal((4, 40))
    delta, report = DnC(f=3, fraction=0.1, iterations=20)(u)
    assert report["kept"] == []
    assert not delta.any()


def test_dropping_all_is_refused() -> None:
    with pytest.raises(UserError, match=r"f = 3 and c = 1.5 drops 4 of 4 clients; give a smaller f"):
        DnC(f=3, c=1.5).check(4)
