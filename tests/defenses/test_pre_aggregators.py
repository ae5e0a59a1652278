from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses import Bucketing, FoolsGold, Krum, Mean, Median, NearestNeighborMixing, PreAggregator
from undertow.defenses.composition import aggregate, check_defenses, restore_states, save_states
from undertow.defenses.contexts import ServerContext
from undertow.defenses.making import make_defenses
from undertow.federation.server import fedavg

D = 6


def context(k: int, round: int = 1) -> ServerContext:
    return ServerContext(
        Layout.of({"x": (D,)}), [i + 1 for i in range(k)], round, torch.zeros(D), rng(0, "server", round), range(k)
    )


def updates(k: int, seed: int = 0) -> Any:
    return rng(seed, "u").standard_normal((k, D))


@given(k=st.integers(1, 10), f=st.integers(0, 4), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_mixing_is_its_definition(k: int, f: int, seed: int) -> None:
    f = min(f, (k - 1) // 2)
    u = updates(k, seed)
    wanted = np.array([u[np.argsort(((u - row) ** 2).sum(axis=1))[: k - f]].mean(axis=0) for row in u])
    rows, same, report = NearestNeighborMixing(f=f).prepare(torch.from_numpy(u), given := context(k))
    np.testing.assert_allclose(rows.numpy(), wanted, rtol=1e-10, atol=1e-12)
    assert same is given
    assert all(i in near and len(near) == k - f for i, near in enumerate(report["neighbors"]))


def test_mixing_by_hand() -> None:
    # of 0, 1, 5, 6 each takes the two nearest beside itself: 0 1 5, 0 1 5, 1 5 6, 1 5 6
    rows, _, report = NearestNeighborMixing(f=1).prepare(torch.tensor([[0.0], [1], [5], [6]]), _one(4))
    np.testing.assert_allclose(rows.flatten(), [2, 2, 4, 4], rtol=1e-6)
    assert report == {"f": 1, "neighbors": [[0, 1, 2], [0, 1, 2], [1, 2, 3], [1, 2, 3]]}
    with pytest.raises(UserError, match=r"f = 2 needs more than 2f = 4 clients, but there are 4; give f from 0 to 1"):
        NearestNeighborMixing(f=2).check(4)


def _one(k: int) -> ServerContext:
    return ServerContext(Layout.of({"x": (1,)}), [1] * k, 1, torch.zeros(1), rng(0, "server", 1))


@given(k=st.integers(1, 10), s=st.integers(1, 11), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_bucketing_is_its_definition(k: int, s: int, seed: int) -> None:
    u = updates(k, seed)
    order = rng(0, "server", 1).permutation(k)
    rows, after, report = Bucketing(s=s).prepare(torch.from_numpy(u), context(k))
    cut = [order[i : i + s] for i in range(0, k, s)]
    np.testing.assert_allclose(rows.numpy(), [u[bucket].mean(axis=0) for bucket in cut], rtol=1e-10, atol=1e-12)
    assert list(after.counts) == [sum(i + 1 for i in bucket) for bucket in cut]
    assert after.clients is None
    assert sorted(i for bucket in report["buckets"] for i in bucket) == list(range(k))
    assert Bucketing(s=s).rows(k) == len(rows)


def test_the_order_is_drawn_anew_in_each_round() -> None:
    u = updates(8)
    orders = {str(Bucketing(then=Median())(u, round=t)[1]["prepared"]) for t in range(1, 6)}
    assert len(orders) == 5


def test_preparations_work_in_the_order_they_are_written() -> None:
    u = torch.from_numpy(updates(9))
    mixed = NearestNeighborMixing(f=1, then=Bucketing(s=2, then=Krum(f=1)))
    bucketed = Bucketing(s=2, then=NearestNeighborMixing(f=1, then=Krum(f=1)))
    assert not torch.equal(mixed(u)[0], bucketed(u)[0])
    assert [part["name"] for part in mixed(u)[1]["prepared"]] == ["NearestNeighborMixing", "Bucketing"]
    rows, after, _ = NearestNeighborMixing(f=1).prepare(u, context(9))
    rows, after, _ = Bucketing(s=2).prepare(rows, after)
    assert torch.equal(mixed(u)[0], Krum(f=1)(rows)[0])


@pytest.mark.parametrize("names", [["nnm", "bucketing", "krum"], ["bucketing", "median"], ["nnm"], ["bucketing"], ["median"], []])
def test_a_list_in_a_config_is_the_nested_call(names: list[str]) -> None:
    u = torch.from_numpy(updates(9))
    defenses = make_defenses([Options(name=name) for name in names])
    delta, reports = aggregate(u, defenses, context(9), fedavg)
    assert [report["name"] for report in reports] == names
    rule: Any = {"krum": Krum(), "median": Median()}.get(names[-1] if names else "", Mean())
    for name in reversed(names):
        if name in ("nnm", "bucketing"):
            rule = {"nnm": NearestNeighborMixing, "bucketing": Bucketing}[name](then=rule)
    called, report = rule(u, counts=[i + 1 for i in range(9)], round=1, seed=0)
    torch.testing.assert_close(delta, called, rtol=1e-12, atol=1e-14)
    told = [{key: value for key, value in part.items() if key != "name"} for part in report.pop("prepared", [])]
    assert [{key: value for key, value in part.items() if key != "name"} for part in reports] == [
        *told,
        *([report] if names and names[-1] in ("krum", "median") else []),
    ]


def test_a_run_counts_the_rows_that_are_left_for_the_rule() -> None:
    layout = Layout.of({"x": (D,)})
    defenses = make_defenses([Options(name="bucketing", params={"s": 3}), Options(name="krum", params={"f": 1})])
    check_defenses(defenses, 13, layout)
    with pytest.raises(UserError, match=r"^defense krum: Krum with f = 1 needs more than 2f \+ 2 = 4 clients, but there are 4"):
        check_defenses(defenses, 12, layout)
    with pytest.raises(UserError, match=r"^defense krum: Krum in the space delta_w needs a layout of lora_A"):
        check_defenses(make_defenses([Options(name="krum", params={"space": "delta_w"})]), 9, layout)


def test_states_are_kept_apart_by_place_and_name() -> None:
    names = [Options(name="nnm"), Options(name="foolsgold")]
    first, second = make_defenses(names), make_defenses(names)
    for t in (1, 2):
        aggregate(torch.from_numpy(updates(6, t)), first, context(6, t), fedavg)
    states = save_states(first)
    assert set(states) == {"1/foolsgold/clients", "1/foolsgold/sums"}
    restore_states(second, states)
    again = [aggregate(torch.from_numpy(updates(6, 3)), made, context(6, 3), fedavg)[0] for made in (first, second)]
    assert torch.equal(*again)
    restore_states(second, {})
    assert save_states(second) == {}
    with pytest.raises(UserError, match="holds the state 1/foolsgold/clients of a defense that is not in this run"):
        restore_states(make_defenses([Options(name="nnm")]), states)


def test_a_nested_rule_keeps_its_memory() -> None:
    rule = NearestNeighborMixing(f=0, then=FoolsGold())
    first, second = (rule(updates(5, t), round=t)[0] for t in (1, 2))
    assert rule.chain().state()["sums"].shape == (5, D)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()


def test_what_is_no_rule_cannot_come_next() -> None:
    with pytest.raises(ValueError, match=r"then = 'krum' must be an aggregator such as Krum\(\)"):
        Bucketing(then="krum")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"abstract method .?mix"):
        PreAggregator()  # type: ignore[abstract]
