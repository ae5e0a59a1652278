"""Diagnostics around any strategy: the right numbers, and nothing of the strategy changed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[flower]'")

from flower_replies import Arrays, adapter, asked, moved, network, record, reply, values
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian
from memory_grid import MemoryGrid

from bsnr_by_the_book import by_the_book
from undertow.core.errors import RenamedWarning, UserError
from undertow.flower import strategy, with_diagnostics


def flat(arrays: Arrays) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([value.ravel() for value in arrays.values() if value.dtype.kind == "f"])).float()


def pushed(sent: Arrays, clients: int, poisoned: set[int]) -> list[Arrays]:
    """Clients after training; the poisoned ones share a direction."""
    draw = np.random.default_rng(4)
    own = [moved(sent, draw) for _ in range(clients)]
    for k in poisoned:
        name = next(iter(own[k]))
        own[k][name] = own[k][name] + np.float32(0.02)
    return own


@pytest.mark.parametrize("inner", [FedAvg, FedMedian, lambda: strategy("krum:f=1")])
def test_the_line_holds_the_bsnr_of_the_matrix(inner: Any, tmp_path: Path) -> None:
    sent = network(np.random.default_rng(0))
    own = pushed(sent, 6, {0, 3})
    measured = with_diagnostics(inner(), [0, 3], tmp_path / "d.jsonl")
    messages = sorted(asked(measured, sent, 6), key=lambda message: message.metadata.dst_node_id)
    replies = [reply(m, a, 10 + k) for k, (m, a) in enumerate(zip(messages, own, strict=True))]
    new, _ = measured.aggregate_train(1, replies[::-1])
    line = json.loads((tmp_path / "d.jsonl").read_text(encoding="utf-8"))
    updates = torch.stack([flat(one) - flat(sent) for one in own])
    delta = flat({name: value for name, value in values(new).items() if name != "bn.num_batches_tracked"}) - flat(sent)
    assert line["nodes"] == [message.metadata.dst_node_id for message in messages]
    assert line["poisoned"] == [True, False, False, True, False, False]
    assert line["counts"] == [10, 11, 12, 13, 14, 15]
    written_out = by_the_book(updates.double().numpy(), [0, 3], delta.double().numpy())
    assert line["bsnr"]["adapter"]["value"] == pytest.approx(written_out, rel=1e-4)
    assert line["bsnr"]["adapter"]["permutations"] == 14
    assert line["norms"] == pytest.approx(updates.norm(dim=1).tolist(), rel=1e-5)
    wanted = torch.nn.functional.cosine_similarity(updates[:, None], updates[None], dim=2)
    assert torch.allclose(torch.tensor(line["cosines"]), wanted, atol=1e-5)
    assert line["change"]["norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
    wanted = torch.nn.functional.cosine_similarity(updates, delta[None], dim=1)
    assert torch.allclose(torch.tensor(line["change"]["cosines"]), wanted, atol=1e-5)
    assert line["cross_term"] is None


def test_of_lora_pairs_the_products_are_measured_too(tmp_path: Path) -> None:
    sent = adapter(np.random.default_rng(0))
    own = pushed(sent, 5, {1})
    measured = with_diagnostics(strategy("mean"), [1], tmp_path / "d.jsonl", lora_scale=2.0, permutations=0)
    messages = asked(measured, sent, 5)
    measured.aggregate_train(1, [reply(m, a) for m, a in zip(messages, own, strict=True)])
    assert set(measured.last["bsnr"]) == {"adapter", "delta_w"}
    pairs = [(name, name.replace("lora_A", "lora_B")) for name in sent if "lora_A" in name]
    exact, apart = 0.0, 0.0
    for a, b in pairs:
        whole = np.mean([one[b].astype(float) @ one[a] for one in own], axis=0)
        split = np.mean([one[b] for one in own], axis=0, dtype=float) @ np.mean([one[a] for one in own], axis=0, dtype=float)
        exact, apart = exact + (whole**2).sum(), apart + ((whole - split) ** 2).sum()
    assert measured.last["cross_term"] == pytest.approx((apart / exact) ** 0.5, rel=1e-4)


def client(message: Any, context: Any) -> Any:
    me = int(context.node_config["partition-id"])
    own = moved(values(message.content["arrays"]), np.random.default_rng(me))
    return reply(message, own, 10 + me, **{"partition-id": me})


def app() -> ClientApp:
    made = ClientApp()
    made.train()(client)
    made.evaluate()(client)
    return made


@pytest.mark.parametrize("inner", [lambda: FedAdam(eta=0.1), FedAvg, lambda: strategy("median", seed=3)])
def test_the_wrapped_strategy_ends_where_it_ends_alone(inner: Any, tmp_path: Path) -> None:
    start = record(network(np.random.default_rng(0)))
    path = tmp_path / "sub" / "d.jsonl"
    measured = with_diagnostics(inner(), lambda reply: reply.content["metrics"]["partition-id"] in (2, 4), path)
    found = measured.start(MemoryGrid(app(), 5), start, num_rounds=3)
    wanted = inner().start(MemoryGrid(app(), 5), start, num_rounds=3)
    for a, b in zip(values(found.arrays).values(), values(wanted.arrays).values(), strict=True):
        assert np.allclose(a, b, rtol=1e-5, atol=1e-5)  # Flower's own sums follow the order of its random choice
    assert found.evaluate_metrics_clientapp.keys() == wanted.evaluate_metrics_clientapp.keys() == {1, 2, 3}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert all(sum(line["poisoned"]) == 2 for line in lines)
    assert all(line["bsnr"]["adapter"]["value"] > 0 for line in lines)


def test_node_ids_mark_the_affected_and_bad_replies_are_named(tmp_path: Path) -> None:
    sent = network(np.random.default_rng(0))
    own = pushed(sent, 4, {1})
    own[2]["conv.bias"] = own[2]["conv.bias"] * np.float32(np.nan)
    inner = strategy("median")
    ids = sorted(MemoryGrid(ClientApp(), 4).ids)
    measured = with_diagnostics(inner, [ids[1]], tmp_path / "d.jsonl")
    messages = asked(measured, sent, 4)
    measured.aggregate_train(1, [reply(m, a) for m, a in zip(messages, own, strict=True)])
    assert measured.last["poisoned"] == [False, True, False]
    assert measured.last["dropped"] == [{"node": ids[2], "reason": "array 'conv.bias' holds NaN or infinity"}]
    assert measured.dropped == inner.dropped, "what the wrapper does not know is the strategy's"


def test_a_skipped_round_and_one_without_affected_have_no_bsnr(tmp_path: Path) -> None:
    sent = network(np.random.default_rng(0))
    measured = with_diagnostics(strategy("krum:f=1"), [0], tmp_path / "d.jsonl")
    messages = asked(measured, sent, 5)
    own = pushed(sent, 5, {0})
    measured.aggregate_train(1, [reply(m, a) for m, a in zip(messages[:3], own, strict=False)])
    assert measured.last["bsnr"]["adapter"]["value"] is None
    assert measured.last["change"]["norm"] == 0
    measured.aggregate_train(2, [reply(m, a) for m, a in zip(messages[1:], own[1:], strict=True)])
    assert measured.last["bsnr"] is None
    measured.aggregate_train(3, [])
    assert measured.last["nodes"] == []
    assert measured.last["bsnr"] is None
    assert len((tmp_path / "d.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_only_a_strategy_is_wrapped() -> None:
    with pytest.raises(UserError, match="no Flower strategy"):
        with_diagnostics("krum", [0])  # type: ignore[arg-type]


def test_who_is_poisoned_must_be_said_and_has_a_former_name() -> None:
    with pytest.raises(UserError, match="give poisoned="):
        with_diagnostics(FedAvg())
    with pytest.warns(RenamedWarning, match="affected is now poisoned"):
        assert with_diagnostics(FedAvg(), affected=[0]).poisoned == [0]


@pytest.mark.parametrize("odd", [-1, True, 1.5, "a", None])
def test_who_can_be_no_client_is_refused(odd: Any) -> None:
    with pytest.raises(UserError, match=f"poisoned names {odd}; give a list of node ids or places"):
        with_diagnostics(FedAvg(), [0, odd])
    with pytest.raises(UserError, match="give a list of node ids or places"):
        with_diagnostics(FedAvg(), 3)  # type: ignore[arg-type]


def test_who_is_no_node_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "flwr")
    logging.getLogger("flwr").propagate = True
    asked(with_diagnostics(FedAvg(), [0, 99], tmp_path / "d.jsonl"), network(np.random.default_rng(0)), 6)
    assert "poisoned names 99: neither a place of the 6 nodes" in caplog.text
