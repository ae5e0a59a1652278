from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses import Flame, FLTrust, GeometricMedian, Krum, MultiKrum, NearestNeighborMixing, cross_term
from undertow.defenses.aggregation import geometry
from undertow.defenses.aggregation.space import gram, lengths_in, squares_in
from undertow.defenses.contexts import ServerContext

LAYOUT = Layout.of({"q.lora_A": (2, 5), "q.lora_B": (4, 2), "v.lora_A": (3, 2), "v.lora_B": (6, 3)}, scale=1.5)


def federation(k: int, seed: int = 0, size: float = 0.1) -> tuple[torch.Tensor, ServerContext]:
    draw = rng(seed, "lora")
    u, adapter = size * draw.standard_normal((k, LAYOUT.size)), draw.standard_normal(LAYOUT.size)
    return torch.from_numpy(u), ServerContext(LAYOUT, [i + 1 for i in range(k)], 1, torch.from_numpy(adapter), draw, range(k))


def dense(u: Any, adapter: Any) -> Any:
    """The changes s (B A - B0 A0) of all modules, written out and laid end to end: [K, 32]."""
    rows = []
    for row in u:
        parts = []
        for (_, a, b), (_, a_0, b_0) in zip(LAYOUT.pairs(adapter + row), LAYOUT.pairs(adapter), strict=True):
            parts.append(1.5 * (b.numpy() @ a.numpy() - b_0.numpy() @ a_0.numpy()).flatten())
        rows.append(np.concatenate(parts))
    return np.array(rows)


@pytest.mark.parametrize("direct", [geometry.DIRECT, 0], ids=["pairs", "gram"])
@given(k=st.integers(1, 7), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_it_is_the_geometry_of_the_dense_products(direct: int, k: int, seed: int) -> None:
    u, context = federation(k, seed)
    w = dense(u, context.adapter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "DIRECT", direct)
        squares = squares_in("delta_w", u, context)
    np.testing.assert_allclose(squares, ((w[:, None] - w[None]) ** 2).sum(axis=2), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(lengths_in("delta_w", u, context), np.linalg.norm(w, axis=1), rtol=1e-10)
    np.testing.assert_allclose(gram(u, context), w @ w.T, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(squares_in("adapter", u, context), ((u[:, None] - u[None]) ** 2).sum(axis=2), rtol=1e-10)


@pytest.mark.parametrize("direct", [geometry.DIRECT, 0], ids=["pairs", "gram"])
def test_copies_are_at_zero_and_near_ones_keep_their_digits(direct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "DIRECT", direct)
    u, context = federation(6)
    u[3] = u[0]
    u[4] = u[0] + 1e-9 * u[5]
    squares = squares_in("delta_w", u, context)
    assert squares[0, 3] == 0
    # to first order the difference is that of the derivative, here by central differences of the dense products
    step = dense(torch.stack([u[0] + 1e-4 * u[5], u[0] - 1e-4 * u[5]]), context.adapter)
    slope = np.linalg.norm(step[0] - step[1]) / 2e-4
    assert float(squares[0, 4]) ** 0.5 == pytest.approx(1e-9 * slope, rel=1e-6)


def test_adapters_that_act_alike_are_the_same_there_and_apart_as_sent() -> None:
    u, context = federation(5)
    turned = {}
    for module, a, b in LAYOUT.pairs(context.adapter + u[2]):
        g = torch.from_numpy(rng(1, module).standard_normal((a.shape[0], a.shape[0])))
        turned |= {f"{module}.lora_A": g @ a, f"{module}.lora_B": b @ torch.linalg.inv(g)}
    u[4] = torch.cat([turned[slot.name].flatten() for slot in LAYOUT.slots]) - context.adapter
    assert float(squares_in("delta_w", u, context)[2, 4]) == pytest.approx(0, abs=1e-20)
    assert float(squares_in("adapter", u, context)[2, 4]) > 1
    scores = Krum(f=0, space="delta_w")(u, layout=LAYOUT, adapter=context.adapter)[1]["scores"]
    assert scores[2] == pytest.approx(scores[4])


def _call(rule: Any, u: torch.Tensor, context: ServerContext, **given: Any) -> Any:
    return rule(u, layout=LAYOUT, adapter=context.adapter, counts=context.counts, **given)


@given(k=st.integers(5, 9), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_rules_choose_by_the_products_and_average_the_factors(k: int, seed: int) -> None:
    u, context = federation(k, seed, size=1.0)
    w = dense(u, context.adapter)
    assert _call(Krum(f=1, space="delta_w"), u, context)[1]["chosen"] == Krum(f=1)(w)[1]["chosen"]
    delta, report = _call(MultiKrum(f=1, space="delta_w"), u, context)
    assert report["chosen"] == MultiKrum(f=1)(w)[1]["chosen"]
    np.testing.assert_allclose(delta, u[report["chosen"]].mean(0), rtol=1e-10, atol=1e-12)
    delta, report = _call(GeometricMedian(iterations=4, space="delta_w"), u, context)
    wanted = GeometricMedian(iterations=4)(w, counts=context.counts)[1]["weights"]
    np.testing.assert_allclose(report["weights"], wanted, rtol=1e-8)
    np.testing.assert_allclose(delta, np.array(wanted) @ u.numpy(), rtol=1e-8, atol=1e-10)
    near = _call(NearestNeighborMixing(f=2, space="delta_w"), u, context)[1]["prepared"][0]["neighbors"]
    assert near == NearestNeighborMixing(f=2)(w)[1]["prepared"][0]["neighbors"]
    assert _call(Flame(noise=0, space="delta_w"), u, context)[1]["kept"] == Flame(noise=0)(w)[1]["kept"]


@given(k=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_trust_by_the_products(k: int, seed: int) -> None:
    u, context = federation(k + 1, seed, size=1.0)
    w = dense(u, context.adapter)
    delta, report = FLTrust(space="delta_w")(u[:k], layout=LAYOUT, adapter=context.adapter, trusted=u[k])
    np.testing.assert_allclose(report["trust"], FLTrust()(w[:k], trusted=w[k])[1]["trust"], atol=1e-10)
    trust, far = np.array(report["trust"]), np.linalg.norm(w, axis=1)
    if trust.sum() > 0:
        np.testing.assert_allclose(delta, (trust * far[k] / far[:k] / trust.sum()) @ u[:k].numpy(), rtol=1e-8, atol=1e-10)


@given(k=st.integers(1, 7), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_cross_term_is_that_of_the_dense_products(k: int, seed: int) -> None:
    u, context = federation(k, seed, size=0.5)
    share = np.array(context.counts) / sum(context.counts)
    error, whole = 0.0, 0.0
    for _, a, b in LAYOUT.pairs(context.adapter + u):
        a, b = a.numpy(), b.numpy()
        mean = sum(p * y @ x for p, x, y in zip(share, a, b, strict=True))
        error += ((mean - np.tensordot(share, b, 1) @ np.tensordot(share, a, 1)) ** 2).sum()
        whole += (mean**2).sum()
    assert cross_term(u, context) == pytest.approx((error / whole) ** 0.5, rel=1e-9, abs=1e-13)


def test_where_factors_can_be_averaged_the_cross_term_is_zero() -> None:
    u, context = federation(1)
    assert cross_term(u, context) == 0, "one client"
    u, context = federation(4)
    for slot in LAYOUT.slots:
        if slot.name.endswith("lora_A"):
            u[:, slot.start : slot.start + slot.size] = u[0, slot.start : slot.start + slot.size]
    assert cross_term(u, context) == pytest.approx(0, abs=1e-15), "all clients send the same A"
    nothing = ServerContext(LAYOUT, [1, 1], 1, torch.zeros(LAYOUT.size), rng(0, "x"))
    assert cross_term(torch.zeros(2, LAYOUT.size), nothing) is None


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": (16,)},
        {"q.lora_A": (2, 8)},
        {"q.lora_A": (2, 4), "q.lora_B": (2, 4)},
        {"q.lora_A": (2, 4), "q.lora_B": (3, 2), "q.bias": (2,)},
    ],
)
def test_what_is_no_lora_is_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    layout = Layout.of(shapes)
    u = np.ones((5, layout.size))
    for rule in (Krum(space="delta_w"), Flame(space="delta_w"), NearestNeighborMixing(space="delta_w")):
        with pytest.raises(
            UserError, match=rf"^{type(rule).__name__} in the space delta_w needs a layout of lora_A .*use space = adapter"
        ):
            rule(u, layout=layout, adapter=np.ones(layout.size))
        with pytest.raises(UserError, match="looks at the global adapter"):
            rule(u, layout=layout)
    with pytest.raises(UserError, match="the cross term in the space delta_w needs a layout"):
        cross_term(torch.from_numpy(u), ServerContext(layout, [1] * 5, 1, torch.ones(layout.size), rng(0, "x")))
