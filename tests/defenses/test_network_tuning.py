"""Fine-pruning and CROW where the server has a network and synthetic data instead of an adapter and trusted text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from published import make, some_adapter
from torch import Tensor, nn

from undertow.config import Training
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import Examples
from undertow.defenses.contexts import NetSetting, ServerContext
from undertow.defenses.server.crow import Crow, consistency
from undertow.defenses.server.fine_pruning import FinePruning
from undertow.defenses.server.network_consistency import block_names, consistency_losses
from undertow.defenses.server.network_pruning import kept_channels
from undertow.defenses.server.server_tuning import tune_network
from undertow.models.bounds import channels, watched
from undertow.models.causal_lm import CausalLM
from undertow.models.net import Net, make_net
from undertow.training import stacked

Load = Callable[..., CausalLM]
SETTINGS = {
    "local_epochs": 3, "batch_size": 8, "optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "schedule": "constant", "clip": 0,
}  # fmt: skip
TRAINING = Training.model_validate(SETTINGS)


def images(n: int = 40) -> Examples:
    draw = rng(0, "images")
    labels = torch.from_numpy(draw.integers(0, 3, n))
    inputs = torch.from_numpy(draw.random((n, 1, 8, 8))).float() / 4
    for i, label in enumerate(labels.tolist()):
        inputs[i, 0, 2 * label : 2 * label + 2] += 0.7
    return Examples(inputs, labels)


def texts(n: int = 24, length: int = 6) -> Examples:
    draw = rng(0, "texts")
    inputs = torch.from_numpy(draw.integers(1, 9, (n, length)))
    inputs[:, 4:] = 0
    return Examples(inputs, (inputs[:, 0] > 4).long())


def context(net: Net, data: Examples | None, round: int = 2, training: Training = TRAINING) -> ServerContext:
    state = net.initial()
    network = NetSetting(0, 2, net, training, data, ["a", "b", "c"])
    return ServerContext(net.layout, [1], round, state, rng(0, "server", round), [0], network=network)


def activity(net: Net, state: Tensor, data: Examples, place: str) -> Tensor:
    seen: list[Tensor] = []
    with watched(net.module, [place], lambda name, output: seen.append(channels(output))):
        net.logits(state, data.inputs)
    return torch.cat(seen).abs().mean(0)


@pytest.mark.parametrize(
    ("name", "place", "feeder"),
    [
        ("cnn:width=4:hidden=8", "features.5", "features.4"),
        ("cnn:width=4:hidden=8:norm=none", "features.5", "features.3"),
        ("cnn:width=4:hidden=8:norm=batch", "features.5", "features.4"),
        # the last activation of ResNet-18 adds its shortcut, so that no layer decides it alone
        ("resnet18:width=2", "blocks.7.relu1", "blocks.7.norm1"),
    ],
)
def test_the_least_active_channels_of_the_last_convolution_are_cut(name: str, place: str, feeder: str) -> None:
    net, data = make_net(name, (1, 8, 8), 3, 0), images()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = net.initial() + 0.05 * torch.randn(net.layout.size)
    before = activity(net, state, data, place)
    found, report = FinePruning(share=0.5, passes=0).guard(state, context(net, data))
    assert report["place"] == place
    after = activity(net, found, data, place)
    gone = before.argsort()[: len(before) // 2]
    assert sorted((after == 0).nonzero().flatten().tolist()) == sorted(
        gone[before[gone] > 0].tolist() + (before == 0).nonzero().flatten().tolist()
    )
    mask = kept_channels(net, feeder, gone)
    assert torch.equal(found, state * mask)


def test_the_last_block_of_a_text_network() -> None:
    net, data = make_net("encoder:width=8", (6,), 3, 0, ids=9), texts()
    found, report = FinePruning(share=0.25, passes=0).guard(net.initial(), context(net, data))
    assert report["place"] == "blocks.1.mlp.act"
    assert int((activity(net, found, data, "blocks.1.mlp.act") == 0).sum()) == 4
    assert torch.equal(found, net.initial() * (found != 0) + found * (net.initial() == 0))


def test_what_is_cut_stays_cut_while_the_rest_is_tuned_and_the_bits_repeat() -> None:
    net, data = make_net("cnn:width=4:hidden=8", (1, 8, 8), 3, 0), images()
    start = tune_network(context(net, data).network, net.initial(), data, 5)  # type: ignore[arg-type]
    found, report = FinePruning(share=0.5, passes=2).guard(start, context(net, data))
    again, other = FinePruning(share=0.5, passes=2).guard(start, context(net, data))
    assert torch.equal(found, again)
    assert report == other
    assert int((activity(net, found, data, "features.5") == 0).sum()) >= 4
    assert int(((found != start) & (found != 0)).sum()) > net.layout.size // 4
    assert not found.requires_grad


def test_the_share_is_the_largest_that_the_accuracy_allows() -> None:
    net, data = make_net("cnn:width=4:hidden=8", (1, 8, 8), 3, 0), images()
    start = tune_network(context(net, data).network, net.initial(), data, 10)  # type: ignore[arg-type]

    def accuracy(state: Tensor) -> float:
        return float((net.logits(state, data.inputs).argmax(1) == data.labels).double().mean())

    order, wanted = activity(net, start, data, "features.5").argsort(stable=True), 0.0
    for i in range(1, 20):
        mask = kept_channels(net, "features.4", order[: int(i / 20 * len(order))])
        if accuracy(start * mask) < accuracy(start) - 0.1:
            break
        wanted = i / 20
    _, report = FinePruning(drop=0.1, passes=0).guard(start, context(net, data))
    assert report["share"] == wanted
    assert report["before"] == pytest.approx(accuracy(start))
    assert report["after"] >= report["before"] - 0.1


def test_tuning_is_a_clients_training_without_dropout() -> None:
    net, data = make_net("cnn:width=4:hidden=8:norm=batch", (1, 8, 8), 3, 0), images()
    network = context(net, data).network
    assert network is not None
    found = tune_network(network, net.initial(), data, 3)
    trained = stacked.train(net, TRAINING, net.initial(), [stacked.ExampleJob(0, data)], 0, 0)
    torch.testing.assert_close(found, net.initial() + trained.updates[0], atol=1e-5, rtol=1e-4)
    assert tune_network(network, found, data, 0) is found


def test_crow_compares_the_blocks_of_a_text_network_under_perturbed_embeddings() -> None:
    net, data = make_net("encoder:width=8:layers=4", (6,), 3, 0, ids=9), texts()
    assert block_names(net) == [f"blocks.{i}" for i in range(4)]
    state = net.initial()
    network = context(net, data).network
    assert network is not None
    rows = [3, 5]
    loss, penalty = consistency_losses(network, state, rows, 0.1, False, consistency)
    named = net.of_state(state)
    inputs, labels = data.inputs[rows], data.labels[rows]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(net.call(named, inputs), labels))

    def jumps(embedded: Tensor) -> Tensor:
        """The same through the modules themselves, on the four places that are no padding."""
        module = net.module
        x, states = embedded + module.positions[:4], []
        for block in module.blocks:
            x = block(x, torch.zeros(2, 1, 1, 4))
            states.append(x)
        away = [1 - torch.cosine_similarity(a, b, dim=-1) for a, b in ((states[0], states[1]), (states[1], states[2]))]
        return torch.stack(away).mean()

    clean = named["embedding.weight"][inputs[:, :4]].clone().requires_grad_()
    (slope,) = torch.autograd.grad(jumps(clean), clean)
    torch.testing.assert_close(penalty, jumps(clean.detach() + 0.1 * slope.sign()), atol=1e-5, rtol=1e-4)


def test_crow_lowers_the_penalty_and_repeats_its_bits() -> None:
    net, data = make_net("encoder:width=8:layers=3", (6,), 3, 0, ids=9), texts()
    params: dict[str, Any] = {"lr": 1e-2, "passes": 8}
    found, report = Crow(**params).guard(net.initial(), context(net, data))
    assert report["tuned"]
    assert report["last"]["consistency"] < report["first"]["consistency"]
    assert torch.equal(Crow(**params).guard(net.initial(), context(net, data))[0], found)
    assert not found.requires_grad
    early, told = Crow(**params).guard(found, context(net, data, 1))
    assert early is found
    assert told == {"tuned": False}


def test_two_blocks_have_one_pair() -> None:
    states = [torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    wanted = (1 - torch.cosine_similarity(states[1], states[2], dim=-1)).mean()
    torch.testing.assert_close(consistency(states, torch.ones(1, 2)), wanted)


def test_what_a_network_lacks_is_named() -> None:
    net, encoder = make_net("cnn:width=4:hidden=8", (1, 8, 8), 3, 0), make_net("encoder:width=8", (6,), 3, 0, ids=9)
    for name in ("fine-pruning", "crow"):
        with pytest.raises(UserError, match=rf"{name} needs synthetic data on this task; set synthetic\.generator"):
            make(name, when="every").guard(net.initial(), context(net, None))
    with pytest.raises(UserError, match="crow works on texts"):
        make("crow").guard(net.initial(), context(net, images()))
    one = make_net("encoder:width=8:layers=1", (6,), 3, 0, ids=9)
    with pytest.raises(UserError, match="this network has no two"):
        make("crow").guard(one.initial(), context(one, texts()))
    linear = Net(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 3)))
    with pytest.raises(UserError, match="finds no activation of this network whose channels"):
        make("fine-pruning").guard(linear.initial(), context(linear, images()))
    flat, report = make("fine-pruning").guard(encoder.initial(), context(encoder, texts(), 1))
    assert report == {"pruned": False}
    assert torch.equal(flat, encoder.initial())


def test_outside_a_run_there_is_no_model(load_tiny: Load) -> None:
    base = load_tiny(r=2, alpha=4)
    flat = some_adapter(base)
    bare = ServerContext(base.layout, [1], 1, flat, rng(0, "server"), [0])
    for name in ("fine-pruning", "crow", "activation-bounds"):
        with pytest.raises(UserError, match="use it in a run's defenses"):
            make(name).guard(flat, bare)
