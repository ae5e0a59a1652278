from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses import FreqFed, Mean
from undertow.defenses.contexts import ServerContext

LAYOUT = Layout.of({"0.lora_A": (4, 6), "0.lora_B": (6, 4), "1.lora_A": (1, 8), "bias": (9,)})


def context(layout: Layout, k: int, adapter: Any = None) -> ServerContext:
    return ServerContext(layout, [1] * k, 1, torch.zeros(layout.size) if adapter is None else adapter, rng(0, "server"))


def basis(n: int) -> Any:
    """The orthonormal DCT-II as a matrix, from its definition."""
    i, x = np.mgrid[:n, :n]
    made = np.sqrt(2 / n) * np.cos(np.pi * (2 * x + 1) * i / (2 * n))
    made[0] /= np.sqrt(2)
    return made


@pytest.mark.parametrize("mask", ["triangle", "rectangle"])
def test_low_frequencies_are_those_of_the_definition(mask: str) -> None:
    u = rng(0, "u").standard_normal((5, LAYOUT.size))
    found = FreqFed(mask=mask).features(torch.from_numpy(u), context(LAYOUT, 5)).numpy()
    for k in range(5):
        expected: list[float] = []
        start = 0
        for m, n in ((4, 6), (6, 4), (1, 8), (1, 9)):
            matrix = u[k, start : start + m * n].reshape(m, n)
            start += m * n
            low = basis(m) @ matrix @ basis(n).T
            # a side of one cannot be halved: its one row stays
            expected += [
                float(low[i, j])
                for i in range(max(1, m // 2))
                for j in range(n // 2)
                if mask == "rectangle" or i + j <= (m + n) // 4
            ]
        np.testing.assert_allclose(found[k], expected, rtol=1e-12, atol=1e-13)


def test_which_coefficients_stay_by_hand() -> None:
    # 8 x 4: i < 4, j < 2, i + j <= 3: all but (3, 1), which makes seven; 4 x 4: four; a vector of 9: j < 4, j <= 2.
    for shape, count in (((8, 4), 7), ((4, 4), 4), ((9,), 3), ((2, 2), 1), ((1,), 1), ((8, 2, 2), 7)):
        layout = Layout.of({"x": shape})
        u = torch.from_numpy(rng(0, "u").standard_normal((2, layout.size)))
        assert FreqFed().features(u, context(layout, 2)).shape == (2, count), shape


def test_a_constant_matrix_has_one_coefficient() -> None:
    layout = Layout.of({"x": (4, 6)})
    features = FreqFed().features(torch.full((2, 24), 3.0), context(layout, 2)).numpy()
    np.testing.assert_allclose(features, [[3 * 24**0.5, 0, 0, 0, 0]] * 2, atol=1e-14)  # (0,0) (0,1) (0,2) (1,0) (1,1)


def groups(*sizes: int, spread: float | tuple[float, ...] = 0.05, seed: int = 0) -> Any:
    """Clients around far apart directions, one for each size."""
    draw = rng(seed, "groups")
    spreads = spread if isinstance(spread, tuple) else (spread,) * len(sizes)
    centres = draw.standard_normal((len(sizes), LAYOUT.size))
    return np.concatenate(
        [centre + s * draw.standard_normal((n, LAYOUT.size)) for n, s, centre in zip(sizes, spreads, centres, strict=True)]
    )


def test_the_largest_group_is_averaged_by_counts() -> None:
    u, counts = groups(6, 3), list(range(1, 11))
    u = np.concatenate([u, -u.sum(0, keepdims=True)])  # farther from either group than these from each other
    delta, report = FreqFed()(u, counts=counts, layout=LAYOUT)
    assert report["kept"] == [0, 1, 2, 3, 4, 5]
    assert report["labels"][9] == -1
    assert report["fallback"] is False
    np.testing.assert_allclose(delta, np.average(u[:6], axis=0, weights=counts[:6]), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(FreqFed(weighted=False)(u, counts=counts, layout=LAYOUT)[0], u[:6].mean(0), rtol=1e-12, atol=1e-14)


def test_four_clients_in_two_pairs_by_hand() -> None:
    # A vector of 8 keeps the coefficients 0, 1 and 2; here the clients are angles between the first two.
    vectors = basis(8).T  # the columns are the waves
    angles = [0.0, 0.02, 1.5, 1.51]
    u = np.array([np.cos(a) * vectors[:, 0] + np.sin(a) * vectors[:, 1] for a in angles])
    delta, report = FreqFed()(u)
    labels = report["labels"]
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert report["kept"] == [2, 3], "two pairs: the tighter one"
    np.testing.assert_allclose(delta, (u[2] + u[3]) / 2, rtol=1e-12, atol=1e-14)


def test_high_frequencies_are_not_looked_at() -> None:
    waves = basis(16).T
    u = np.array(
        [waves[:, 0] + 0.01 * i * waves[:, 1] for i in range(4)] + [-waves[:, 0] - 0.01 * i * waves[:, 1] for i in range(2)]
    )
    loud = u + np.array([100.0, -100.0] * 3)[:, None] * waves[:, 12]
    assert FreqFed()(loud)[1] == FreqFed()(u)[1]
    assert FreqFed()(u)[1]["kept"] == [0, 1, 2, 3]


def test_two_opposite_clients_are_no_cluster_and_all_is_kept() -> None:
    u = rng(0, "u").standard_normal((1, 8))
    delta, report = FreqFed()(np.concatenate([u, -u]))
    assert report == {"labels": [-1, -1], "kept": [0, 1], "fallback": True}
    assert not delta.any()


def test_outliers_are_a_cluster_only_on_demand() -> None:
    waves = basis(64).T
    pairs = [np.cos(a) * waves[:, 0] + np.sin(a) * waves[:, 1] for a in (0.0, 0.001, 0.3, 0.301)]
    # each leans to the pairs a little, more than to one another
    lone = [waves[:, 1 + i] + 0.1 * i * waves[:, 0] for i in range(1, 6)]
    report = FreqFed()(np.array(pairs + lone))[1]
    assert report["labels"][4:] == [-1] * 5
    assert report["kept"] in ([0, 1], [2, 3])
    assert FreqFed(noise_as_cluster=True)(np.array(pairs + lone))[1]["kept"] == [4, 5, 6, 7, 8]


def test_one_group_alone_is_a_cluster_only_on_demand() -> None:
    u = groups(8, 1, spread=0.3)
    one = FreqFed(min_cluster_size=5, allow_single_cluster=True)(u, layout=LAYOUT)[1]
    assert not one["fallback"]
    assert set(one["kept"]) <= set(range(8))
    none = FreqFed(min_cluster_size=5)(u, layout=LAYOUT)[1]
    assert none == {"labels": [-1] * 9, "kept": list(range(9)), "fallback": True}


def test_raw_weights_hide_the_updates_behind_what_all_share() -> None:
    u = groups(6, 4)
    shared = 1e3 * rng(9, "adapter").standard_normal(LAYOUT.size)
    found = FreqFed(of="weights").features(torch.from_numpy(u), context(LAYOUT, 10, torch.from_numpy(shared)))
    expected = FreqFed().features(torch.from_numpy(u + shared), context(LAYOUT, 10))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12)
    assert FreqFed(of="weights")(u, layout=LAYOUT, adapter=shared)[1]["kept"] is not None
    with pytest.raises(UserError, match="FreqFed as set looks at the global adapter; give adapter="):
        FreqFed(of="weights")(u, layout=LAYOUT)


def test_only_the_tensors_asked_for_are_looked_at() -> None:
    u = groups(6, 4)
    start = LAYOUT.slots[1].start
    u[:, :start] = rng(3, "noise").standard_normal((10, start)) * 100
    assert FreqFed(tensors="0.lora_B")(u, layout=LAYOUT)[1]["kept"] == list(range(6))
    assert FreqFed()(u, layout=LAYOUT)[1]["kept"] != list(range(6))
    with pytest.raises(UserError, match="tensors = lora_C finds none of that name; give a part of a name such as bias"):
        FreqFed(tensors="lora_C")(u, layout=LAYOUT)


def test_a_client_without_any_change_is_no_error() -> None:
    u = groups(6, 3)
    u[8] = 0
    delta, report = FreqFed()(u, layout=LAYOUT)
    assert report["kept"] == list(range(6))
    assert np.isfinite(delta).all()
    same = np.repeat(u[:1], 5, axis=0)
    np.testing.assert_allclose(FreqFed()(same, layout=LAYOUT)[0], Mean()(same)[0], rtol=1e-12)


def test_too_few_clients_for_the_clustering_are_refused() -> None:
    with pytest.raises(
        UserError, match="min_cluster_size = 4 and min_samples = 5 needs at least 6 clients, but there are 5; use more"
    ):
        FreqFed(min_cluster_size=4, min_samples=5)(groups(5), layout=LAYOUT)
    assert FreqFed(min_cluster_size=4, min_samples=5)(groups(6), layout=LAYOUT)[0].shape == (LAYOUT.size,)
