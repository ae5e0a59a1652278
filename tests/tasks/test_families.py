"""Clients with different networks side by side in one state, aggregated each family by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from undertow.defenses.aggregation.krum import Krum
from undertow.defenses.contexts import ServerContext
from undertow.federation.server import aggregate, aggregate_parts, fedavg
from undertow.models.net import Net
from undertow.tasks.families import Families


def families() -> Families:
    return Families([Net(nn.Linear(3, 2)), Net(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))])


def context(found: Families, clients: list[int], counts: list[int]) -> ServerContext:
    return ServerContext(found.layout, counts, 1, found.initial(), np.random.default_rng(0), clients=clients)


def test_a_state_is_the_networks_one_after_another() -> None:
    found = families()
    assert found.layout.size == 8 + 26
    assert [found.of(k) for k in range(4)] == [0, 1, 0, 1]
    state = found.initial()
    for net, own in zip(found.nets, found.columns, strict=True):
        assert torch.equal(state[own], net.initial())
    assert {slot.name for slot in found.layout.slots} >= {"0.weight", "1.0.weight", "1.2.bias"}
    alone = Families(found.nets[:1])
    assert alone.layout == found.nets[0].layout


def test_parts_name_rows_and_columns_and_leave_out_who_is_absent() -> None:
    found = families()
    one, other = found.parts([0, 1, 2, 5])
    assert (one.rows, other.rows) == ([0, 2], [1, 3])
    assert (one.columns, other.columns) == (slice(0, 8), slice(8, 34))
    assert [part.rows for part in found.parts([1, 3])] == [[0, 1]]


def test_each_family_is_averaged_by_itself() -> None:
    found, clients, counts = families(), [0, 1, 2, 3], [10, 1, 30, 3]
    updates = torch.zeros(4, found.layout.size)
    draw = torch.Generator().manual_seed(0)
    for row, k in enumerate(clients):
        own = found.columns[found.of(k)]
        updates[row, own] = torch.randn(own.stop - own.start, generator=draw)
    delta, _ = aggregate_parts(updates, [], context(found, clients, counts), found.parts(clients))
    assert torch.equal(delta[:8], fedavg(updates[[0, 2]][:, :8], [10, 30]))
    assert torch.equal(delta[8:], fedavg(updates[[1, 3]][:, 8:], [1, 3]))
    absent, _ = aggregate_parts(updates[[0]], [], context(found, [0], [10]), found.parts([0]))
    assert torch.equal(absent[8:], torch.zeros(26))


def test_a_rule_sees_one_family_at_a_time() -> None:
    """Krum on each family takes the row of that family whose neighbours are nearest."""
    found, clients = families(), [0, 1, 2, 3, 4, 5, 6, 7]
    updates = torch.zeros(8, found.layout.size)
    for row, k in enumerate(clients):
        updates[row, found.columns[found.of(k)]] = [1.0, 2.0, 1.1, 2.1, 1.05, 2.05, 50.0, 50.0][row]
    delta, reports = aggregate_parts(updates, [("krum", Krum(f=0))], context(found, clients, [1] * 8), found.parts(clients))
    assert (float(delta[0]), float(delta[8])) == pytest.approx((1.05, 2.05))
    assert len(reports) == 2


def test_one_network_is_aggregated_as_ever() -> None:
    net = Families([Net(nn.Linear(3, 2))])
    updates = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    told = context(net, [0, 1, 2], [1, 2, 3])
    assert torch.equal(aggregate_parts(updates, [], told, None)[0], aggregate(updates, [], told)[0])


def test_teachers_are_what_the_clients_sent() -> None:
    found, clients = families(), [2, 3]
    state = found.initial()
    updates = torch.ones(2, found.layout.size)
    (one, sent), (other, sent_too) = found.teachers(state, updates, clients)
    assert (one, other) == (found.nets[0], found.nets[1])
    assert torch.equal(sent, state[:8] + 1)
    assert torch.equal(sent_too, state[8:] + 1)
