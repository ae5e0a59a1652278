from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from undertow.config import Defense as Options
from undertow.data.sample import Sample
from undertow.defenses.contract import DEFENSES, ClientContext, Defense, ServerContext, make_defenses, overrides
from undertow.defenses.median import Median
from undertow.errors import UserError
from undertow.layout import Layout
from undertow.rng import rng

D = 7


def context(counts: Sequence[int] = (1,)) -> ServerContext:
    return ServerContext(Layout.of({"x": (D,)}), counts, 1, torch.zeros(D), rng(0, "server", 1))


def updates(k: int, seed: int = 0) -> Tensor:
    return torch.randn(k, D, generator=torch.Generator().manual_seed(seed))


@given(k=st.integers(1, 9), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_median_is_numpys(k: int, seed: int) -> None:
    delta, report = Median().aggregate(updates(k, seed), context(range(1, k + 1)))
    np.testing.assert_allclose(delta.numpy(), np.median(updates(k, seed).numpy(), axis=0), rtol=1e-6, atol=1e-7)
    assert delta.dtype == torch.float32
    assert report == {}


def test_median_of_large_values_does_not_overflow() -> None:
    big = torch.full((2, D), 3e38)
    assert torch.equal(Median().aggregate(big, context())[0], big[0])


RULES = [entry.name for entry in DEFENSES.entries() if overrides(entry.make(), "aggregate")]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_pure_and_of_the_right_shape(name: str) -> None:
    rule = make_defenses([Options(name=name)])[0][1]
    for k in (1, 2, 5):
        given_, kept = updates(k), updates(k)
        delta, report = rule.aggregate(given_, context([3] * k))
        assert delta.shape == (D,)
        assert delta.dtype == torch.float32
        assert torch.isfinite(delta).all()
        assert isinstance(report, dict)
        assert torch.equal(given_, kept), "the updates are not changed"


@pytest.mark.parametrize("name", RULES)
def test_clients_that_all_say_the_same_are_believed(name: str) -> None:
    rule = make_defenses([Options(name=name)])[0][1]
    row = updates(1)
    torch.testing.assert_close(rule.aggregate(row.repeat(4, 1), context([1] * 4))[0], row[0])


class _Nothing(Defense):
    pass


class _Server(Defense):
    def aggregate(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        return updates[0], {}


class _Child(_Server):
    pass


def test_a_defense_does_only_what_it_overrides() -> None:
    hooks = ("sanitize", "aggregate", "guard")
    assert [overrides(_Nothing(), hook) for hook in hooks] == [False, False, False]
    assert [overrides(_Child(), hook) for hook in hooks] == [False, True, False]
    samples = [Sample("1", "q", ("a",), "a")]
    assert _Nothing().sanitize(samples, ClientContext(0, rng(0, "x"))) == ([True], {})
    adapter = torch.ones(D)
    assert _Nothing().guard(adapter, context())[0] is adapter
    with pytest.raises(NotImplementedError):
        _Nothing().aggregate(updates(2), context())


def test_what_parties_see_holds_no_ground_truth() -> None:
    assert set(ClientContext.__dataclass_fields__) == {"client", "draw"}
    assert set(ServerContext.__dataclass_fields__) == {"layout", "counts", "round", "adapter", "draw"}


def test_wrong_names_parameters_and_two_rules_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'median'"):
        make_defenses([Options(name="mediann")])
    with pytest.raises(UserError, match=r"defense 'median' with {'k': 3}: .*see `undertow list defenses`"):
        make_defenses([Options(name="median", params={"k": 3})])
    with pytest.raises(UserError, match="median and median both replace FedAvg; keep one of them"):
        make_defenses([Options(name="median"), Options(name="median")])
    assert make_defenses([]) == []
