"""Undertow's rules as Flower strategies: the same answers as without Flower, whatever arrives, in whatever order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[flower]'")

from flower_replies import Arrays, adapter, asked, moved, network, record, reply, values
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from memory_grid import MemoryGrid

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses.aggregation.bucketing import Bucketing
from undertow.defenses.aggregation.krum import Krum
from undertow.defenses.contexts import ServerContext
from undertow.defenses.server.base import ServerDefense
from undertow.federation.server import aggregate
from undertow.flower import UndertowStrategy, strategy

COUNTS = [10, 20, 5, 40, 15, 30, 8]


def trained(sent: Arrays, clients: int = 7, seed: int = 3) -> list[Arrays]:
    draw = np.random.default_rng(seed)
    return [moved(sent, draw) for _ in range(clients)]


def flat(arrays: Arrays) -> torch.Tensor:
    return torch.from_numpy(
        np.concatenate([value.astype(np.float32).ravel() for value in arrays.values() if value.dtype.kind == "f"])
    )


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())


@pytest.mark.parametrize(
    "rule", ["mean", "krum:f=2", "multi-krum:f=1", "median", "trimmed-mean:b=2", "weak-dp", "geometric-median"]
)
def test_a_round_is_that_of_aggregate_on_the_same_updates(rule: str) -> None:
    ours = strategy(rule, seed=5)
    sent = network(np.random.default_rng(0))
    locals_ = trained(sent)
    messages = asked(ours, sent, 7)
    new, _ = ours.aggregate_train(1, [reply(m, a, n) for m, a, n in zip(messages, locals_, COUNTS, strict=True)])
    assert new is not None
    start = flat(sent)
    updates = torch.stack([flat(one) - start for one in locals_])
    context = ServerContext(Layout.of({"w": (len(start),)}), COUNTS, 1, start, rng(5, "server", 1), range(7))
    delta, _ = aggregate(updates, strategy(rule).defenses, context)
    assert close(flat(values(new)), start + delta)
    assert list(new) == list(sent)
    assert [(array.dtype, array.shape) for array in new.values()] == [(str(v.dtype), v.shape) for v in sent.values()]


def test_the_mean_is_flowers_fedavg() -> None:
    sent = network(np.random.default_rng(0))
    locals_ = trained(sent)
    found = []
    for one in (strategy(), strategy("mean"), FedAvg()):
        messages = sorted(asked(one, sent, 7), key=lambda message: message.metadata.dst_node_id)
        new, _ = one.aggregate_train(1, [reply(m, a, n) for m, a, n in zip(messages, locals_, COUNTS, strict=True)])
        found.append(flat({name: value for name, value in values(new).items() if name != "bn.num_batches_tracked"}))
    assert close(found[0], found[2])
    assert close(found[1], found[2])


def test_counters_become_the_median_in_their_own_type() -> None:
    ours = strategy("median")
    sent = {
        "w": np.ones(3, np.float32),
        "seen": np.asarray([7, 7], np.int64),
        "on": np.asarray(True),
        "none": np.zeros((0, 2), np.float32),
    }
    messages = asked(ours, sent, 3)
    own = [{**sent, "seen": np.asarray([8, k * 10**6], np.int64), "on": np.asarray(k > 0)} for k in range(3)]
    new, _ = ours.aggregate_train(1, [reply(m, a) for m, a in zip(messages, own, strict=True)])
    got = values(new)
    assert got["seen"].tolist() == [8, 10**6]
    assert got["seen"].dtype == np.int64
    assert got["on"].dtype == bool
    assert got["on"]
    assert got["none"].shape == (0, 2)


def test_neither_the_order_of_replies_nor_of_nodes_nor_the_global_seed_changes_anything() -> None:
    results: list[Any] = []
    for order in (1, 2):
        random.seed(order)
        grid = MemoryGrid(noisy(), 9, shuffle=order)
        ours = UndertowStrategy("foolsgold", seed=4, fraction_train=0.6, fraction_evaluate=0.0)
        result = ours.start(grid, record(network(np.random.default_rng(0))), num_rounds=3)
        results.append((values(result.arrays), grid.asked, ours.nodes, ours.state_dict()))
    (first, asked_1, nodes_1, state_1), (second, asked_2, nodes_2, state_2) = results
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert asked_1 == asked_2
    assert nodes_1 == nodes_2
    assert all(torch.equal(state_1[name], state_2[name]) for name in state_1)
    assert len({tuple(nodes) for nodes in asked_1 if nodes}) > 1, "each round must choose anew"


def noisy() -> ClientApp:
    """A client whose training depends on who it is, the round and what it was sent."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        me, now = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
        return reply(message, moved(values(message.content["arrays"]), rng(0, "test", now, me)), 5 + me)

    return app


def unsound(sent: Arrays) -> dict[str, tuple[Any, str]]:
    """{case: (a reply's arrays, what the reason must say)}."""
    draw = np.random.default_rng(1)
    good = moved(sent, draw)
    w = good["conv.weight"]
    nan, huge = w.copy(), w.astype(np.float64)
    nan[0, 0, 0], huge[0, 0, 0] = np.nan, 1e200
    wrong = record(good)
    wrong["conv.weight"].data = wrong["conv.weight"].data[:-4]
    lying = record(good)  # a header that claims terabytes
    lying["conv.weight"].data = lying["conv.weight"].data.replace(b"(4, 3, 2)", b"(9**9,9,)")
    giant = record(good)
    giant["conv.weight"].data = giant["conv.weight"].data.replace(b"(4, 3, 2)", b"(999999,)")
    pickled = record(good)
    pickled["conv.weight"].stype = "pickle"
    return {
        "NaN": ({**good, "conv.weight": nan}, "NaN or infinity"),
        "shape": ({**good, "conv.weight": w.reshape(4, 6)}, "has shape [4, 6], the global model's [4, 3, 2]"),
        "missing": ({name: good[name] for name in list(good)[1:]}, "lacks 1 arrays, such as 'conv.weight'"),
        "extra": ({**good, "more": w}, "1 arrays too many, such as 'more'"),
        "renamed": ({("x" if name == "conv.bias" else name): value for name, value in good.items()}, "lacks 1 arrays"),
        "dtype": ({**good, "conv.weight": np.ones((4, 3, 2), np.int32)}, "holds int32, the global model's float32"),
        "complex": ({**good, "conv.weight": w.astype(np.complex64)}, "not numbers"),
        "text": ({**good, "conv.weight": np.full((4, 3, 2), "a")}, "not numbers"),
        "a float for a counter": ({**good, "bn.num_batches_tracked": np.asarray(7.0)}, "the global model's int64"),
        "oversized": ({**good, "conv.weight": np.zeros(10**6, np.float32)}, "bytes of arrays, at most"),
        "beyond float32": ({**good, "conv.weight": huge}, "beyond float32"),
        "cut off": (wrong, "bytes for [4, 3, 2]"),
        "a claimed size": (giant, "has shape [999999]"),
        "a header that is no shape": (lying, "not in numpy's format"),
        "pickle": (pickled, "'pickle', not a numpy.ndarray"),
    }


CASES = sorted(unsound(network(np.random.default_rng(0))))


@pytest.mark.parametrize("case", CASES)
def test_an_unsound_reply_is_dropped_named_and_counted(case: str, caplog: pytest.LogCaptureFixture) -> None:
    sent = network(np.random.default_rng(0))
    locals_ = trained(sent, 5)
    ours, without = strategy("median"), strategy("median")
    messages = asked(ours, sent, 5)
    good = [reply(m, a) for m, a in zip(messages, locals_, strict=True)]
    broken, reason = unsound(sent)[case]
    new, metrics = ours.aggregate_train(1, [*good[:2], reply(messages[2], broken), *good[3:]])
    node = messages[2].metadata.dst_node_id
    assert [drop.node for drop in ours.dropped] == [node]
    assert reason in ours.dropped[0].reason
    assert any(str(node) in line and reason in line for line in caplog.messages)
    assert metrics is not None
    assert (metrics["undertow/replies"], metrics["undertow/dropped"], metrics["undertow/skipped"]) == (4, 1, 0)
    asked(without, sent, 5)
    wanted, _ = without.aggregate_train(1, [*good[:2], *good[3:]])
    assert new is not None
    assert wanted is not None
    assert all(np.array_equal(a, b) for a, b in zip(values(new).values(), values(wanted).values(), strict=True))


def test_replies_that_are_wrong_as_messages_are_dropped() -> None:
    sent = network(np.random.default_rng(0))
    ours = strategy("median", max_examples=1000, max_norm=1.0)
    messages = asked(ours, sent, 9)
    fine = trained(sent, 9)
    stranger = Message(RecordDict(), dst_node_id=5, message_type="train")
    far = {**fine[7], "conv.bias": fine[7]["conv.bias"] + 1}
    twice = RecordDict({"a": record(fine[3]), "b": record(fine[3]), "metrics": MetricRecord({"num-examples": 1})})
    replies = [
        reply(messages[0], fine[0]),
        Message(Error(code=1, reason="out of memory"), reply_to=messages[1]),
        reply(messages[2], fine[2], 0),
        Message(twice, reply_to=messages[3]),
        reply(messages[4], fine[4], [1, 2]),
        reply(messages[5], fine[5], 10**9),
        reply(messages[6], fine[6]),
        reply(messages[6], fine[6]),
        reply(messages[7], far),
        Message(RecordDict({"arrays": record(fine[8])}), reply_to=messages[8]),
        reply(stranger, fine[0]),
    ]
    ours.aggregate_train(1, replies)
    told = {drop.node: drop.reason for drop in ours.dropped}
    wanted = [
        "'out of memory'",
        "not a number above 0",
        "2 array records",
        "not a number above 0",
        "claims 1e+09",
        "replied 2 times",
        "of length",
    ]
    for message, text in zip(messages[1:8], wanted, strict=True):
        assert text in told[message.metadata.dst_node_id]
    assert "0 metric records" in told[messages[8].metadata.dst_node_id]
    assert "not asked" in told[5]
    assert ours.nodes == [messages[0].metadata.dst_node_id]


def test_without_sound_replies_the_round_is_skipped_and_the_model_stays(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        now, me = int(message.content["config"]["server-round"]), int(context.node_config["partition-id"])
        factor = np.float32(np.nan if now == 2 else 1.5)
        own = {"w": values(message.content["arrays"])["w"] * factor}
        if now == 3 and me > 0:
            raise RuntimeError("no disk")
        return reply(message, own)

    seen: dict[int, float] = {}

    def measure(now: int, arrays: ArrayRecord) -> None:
        seen[now] = float(values(arrays)["w"][0])

    ours = strategy("krum:f=1", fraction_evaluate=0.0)
    result = ours.start(MemoryGrid(app, 5), record({"w": np.ones(2, np.float32)}), num_rounds=4, evaluate_fn=measure)
    assert seen == {0: 1.0, 1: 1.5, 2: 1.5, 3: 1.5, 4: 2.25}
    assert [result.train_metrics_clientapp[now]["undertow/skipped"] for now in (1, 2, 3, 4)] == [0, 1, 1, 0]
    told = [line for line in caplog.messages if "is skipped" in line]
    assert len(told) == 2
    assert "0 sound replies, at least 1" in told[0]
    assert "more than 2f + 2 = 4 clients, but there are 1" in told[1]


def test_replies_that_never_come_are_counted() -> None:
    grid = MemoryGrid(noisy(), 6, lost=lambda message: message.metadata.src_node_id % 2 == 0)
    ours = strategy("median", fraction_evaluate=0.0)
    result = ours.start(grid, record(network(np.random.default_rng(0))), num_rounds=1)
    lost = sum(node % 2 == 0 for node in grid.ids)
    assert lost
    assert result.train_metrics_clientapp[1]["undertow/without-reply"] == lost
    assert result.train_metrics_clientapp[1]["undertow/replies"] == 6 - lost


def test_a_node_that_died_is_named_though_flower_answers_in_its_place() -> None:
    sent = network(np.random.default_rng(0))
    ours = strategy("median")
    messages = asked(ours, sent, 3)
    for k, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"message {k}"  # as a grid does when it sends
    gone = Message(Error(code=5, reason="Node Unavailable"), reply_to=messages[1])
    gone.metadata.__dict__["_src_node_id"] = 1
    fine = trained(sent, 3)
    ours.aggregate_train(1, [reply(messages[0], fine[0]), gone, reply(messages[2], fine[2])])
    assert [(drop.node, drop.reason) for drop in ours.dropped] == [
        (messages[1].metadata.dst_node_id, "reports an error: 'Node Unavailable'")
    ]
    assert len(ours.nodes) == 2


def test_half_precision_stays_half_and_an_overflow_is_no_model() -> None:
    sent = {"w": np.asarray([1.0, 60000.0], np.float16), "d": np.asarray([1.0], np.float64)}
    ours = strategy("mean")
    messages = asked(ours, sent, 2)
    own = {"w": np.asarray([1.5, 60000.0], np.float16), "d": np.asarray([1.0 + 2.0**-40], np.float64)}
    new, _ = ours.aggregate_train(1, [reply(m, own) for m in messages])
    assert values(new)["w"].dtype == np.float16
    assert values(new)["w"].tolist() == [1.5, 60000.0]
    assert values(new)["d"].tolist() == [1.0 + 2.0**-40], "an update is taken before it is rounded to float32"
    far = {**own, "w": np.asarray([1.0, 90000.0], np.float32)}
    new, metrics = ours.aggregate_train(1, [reply(m, far) for m in messages])
    assert new is None
    assert metrics["undertow/skipped"] == 1


@pytest.mark.parametrize("ending", ["weight", "default.weight"])
def test_lora_pairs_are_found_by_pefts_names_and_compared_as_products(ending: str) -> None:
    draw = np.random.default_rng(2)
    sent = {name.replace(".weight", f".{ending}"): value for name, value in adapter(draw).items()}
    locals_ = []
    for k in range(6):
        one = moved(sent, np.random.default_rng(k), 0.02)
        # each client writes its factors in a basis of its own: the same products, far apart as vectors
        turn = np.linalg.qr(np.random.default_rng(50 + k).standard_normal((2, 2)))[0] * (3, 6, 1, 2, 4, 5)[k]
        for name in sent:
            if ".lora_A." in name:
                other = name.replace("lora_A", "lora_B")
                one[name], one[other] = (turn @ one[name]).astype(np.float32), (one[other] @ np.linalg.inv(turn)).astype(np.float32)
        locals_.append(one)
    chosen = {}
    for space in ("adapter", "delta_w"):
        ours = strategy(f"krum:f=1:space={space}", lora_scale=2.0)
        messages = asked(ours, sent, 6)
        new, metrics = ours.aggregate_train(1, [reply(m, a) for m, a in zip(messages, locals_, strict=True)])
        assert metrics["krum/f"] == 1
        chosen[space] = ours.reports[0]["chosen"][0]
        assert close(flat(values(new)), flat(locals_[chosen[space]]))
    # by hand: the products, as dense matrices
    pairs = [(name, name.replace("lora_A", "lora_B")) for name in sent if ".lora_A." in name]
    dense = np.stack([np.concatenate([(one[b] @ one[a]).ravel() for a, b in pairs]) for one in locals_]).astype(np.float64)
    squares = ((dense[:, None] - dense[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    scores = np.sort(squares, axis=1)[:, :3].sum(axis=1)
    assert chosen["delta_w"] == int(scores.argmin())
    assert ours.reports[0]["scores"] == pytest.approx((4.0 * scores).tolist(), rel=1e-3)
    assert chosen["adapter"] != chosen["delta_w"], "a case in which the space matters"


def test_a_model_without_pairs_is_refused_by_rules_on_products() -> None:
    with pytest.raises(UserError, match="needs a layout of lora_A"):
        asked(strategy("krum:space=delta_w"), network(np.random.default_rng(0)), 5)


@pytest.mark.parametrize("rule", ["foolsgold", "centered-clipping", "krum:f=1"])
def test_a_stopped_strategy_goes_on_as_if_it_had_not_been(rule: str, tmp_path: Path) -> None:
    def fresh() -> UndertowStrategy:
        return strategy(rule, seed=1, fraction_train=0.8, fraction_evaluate=0.0)

    start = record(network(np.random.default_rng(0)))
    whole = fresh().start(MemoryGrid(noisy(), 9), start, num_rounds=4)
    first = fresh()
    half = first.start(MemoryGrid(noisy(), 9), start, num_rounds=2)
    first.save(tmp_path / "state.safetensors")
    second = fresh()
    second.load(tmp_path / "state.safetensors")
    rest = second.start(MemoryGrid(noisy(), 9), half.arrays, num_rounds=2)
    assert all(np.array_equal(a, b) for a, b in zip(values(whole.arrays).values(), values(rest.arrays).values(), strict=True))


def test_a_state_of_other_defenses_is_refused(tmp_path: Path) -> None:
    first = strategy("foolsgold", fraction_evaluate=0.0)
    first.start(MemoryGrid(noisy(), 3), record(network(np.random.default_rng(0))), num_rounds=1)
    first.save(tmp_path / "state")
    with pytest.raises(UserError, match="a state of foolsgold, and this strategy is krum; give one of its own"):
        strategy("krum").load(tmp_path / "state")
    with pytest.raises(UserError, match=r"not one of krum \(.*; give one of its own") as caught:
        strategy("krum").load_state_dict(first.state_dict())
    assert "run directory" not in str(caught.value)
    for other in ("krum:f=1", ()):
        strategy(other).save(tmp_path / "other")
        with pytest.raises(UserError, match=r"a state of (krum|mean), and this strategy is foolsgold"):
            strategy("foolsgold").load(tmp_path / "other")
    strategy("krum:f=1").save(tmp_path / "other")
    strategy(Krum(f=1)).load(tmp_path / "other")
    (tmp_path / "state").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        first.load(tmp_path / "state")
    with pytest.raises(UserError, match="not one of this strategy"):
        first.load_state_dict({})


def test_a_list_and_objects_are_taken_as_names_are() -> None:
    assert [name for name, _ in strategy(["nnm:f=1", "median"]).defenses] == ["nnm", "median"]
    sent = network(np.random.default_rng(0))
    locals_ = trained(sent, 6)
    found = []
    for one in (
        strategy(["bucketing:s=2", "krum:f=0"]),
        strategy([Bucketing(s=2), Krum(f=0)]),
        strategy(Bucketing(s=2, then=Krum(f=0))),
    ):
        messages = asked(one, sent, 6)
        new, _ = one.aggregate_train(1, [reply(m, a) for m, a in zip(messages, locals_, strict=True)])
        found.append(values(new)["conv.weight"])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


class Half(ServerDefense):
    """A guard: the new model is halved."""

    def guard(self, adapter: torch.Tensor, context: ServerContext) -> tuple[torch.Tensor, dict[str, Any]]:
        return adapter / 2, {"halved": True}


def test_a_guard_has_the_last_word() -> None:
    sent = {"w": np.ones(4, np.float32)}
    ours = strategy(["median", Half()])
    messages = asked(ours, sent, 3)
    new, metrics = ours.aggregate_train(1, [reply(m, {"w": np.full(4, 3, np.float32)}) for m in messages])
    assert values(new)["w"].tolist() == [1.5] * 4
    assert metrics["Half/halved"] == 1


def test_fltrust_gets_what_the_server_trains() -> None:
    with pytest.raises(UserError, match="trusted"):
        strategy("fltrust")
    seen: list[int] = []

    def trusted(now: int, arrays: ArrayRecord) -> ArrayRecord:
        seen.append(now)
        return record({"w": values(arrays)["w"] + np.asarray([1, 0], np.float32)})

    ours = strategy("fltrust", trusted=trusted)
    messages = asked(ours, {"w": np.zeros(2, np.float32)}, 3)
    own = [np.asarray(row, np.float32) for row in ([2, 0], [0, 3], [-1, 0])]
    new, _ = ours.aggregate_train(1, [reply(m, {"w": row}) for m, row in zip(messages, own, strict=True)])
    # trust 1, 0 and max(-1, 0) = 0; the one that is left is scaled to the server's length
    assert values(new)["w"].tolist() == [1.0, 0.0]
    assert seen == [1]


@pytest.mark.parametrize(("bad", "told"), [(None, "a NoneType; return"), (np.nan, ".*NaN or infinity")])
def test_a_trusted_function_that_returns_no_model_is_told(bad: float | None, told: str) -> None:
    sent = network(np.random.default_rng(0))
    off = strategy(
        "fltrust", trusted=lambda number, arrays: None if bad is None else record({k: v + np.float32(bad) for k, v in sent.items()})
    )
    messages = asked(off, sent, 4)
    with pytest.raises(UserError, match=f"trusted returned {told}"):
        off.aggregate_train(1, [reply(m, a) for m, a in zip(messages, trained(sent, 4), strict=True)])


def test_numbers_of_numpy_are_taken() -> None:
    one = strategy("median", max_norm=np.float32(3), min_replies=np.int64(3))
    assert (one.min_replies, one.min_train_nodes, one.limits.norm) == (3, 3, 3.0)


def test_metrics_of_clients_are_averaged_and_an_odd_one_does_no_harm() -> None:
    sent = {"w": np.zeros(2, np.float32)}
    ours = strategy("mean")
    messages = asked(ours, sent, 3)
    replies = [reply(messages[0], sent, 30, loss=1.0, parts=[1.0, 2.0]), reply(messages[1], sent, 10, loss=3.0, parts=[3.0, 4.0])]
    _, metrics = ours.aggregate_train(1, replies)
    assert metrics["loss"] == pytest.approx(1.5)
    assert metrics["parts"] == pytest.approx([1.5, 2.5])
    odd = reply(messages[2], sent, 10, loss=2.0, parts=[1.0], own=4)
    new, metrics = ours.aggregate_train(1, [*replies, odd])
    assert new is not None
    assert metrics["loss"] == pytest.approx(1.6)
    assert "parts" not in metrics
    assert "own" not in metrics
    averaged = ours.aggregate_evaluate(1, [*replies, odd, Message(Error(code=1, reason="gone"), reply_to=messages[2])])
    assert averaged["loss"] == pytest.approx(1.6)
    assert ours.aggregate_evaluate(1, []) is None


def test_enough_nodes_for_the_rule_are_waited_for() -> None:
    assert strategy("krum:f=2").min_train_nodes == 7
    assert strategy("krum:f=2").min_available_nodes == 7
    assert strategy("median").min_train_nodes == 2
    assert strategy("median", min_replies=4).min_train_nodes == 4
    assert strategy("krum:f=1", min_train_nodes=8).min_available_nodes == 8
    with pytest.raises(UserError, match="needs 7 replies"):
        strategy("krum:f=2", min_train_nodes=5)


@pytest.mark.parametrize(
    ("defenses", "said"),
    [
        ("krumm", "did you mean 'krum'"),
        ("krum:g=1", "krum"),
        ("onion", "works on the clients' data"),
        ("bounded-loss", "works on the clients' data or on the model"),
        (["krum", "median"], "both replace FedAvg"),
        (["median", "nnm:f=1"], "swap them"),
        ([3], "is no defense"),
    ],
)
def test_what_is_no_rule_is_refused(defenses: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        strategy(defenses)


@pytest.mark.parametrize("options", [{"max_norm": 0}, {"min_replies": 0}, {"lora_scale": float("nan")}, {"max_bytes": -1}])
def test_limits_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="above 0"):
        strategy("median", **options)


def test_a_model_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(UserError, match="none of floating-point"):
        asked(strategy("median"), {"n": np.arange(3)}, 3)
    with pytest.raises(UserError, match="NaN or infinity"):
        asked(strategy("median"), {"w": np.asarray([np.inf], np.float32)}, 3)
    with pytest.raises(UserError, match="before configure_train"):
        strategy("median").aggregate_train(1, [])


def test_flowers_own_wrappers_take_it() -> None:
    start = record({"w": np.zeros(4, np.float32)})
    ours = strategy("median", fraction_evaluate=0.0, min_train_nodes=5)
    private = DifferentialPrivacyServerSideFixedClipping(ours, noise_multiplier=0.0, clipping_norm=1e-3, num_sampled_clients=5)
    result = private.start(MemoryGrid(noisy(), 5), start, num_rounds=1)
    assert result.train_metrics_clientapp[1]["undertow/replies"] == 5
    assert 0 < np.linalg.norm(values(result.arrays)["w"]) <= 1.001e-3


def test_no_training_is_no_training() -> None:
    ours = strategy("median", fraction_train=0.0, fraction_evaluate=0.0)
    grid = MemoryGrid(noisy(), 3)
    assert list(ours.configure_train(1, record({"w": np.ones(1, np.float32)}), ConfigRecord(), grid)) == []
    assert ours.aggregate_train(1, []) == (None, None)
