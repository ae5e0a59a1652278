from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.data.sample import Sample
from undertow.defenses.contract import ClientContext, Defense, NetSetting, ServerContext, Setting, make_defenses, overrides

D = 7


def context(counts: Sequence[int] = (1,)) -> ServerContext:
    return ServerContext(Layout.of({"x": (D,)}), counts, 1, torch.zeros(D), rng(0, "server", 1))


def updates(k: int, seed: int = 0) -> Tensor:
    return torch.randn(k, D, generator=torch.Generator().manual_seed(seed))


def test_a_defense_without_memory_has_no_state_and_takes_none() -> None:
    assert Defense().state() == {}
    Defense().restore({})
    with pytest.raises(UserError, match="Defense keeps no state, but the checkpoint holds sums; delete the run directory"):
        Defense().restore({"sums": torch.zeros(1)})


class _Nothing(Defense):
    pass


class _Server(Defense):
    def aggregate(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        return updates[0], {}


class _Child(_Server):
    pass


def test_a_defense_does_only_what_it_overrides() -> None:
    hooks = ("sanitize", "prepare", "aggregate", "guard")
    assert [overrides(_Nothing(), hook) for hook in hooks] == [False, False, False, False]
    assert [overrides(_Child(), hook) for hook in hooks] == [False, False, True, False]
    samples = [Sample("1", "q", ("a",), "a")]
    assert _Nothing().sanitize(samples, ClientContext(0, rng(0, "x"))) == ([True], {})
    u, given = updates(2), context([1, 1])
    assert _Nothing().prepare(u, given) == (u, given, {})
    assert _Nothing().rows(2) == 2
    assert not _Nothing().needs_trusted
    adapter = torch.ones(D)
    assert _Nothing().guard(adapter, context())[0] is adapter
    with pytest.raises(NotImplementedError):
        _Nothing().aggregate(updates(2), context())


def test_what_parties_see_holds_no_ground_truth() -> None:
    assert set(ClientContext.__dataclass_fields__) == {"client", "draw"}
    assert set(ServerContext.__dataclass_fields__) == {
        "layout",
        "counts",
        "round",
        "adapter",
        "draw",
        "clients",
        "trusted",
        "setting",
        "network",
    }
    # The poison in synthetic data is in them unmarked, and their labels are those that the server got.
    assert set(NetSetting.__dataclass_fields__) == {"seed", "rounds", "net", "training", "synthetic", "classes"}
    assert set(Setting.__dataclass_fields__) == {"seed", "rounds", "base", "template", "lora", "training"}


def test_wrong_names_parameters_and_two_rules_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'median'"):
        make_defenses([Options(name="mediann")])
    with pytest.raises(UserError, match=r"defense 'median' with {'k': 3}: .*see `undertow list defenses`"):
        make_defenses([Options(name="median", params={"k": 3})])
    with pytest.raises(UserError, match="median and median both replace FedAvg; keep one of them"):
        make_defenses([Options(name="median"), Options(name="median")])
    assert make_defenses([]) == []


def test_what_prepares_stands_before_the_rule() -> None:
    made = make_defenses([Options(name="nnm"), Options(name="bucketing", params={"s": 3}), Options(name="median")])
    assert [name for name, _ in made] == ["nnm", "bucketing", "median"]
    assert len(make_defenses([Options(name="bucketing")])) == 1, "FedAvg of buckets"
    with pytest.raises(
        UserError, match="defense 'bucketing' prepares the updates for 'median', which is listed before it; swap them"
    ):
        make_defenses([Options(name="median"), Options(name="bucketing")])


def test_what_a_run_cannot_give_is_refused_before_it_begins() -> None:
    with pytest.raises(UserError, match=r"'fltrust' needs an update from trusted data, .*params: {client: 0}}"):
        make_defenses([Options(name="fltrust")])
    assert make_defenses([Options(name="fltrust", params={"client": 3})])[0][0] == "fltrust"
    with pytest.raises(UserError, match=r"'median' with .*runs in the adapter space only; leave space out"):
        make_defenses([Options(name="median", params={"space": "delta_w"})])
