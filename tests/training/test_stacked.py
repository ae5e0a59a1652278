from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from undertow.config import Training, validate
from undertow.core.errors import UserError
from undertow.data.examples import IGNORE, Examples
from undertow.models.net import NETS, Net, make_net
from undertow.training import stacked
from undertow.training.local import Job, batch_indices, batches, learning_rate
from undertow.training.stacked import ExampleJob, chunk_size, losses, losses_and_statistics, train

WORDS, LENGTH = 12, 5


class Recurrent(nn.Module):
    """A one-layer recurrent network with dropout on its inputs and tied embeddings."""

    def __init__(self, dropout: float = 0.4, hidden: int = 6) -> None:
        super().__init__()
        self.embedding, self.step, self.dropout = nn.Embedding(WORDS, hidden), nn.Linear(2 * hidden, hidden), dropout

    def noise_shapes(self, n: int, length: int) -> tuple[tuple[int, ...], ...]:
        return ((n, length, self.embedding.embedding_dim),)

    def forward(self, inputs: Tensor, noise: tuple[Tensor, ...] | None = None) -> Tensor:
        x = self.embedding(inputs)
        if noise is not None:
            x = x * (noise[0] >= self.dropout) / (1 - self.dropout)
        h, found = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.step(torch.cat([x[:, t], h], dim=1)))
            found.append(h @ self.embedding.weight.T)
        return torch.stack(found, dim=1)


def convolutional(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))


def make(kind: str) -> Net:
    torch.manual_seed(0)
    if kind == "linear":
        return Net(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)))
    if kind == "group":
        return Net(convolutional(lambda channels: nn.GroupNorm(2, channels)))
    if kind == "batch":
        return Net(convolutional(nn.BatchNorm2d))
    if kind == "words":
        return Net(Recurrent())
    config = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=WORDS)
    return Net(LlamaForCausalLM(config))


KINDS = ("linear", "group", "batch", "words", "llama")


def examples(kind: str, n: int, draw: torch.Generator) -> Examples:
    if kind in ("words", "llama"):
        labels = torch.randint(0, WORDS, (n, LENGTH), generator=draw)
        labels[torch.rand(n, LENGTH, generator=draw) < 0.3] = IGNORE
        return Examples(torch.randint(0, WORDS, (n, LENGTH), generator=draw), labels)
    return Examples(torch.rand(n, 1, 6, 6, generator=draw), torch.randint(0, 3, (n,), generator=draw))


def make_jobs(kind: str, sizes: tuple[int, ...]) -> list[ExampleJob]:
    draw = torch.Generator().manual_seed(1)
    return [ExampleJob(k, examples(kind, n, draw)) for k, n in enumerate(sizes)]


def options(**changes: Any) -> Training:
    given = {"batch_size": 4, "lr": 0.1, "schedule": "constant", "optimizer": "sgd", "clip": 0.0, **changes}
    if given["optimizer"] == "adamw":
        given["lr"] = 0.01
    return Training.model_validate(given)


def both(
    kind: str, training: Training, sizes: tuple[int, ...], dtype: torch.dtype, augment: stacked.Augment | None = None
) -> tuple[Any, Any]:
    net, jobs = make(kind), make_jobs(kind, sizes)
    state = net.initial().to(dtype)
    plain, fast = (
        train(net, training.model_copy(update={"trainer": trainer}), state, jobs, 3, 2, augment=augment)
        for trainer in ("sequential", "batched")
    )
    return plain, fast


def distance(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.vector_norm((found - wanted).double()) / torch.linalg.vector_norm(wanted.double()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [0, 1, 3, 50])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_batched_equals_sequential(kind: str, chunk: int, dtype: torch.dtype, bar: float) -> None:
    # 9, 2, 5, 8 and 1 examples make 3, 1, 2, 2 and 1 steps of 4, the last ones smaller
    plain, fast = both(kind, options(client_chunk=chunk, clip=1.0), (2, 9, 5, 8, 1), dtype)
    assert fast.updates.dtype == plain.updates.dtype == dtype
    assert distance(fast.updates, plain.updates) < bar
    assert fast.losses == pytest.approx(plain.losses, rel=bar)
    assert torch.linalg.vector_norm(plain.updates, dim=1).min() > 1e-3, "the clients really moved"


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "linear", "local_epochs": 2},
        {"momentum": 0.9, "local_epochs": 2},
        {"momentum": 0.5, "weight_decay": 0.1, "clip": 0.3, "schedule": "linear"},
        {"weight_decay": 0.1},
        {"clip": 0.05},
        {"optimizer": "adamw"},
        {"optimizer": "adamw", "weight_decay": 0.1, "clip": 0.3, "local_epochs": 2},
        {"batch_size": 1},
        {"batch_size": 100},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["batch", "words"])
def test_every_option_means_the_same_to_both_trainers(kind: str, changes: dict[str, Any]) -> None:
    # a batch of one image has no variance over the batch, but over its places
    plain, fast = both(kind, options(client_chunk=4, **changes), (9, 2, 6, 6), torch.float64)
    assert distance(fast.updates, plain.updates) < 1e-9
    assert fast.losses == pytest.approx(plain.losses, rel=1e-9)


def test_options_change_what_is_learned() -> None:
    """Else the agreement above would be one of two trainers that ignore them."""
    plain = both("words", options(), (9, 5), torch.float64)[1].updates
    for changes in ({"momentum": 0.9}, {"clip": 0.05}, {"schedule": "linear"}, {"weight_decay": 0.1}, {"optimizer": "adamw"}):
        assert distance(both("words", options(**changes), (9, 5), torch.float64)[1].updates, plain) > 1e-3


def test_one_client_is_what_torch_does_step_by_step() -> None:
    """Written out once more, from nothing but the paper's description and torch."""
    net, (job,) = make("linear"), make_jobs("linear", (10,))
    training = options(momentum=0.9, weight_decay=0.01, clip=0.5, schedule="linear", local_epochs=2)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step, places in enumerate(batch_indices(0, 10, training, 5, 7)):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 6)
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(module(job.data.inputs[places]), job.data.labels[places]).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
    wanted = torch.nn.utils.parameters_to_vector(module.parameters()).detach() - before
    assert distance(train(net, training, net.initial(), [job], 5, 7).updates[0], wanted) < 1e-5


def test_momentum_of_rows_is_torchs_own() -> None:
    from undertow.training.batched import RowOptimizer

    draw = torch.Generator().manual_seed(1)
    start = torch.randn(3, 11, generator=draw, dtype=torch.float64)
    gradients = [torch.randn(3, 11, generator=draw, dtype=torch.float64) for _ in range(6)]
    training, totals, rows = options(momentum=0.8, weight_decay=0.1, clip=2.0, schedule="linear"), [6, 4, 1], start.clone()
    ours = RowOptimizer(training, rows)
    for step in range(6):
        active = sum(total > step for total in totals)
        ours.step(gradients[step][:active].clone(), [learning_rate(training, step, total) for total in totals[:active]])
    for k, total in enumerate(totals):
        row = nn.Parameter(start[k].clone())
        theirs = torch.optim.SGD([row], lr=0.1, momentum=0.8, weight_decay=0.1)
        for step in range(total):
            theirs.param_groups[0]["lr"] = learning_rate(training, step, total)
            row.grad = gradients[step][k].clone()
            nn.utils.clip_grad_norm_([row], 2.0)
            theirs.step()
        torch.testing.assert_close(rows[k], row.detach(), rtol=1e-12, atol=1e-12)


def test_momentum_without_sgd_is_refused() -> None:
    with pytest.raises(UserError, match=r"momentum = 0.9 belongs to sgd.*set optimizer=sgd"):
        validate({"training": {"momentum": 0.9}}, "here")
    with pytest.raises(UserError, match="momentum"):
        validate({"training": {"momentum": 1.0, "optimizer": "sgd"}}, "here")


# --- batches, augmentation, dropout -----------------------------------------------------------------------------


def test_examples_come_in_the_order_that_samples_come_in() -> None:
    training = options(local_epochs=2)
    found = [places.tolist() for places in batch_indices(3, 10, training, 5, 7)]
    assert found == list(batches(Job(3, list(range(10))), training, 5, 7))  # type: ignore[arg-type]
    epochs = [[place for places in part for place in places] for part in (found[:3], found[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert found[:3] != found[3:]


@pytest.mark.parametrize("chunk", [1, 4])
def test_augmentation_is_drawn_by_client_and_step(chunk: int) -> None:
    def noisy(batch: Examples, draw: np.random.Generator) -> Examples:
        return Examples(batch.inputs + torch.as_tensor(draw.standard_normal(batch.inputs.shape)).float(), batch.labels)

    training = options(client_chunk=chunk)
    plain, fast = both("group", training, (9, 2, 6), torch.float64, noisy)
    assert distance(fast.updates, plain.updates) < 1e-9
    assert distance(fast.updates, both("group", training, (9, 2, 6), torch.float64)[1].updates) > 1e-2


def test_dropout_is_on_in_training_and_differs_by_client() -> None:
    jobs = make_jobs("words", (4,))
    jobs.append(ExampleJob(1, jobs[0].data))
    with_it, without = Net(Recurrent()), Net(Recurrent(dropout=0.0))
    state, training = with_it.initial(), options(batch_size=4)
    dropped = train(with_it, training, state, jobs, 0, 1).updates
    whole = train(without, training, state, jobs, 0, 1).updates
    assert distance(dropped[0], whole[0]) > 1e-2
    assert distance(whole[1], whole[0]) < 1e-5, "the same data in another order within the only batch"
    assert distance(dropped[1], dropped[0]) > 1e-2


# --- losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_each_clients_own(kind: str) -> None:
    net, draw = make(kind), torch.Generator().manual_seed(2)
    stack = net.initial().double() + 0.05 * torch.rand(3, net.layout.size, dtype=torch.float64, generator=draw)
    block = [examples(kind, n, draw) for n in (4, 4, 4)]
    leaf = stack.clone().requires_grad_()
    found = losses(net, leaf, block)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    for k, batch in enumerate(block):
        own = stack[k].clone().requires_grad_()
        statistics = net.statistics.unflatten(stack[k, net.trained :].clone())
        tensors = {**net.parameters.unflatten(own[: net.trained]), **statistics}
        logits = net.call(tensors, batch.inputs, module=net.training_copy())
        wanted = nn.functional.cross_entropy(logits.flatten(0, -2), batch.labels.flatten(), ignore_index=IGNORE)
        torch.testing.assert_close(found[k].detach(), wanted.detach(), rtol=1e-12, atol=1e-12)
        (own_gradient,) = torch.autograd.grad(wanted, own)
        columns = slice(net.trained)
        torch.testing.assert_close(gradient[k, columns], own_gradient[columns], rtol=1e-9, atol=1e-12)
    assert gradient[:, net.trained :].count_nonzero() == 0


def test_padding_costs_no_loss_and_labels_of_nobody_give_zero() -> None:
    net, draw = make("words"), torch.Generator().manual_seed(2)
    stack = net.initial().repeat(3, 1).requires_grad_()
    large, small = examples("words", 7, draw), examples("words", 2, draw)
    silent = Examples(small.inputs, torch.full_like(small.labels, IGNORE))
    found = losses(net, stack, [large, small, silent])
    assert found[0].item() == pytest.approx(losses(net, stack[:1], [large]).item(), rel=1e-6)
    assert found[1].item() == pytest.approx(losses(net, stack[:1], [small]).item(), rel=1e-6)
    assert found[2].item() == 0.0
    (gradient,) = torch.autograd.grad(found.sum(), stack)
    assert gradient.isfinite().all()
    assert gradient[2].count_nonzero() == 0


def test_batches_of_different_lengths_go_one_by_one() -> None:
    net = make("words")
    stack = net.initial().repeat(2, 1)
    long = Examples(torch.ones(2, 7, dtype=torch.long), torch.ones(2, 7, dtype=torch.long))
    short = Examples(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long))
    found = losses(net, stack, [long, short])
    assert found[1].item() == pytest.approx(losses(net, stack[:1], [short]).item(), rel=1e-6)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 3, 2)])
def test_running_statistics_move_as_torch_moves_them(sizes: tuple[int, ...]) -> None:
    net, draw = make("batch"), torch.Generator().manual_seed(2)
    stack = net.initial().repeat(3, 1) + 0.1 * torch.rand(3, net.layout.size, generator=draw)
    kept, block = stack.clone(), [examples("batch", n, draw) for n in sizes]
    _, statistics = losses_and_statistics(net, stack, block)
    assert torch.equal(stack, kept)
    for k, batch in enumerate(block):
        module = convolutional(nn.BatchNorm2d)
        module.load_state_dict({**module.state_dict(), **net.of_state(stack[k])})
        module.train()(batch.inputs)
        norm = module[1]
        torch.testing.assert_close(statistics[k], torch.cat([norm.running_mean, norm.running_var]))
    assert Net(convolutional(nn.BatchNorm2d)).normalizes


def test_statistics_are_part_of_the_update_and_untouched_by_decay() -> None:
    net, jobs = make("batch"), make_jobs("batch", (4,))
    for trainer in ("batched", "sequential"):
        training = options(trainer=trainer, weight_decay=0.5, lr=1e-12)
        update = train(net, training, net.initial(), jobs, 0, 1).updates[0]
        features = nn.functional.conv2d(jobs[0].data.inputs, net.module[0].weight, net.module[0].bias).detach()
        mean = features.mean((0, 2, 3))
        torch.testing.assert_close(update[net.trained : net.trained + 4], 0.1 * mean, rtol=1e-4, atol=1e-6)


# --- determinism ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainer", ["batched", "sequential"])
def test_the_same_call_gives_the_same_bits_and_leaves_no_trace(kind: str, trainer: str) -> None:
    net, jobs, training = make(kind), make_jobs(kind, (5, 3)), options(trainer=trainer, client_chunk=2)
    state = net.initial()
    kept, before = state.clone(), {name: t.clone() for name, t in net.module.state_dict().items()}
    generator = torch.get_rng_state()
    first, second = (train(net, training, state, jobs, 0, 1) for _ in range(2))
    assert torch.equal(first.updates, second.updates)
    assert first.losses == second.losses
    assert torch.equal(state, kept)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(t, before[name]) for name, t in net.module.state_dict().items())
    assert not any(part.training for part in net.module.modules())
    assert not torch.equal(first.updates, train(net, training, state, jobs, 1, 1).updates)
    assert not torch.equal(first.updates, train(net, training, state, jobs, 0, 2).updates)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_threads_and_neighbours_do_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, jobs, state = make(kind), make_jobs(kind, (5, 9, 2, 7)), make(kind).initial()
    whole = train(net, options(client_chunk=4), state, jobs, 0, 1).updates
    for chunk in (1, 2, 3):
        assert distance(train(net, options(client_chunk=chunk), state, jobs, 0, 1).updates, whole) < 1e-6
    pairs = train(net, options(client_chunk=2), state, jobs, 0, 1)
    turned = train(net, options(client_chunk=4), state, jobs[::-1], 0, 1).updates
    assert distance(turned.flip(0), whole) < 1e-6
    torch.set_num_threads(2)
    try:
        threaded = train(net, options(client_chunk=2), state, jobs, 0, 1)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(threaded.updates, pairs.updates)
    assert threaded.losses == pairs.losses


def test_an_error_in_one_thread_is_raised() -> None:
    net, jobs = make("linear"), make_jobs("linear", (5, 9, 2, 7))

    def fails(batch: Examples, draw: np.random.Generator) -> Examples:
        raise RuntimeError("this one")

    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="this one"):
            train(net, options(client_chunk=2), net.initial(), jobs, 0, 1, augment=fails)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("trainer", ["batched", "sequential"])
def test_a_client_without_examples_stays_where_it_is(trainer: str) -> None:
    net, jobs = make("linear"), make_jobs("linear", (0, 5))
    found = train(net, options(trainer=trainer), net.initial(), jobs, 0, 1)
    assert found.updates[0].count_nonzero() == 0
    assert found.losses[0] == 0.0
    assert found.updates[1].count_nonzero() > 0
    assert train(net, options(trainer=trainer), net.initial(), jobs[:1], 0, 1).updates.count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind: str) -> None:
    net, jobs = make(kind), make_jobs(kind, (8, 8))
    state, told = net.initial(), []
    for round in range(1, 5):
        trained = train(net, options(local_epochs=4, momentum=0.5), state, jobs, 0, round)
        state = state + trained.updates.mean(0)
        told.append(sum(trained.losses))
    assert told[-1] < 0.97 * told[0]


# --- chunks -----------------------------------------------------------------------------------------------------


def test_the_chunk_is_set_or_follows_the_size_of_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    net, jobs = make("linear"), make_jobs("linear", (5,) * 20)
    state = net.initial()
    assert chunk_size(net, options(client_chunk=7), state, jobs) == 7
    assert chunk_size(net, options(client_chunk=70), state, jobs) == 20
    assert chunk_size(net, options(), state, jobs) == 7  # at most 8: three chunks of 20
    assert chunk_size(net, options(), state, jobs[:10]) == 5
    assert chunk_size(net, options(), state, jobs[:1]) == 1
    wide = Net(nn.Sequential(nn.Flatten(), nn.Linear(36, 20000), nn.Tanh(), nn.Linear(20000, 3)))
    assert chunk_size(wide, options(), wide.initial(), jobs) == 1
    llama = make("llama")
    assert chunk_size(llama, options(), llama.initial(), make_jobs("llama", (5,) * 20)) == 1
    # 5 clients would need more than a fifth of this memory, 2 would not
    each = 2 * sum(stacked._kept_bytes(net, state, jobs[0].data.take(range(4)))) + 6 * state.nbytes
    monkeypatch.setattr(stacked, "total_bytes", lambda device: math.ceil(2.5 * each / 0.2))
    assert chunk_size(net, options(), state, jobs[:10]) == 2


# Models of transformers have files of their own; the encoder's labels are classes of texts: tests/models/test_text_nets.py.
_OWN_FILES = ("causal-lm", "sequence-classifier", "encoder")


@pytest.mark.parametrize("name", [entry.name for entry in NETS.entries() if entry.name not in _OWN_FILES])
def test_every_shipped_network_trains_the_same_in_both(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    if name == "lstm":
        net, kind = make_net("lstm:hidden=4", (LENGTH,), WORDS, 0), "words"
    else:
        net, kind = make_net(f"{name}:width=2", (1, 6, 6), 3, 0), "group"
    jobs = [ExampleJob(k, examples(kind, n, draw)) for k, n in enumerate((6, 3))]
    state = net.initial().double()
    plain, fast = (
        train(net, options(trainer=trainer, client_chunk=2), state, jobs, 0, 1).updates for trainer in ("sequential", "batched")
    )
    assert distance(fast, plain) < 1e-9
