from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from undertow.config import Defense as Options
from undertow.core.errors import RenamedWarning, UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.data.sample import Sample
from undertow.defenses import Aggregator, LossDefense, Median, PreAggregator, ServerDefense, composition
from undertow.defenses.base import Defense as Root
from undertow.defenses.contexts import ClientContext, NetSetting, ServerContext, Setting, TrainingContext
from undertow.defenses.contract import Defense as Former
from undertow.defenses.data.exchange import alone, sanitizing
from undertow.defenses.kinds import HOOKS, KINDS, check_hooks
from undertow.defenses.making import make_defenses
from undertow.defenses.registry import DEFENSES
from undertow.federation.server import guard
from undertow.listing import list_methods

D = 7


def context(counts: Sequence[int] = (1,)) -> ServerContext:
    return ServerContext(Layout.of({"x": (D,)}), counts, 1, torch.zeros(D), rng(0, "server", 1))


def updates(k: int, seed: int = 0) -> Tensor:
    return torch.randn(k, D, generator=torch.Generator().manual_seed(seed))


def test_a_defense_without_memory_takes_no_state() -> None:
    assert composition.save_states([("median", Median())]) == {}
    composition.restore_states([("median", Median())], {})
    with pytest.raises(UserError, match="Median keeps no state, but the checkpoint holds sums; delete the run directory"):
        composition.restore_states([("median", Median())], {"0/median/sums": torch.zeros(1)})


#: Every registered defense, and the kind it is of.
REGISTERED = {
    "aggregator": "alignins bulyan centered-clipping deepsight dnc flame fltrust foolsgold foundationfl freqfed geometric-median "
    "krum mean median multi-krum robust-lr signguard trimmed-mean weak-dp",
    "pre-aggregator": "anomaly bucketing nnm",
    "data": "bki coherent-clusters cube graceful onion perplexity protegofed sanitization z-defense",
    "loss": "abl bounded-loss dece gated-loss",
    "server": "crow fine-pruning interpolation",
    "decoding": "cleangen",
    "server and decoding": "activation-bounds",
    "combination": "undertow",
}
ROOMS = {"aggregator": "aggregation", "pre-aggregator": "aggregation"}
ALL = [(name, kind) for kind, names in REGISTERED.items() for name in names.split()]


def test_the_list_shows_every_defense_with_its_kind() -> None:
    listed = {method.name: method.summary.partition(":")[0] for method in list_methods("defenses")}
    assert listed == dict(ALL)


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_a_defense_lies_in_the_room_of_its_kind_and_derives_from_its_base(name: str, kind: str) -> None:
    make = DEFENSES.get(name)
    if kind == "combination":
        assert [made.name for made in make()] == ["sanitization"]
        return
    assert isinstance(make, type)
    assert issubclass(make, Root)
    kinds = kind.split(" and ")
    assert make.kinds() == kinds
    room = ROOMS.get(kinds[0], kinds[0])
    assert make.__module__.split(".")[:3] == ["undertow", "defenses", room]
    make.check_class()
    check_hooks(make)
    assert [own for own, base in KINDS.items() if issubclass(make, base)] == kinds
    assert all(any(hasattr(make, hook) for hook in HOOKS[own]) for own in kinds)


def test_former_names_make_the_defense_of_today() -> None:
    with pytest.warns(RenamedWarning, match="defense 'sanitation' is now 'sanitization'"):
        ((name, made),) = make_defenses([Options(name="sanitation")])
    assert name == "sanitization"
    assert type(made).__name__ == "Sanitization"


def test_random_draws_keep_the_name_of_before_the_rename() -> None:
    seen: list[str] = []

    def draw(purpose: str, exchange: int, client: int) -> np.random.Generator:
        seen.append(purpose)
        return rng(0, purpose, exchange, client)

    def context(purpose: str, client: int, exchange: Any) -> Any:
        seen.append(f"sanitize {purpose}")
        return TrainingContext(client, rng(0, purpose), 0, None, None, None, None, exchange=exchange)  # type: ignore[arg-type]

    samples = [[Sample(str(i), f"q {i}", ("a",), f"a {i}") for i in range(20)] for _ in range(2)]
    alone(sanitizing(samples, make_defenses([Options(name="sanitization")]), draw, context))
    assert set(seen) == {"secret of the clients for sanitation", "share sanitation", "sanitize sanitation"}


class _Nothing(Root):
    pass


class _NoCombine(Aggregator):
    pass


class _NoHook(LossDefense):
    pass


class _Strays(Aggregator):
    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        return updates[0], {}

    def guard(self, adapter: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        return adapter, {}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Nothing, "_Nothing is of no kind of defense; derive it from the base class of one, such as undertow.defenses.Aggregator"),
        (_NoCombine, r"_NoCombine does not write combine, which its kind \(aggregator\) needs"),
        (_NoHook, "_NoHook writes none of select, token_loss, weigh; write at least one"),
        (int, "int is no defense; derive it from the base class of a kind, such as undertow.defenses.Aggregator"),
    ],
)
def test_a_wrong_declaration_is_refused_where_it_is_registered(kind: type, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DEFENSES.register("wrong", source="a test")(kind)
    assert "wrong" not in {entry.name for entry in DEFENSES.entries()}


def test_a_method_that_nobody_would_call_is_refused() -> None:
    with pytest.raises(
        UserError, match="_Strays is of the kind aggregator, whose guard nobody calls: it belongs to the kind server"
    ):
        check_hooks(_Strays)
    with pytest.raises(UserError, match=r"^defense '.*:_Strays': _Strays is of the kind aggregator, whose guard nobody calls"):
        make_defenses([Options(name=f"{__file__}:_Strays")])


# --- what a user's class returns ------------------------------------------------------------------------------


class _Answers(Aggregator):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def combine(self, updates: Tensor, context: ServerContext) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(D), r"an array of shape \[7\] and dtype torch.float32; return \(delta, report\): a tensor \[D\] and a dict"),
        ((torch.zeros(D),), r"a tuple; return \(delta, report\)"),
        ((torch.zeros(D), None), r"a tuple; return \(delta, report\)"),
        ((np.zeros(D), {}), r"an array of shape \[7\] and dtype float64; return .* a floating-point torch tensor of shape \[7\]"),
        ((torch.zeros(D + 1), {}), r"an array of shape \[8\] and dtype torch.float32; return .* of shape \[7\]"),
        ((torch.zeros(D, dtype=torch.int64), {}), r"an array of shape \[7\] and dtype torch.int64; return .* floating-point"),
        ((None, {}), r"a NoneType; return"),
        ((torch.full((D,), torch.nan), {}), "NaN or infinity for finite updates; return finite values"),
    ],
)
def test_an_answer_that_is_none_is_told_in_one_line_with_class_and_file(answer: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^_Answers \(test_contract.py\).combine returned {message}") as caught:
        _Answers(answer)(updates(3))
    assert "\n" not in str(caught.value)


class _Mixes(PreAggregator):
    def mix(self, updates: Tensor, context: ServerContext) -> Any:
        return updates[:, :2], context, {}


class _Guards(ServerDefense):
    def guard(self, adapter: Tensor, context: ServerContext) -> Any:
        return adapter[:2], {}


def test_so_are_a_pre_aggregators_and_a_guards() -> None:
    with pytest.raises(UserError, match=r"_Mixes \(test_contract.py\).mix returned an array of shape \[3, 2\] .*D = 7"):
        _Mixes()(updates(3))
    with pytest.raises(UserError, match=r"_Guards \(test_contract.py\).guard returned an array of shape \[2\] .*of shape \[7\]"):
        guard(torch.zeros(D), [("guards", _Guards())], context(), [])


# --- the former base class ------------------------------------------------------------------------------------


def test_a_class_of_the_former_base_is_of_the_kinds_whose_hooks_it_writes() -> None:
    with pytest.warns(RenamedWarning, match="undertow.defenses.contract.Defense is now one base class a kind"):

        class Both(Former):
            def __init__(self, factor: float = 2.0) -> None:
                self.factor = factor

            def aggregate(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
                return self.factor * updates[0], {}

            def guard(self, adapter: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
                return adapter + 1, {}

            def state(self) -> dict[str, Tensor]:
                return {"factor": torch.tensor(self.factor)}

            def restore(self, state: Any) -> None:
                self.factor = float(state["factor"])

    made: Any = Both(factor=3.0)
    assert isinstance(made, Both)
    assert made.kinds() == ["aggregator", "server"]
    u = updates(2)
    assert torch.equal(made(u)[0], 3 * u[0])
    assert guard(torch.zeros(D), [("both", made)], context(), [])[0].tolist() == [1.0] * D
    other: Any = Both()
    composition.restore_states([("both", other)], composition.save_states([("both", made)]))
    assert other.factor == 3.0


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
