"""Local training of whole small networks: each client's state is a row of one matrix.

The clients of a chunk train in one pass, ``torch.func.vmap`` over their rows, and chunks side by side in threads. A chunk of
one client needs no vmap. ``training.trainer=sequential`` is the plain reference: clients one after another, the module itself
with torch's own optimiser.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from undertow.config import Training
from undertow.core.rng import rng, torch_rng
from undertow.core.threads import for_each
from undertow.data.examples import IGNORE, Examples
from undertow.models.memory import total_bytes
from undertow.models.net import Net
from undertow.training.batched import RowOptimizer
from undertow.training.local import Trained, batch_indices, learning_rate, step_count

#: Changes a batch before it is trained on, with random numbers of its own.
Augment = Callable[[Examples, np.random.Generator], Examples]

Noise = tuple[Tensor, ...] | None

#: Most clients in one pass on a CPU; beyond this the time per client no longer falls.
_CPU_CHUNK = 8

#: Share of the machine's memory that the activations of one chunk may take.
_SHARE = 0.2

#: On a CPU one pass for several clients is faster where an operation's tensor has at most so many bytes on average
#: (benchmarks/stacked.py: faster up to 130,000, slower from 280,000).
_SMALL = 2**17


@dataclass(frozen=True)
class ExampleJob:
    """One client's local training in one round: ``client`` index and its examples, all in memory."""

    client: int
    data: Examples


def train(
    net: Net,
    training: Training,
    global_state: Tensor,
    jobs: Sequence[ExampleJob],
    seed: int,
    round: int,
    *,
    augment: Augment | None = None,
) -> Trained:
    """Train every client from the global state and return its update.

    Args:
        net: the network.
        training: what a client does; ``trainer`` chooses between the two forms, which give the same numbers up to the order of
            floating-point sums.
        global_state: ``[D]``, what the server sent; its device and type are those of the training.
        jobs: the clients of this round; one without examples does not move.
        seed: of the run.
        round: from 1.
        augment: of every batch; None is none.
    """
    if training.trainer == "sequential":
        rows, means = zip(*(_train_alone(net, training, global_state, job, seed, round, augment) for job in jobs), strict=True)
        return Trained(torch.stack(rows), list(means))
    # Clients with more steps come first, so that those still training are always the first rows.
    order = sorted(range(len(jobs)), key=lambda k: -step_count(len(jobs[k].data), training))
    wide = chunk_size(net, training, global_state, jobs)
    chunks = [order[start : start + wide] for start in range(0, len(order), wide)]
    updates = torch.empty(len(jobs), net.layout.size, dtype=global_state.dtype)
    losses = [0.0] * len(jobs)
    stop = threading.Event()

    def train_chunk(members: list[int]) -> None:
        found = _train_chunk(net, training, global_state, [jobs[k] for k in members], seed, round, augment, stop)
        updates[members] = found.updates
        for k, mean in zip(members, found.losses, strict=True):
            losses[k] = mean

    for_each(train_chunk, chunks, stop, alone=global_state.device.type != "cpu")
    return Trained(updates, losses)


def chunk_size(net: Net, training: Training, state: Tensor, jobs: Sequence[ExampleJob]) -> int:
    """Return how many clients train in one pass: ``training.client_chunk`` if set, else by rule.

    On a CPU a common pass saves the overhead of many small operations, and loses where they are large, most of all
    convolutions, which become grouped ones. So clients train one by one where a tensor kept for the backward has more than
    ``_SMALL`` bytes on average; else at most eight in a pass, and two chunks at least to give two cores work. On a GPU all
    train in one pass. Never more than the memory holds. Transformers models train one by one: their attention has no
    form for vmap.

    The rule looks at shapes and at the whole memory, not at the clock or the threads, so that the same config gives the same
    bits tomorrow.
    """
    if training.client_chunk:
        return min(training.client_chunk, len(jobs))
    largest = max(jobs, key=lambda job: len(job.data)).data
    if len(jobs) < 2 or not len(largest) or hasattr(net.module, "config"):
        return 1
    kept = _kept_bytes(net, state, largest.take(range(min(training.batch_size, len(largest)))))
    # Once more for the gradients, and the optimiser's states.
    fits = max(1, int(_SHARE * total_bytes(state.device)) // (2 * sum(kept) + 6 * state.nbytes))
    if state.device.type != "cpu":
        return min(fits, len(jobs))
    count = max(-(-len(jobs) // _CPU_CHUNK), 2)
    return min(fits, -(-len(jobs) // count)) if sum(kept) <= _SMALL * len(kept) else 1


def _kept_bytes(net: Net, state: Tensor, batch: Examples) -> list[int]:
    """Return the sizes of what one client's pass keeps for its backward."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    noise = net.noise(len(batch), batch.inputs.shape[-1], torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses(net, state.clone().requires_grad_()[None], [batch], [noise])
    return list(kept.values())


def _train_chunk(
    net: Net,
    training: Training,
    start: Tensor,
    jobs: Sequence[ExampleJob],
    seed: int,
    round: int,
    augment: Augment | None,
    stop: threading.Event,
) -> Trained:
    module = net.training_copy()
    local = start.repeat(len(jobs), 1)  # [K, D]
    optimizer = RowOptimizer(training, local[:, : net.trained])
    totals = [step_count(len(job.data), training) for job in jobs]
    streams = [_stream(net, training, job, seed, round, augment) for job in jobs]
    sums = torch.zeros(len(jobs), dtype=torch.float64)
    for step in range(max(totals)):
        if stop.is_set():
            break
        active = sum(total > step for total in totals)
        block, noise = zip(*(next(stream) for stream in streams[:active]), strict=True)
        parameters = local[:active, : net.trained].clone().requires_grad_()
        client_losses, statistics = _losses(net, parameters, local[:active, net.trained :], block, noise, module)
        (gradient,) = torch.autograd.grad(client_losses.sum(), parameters)
        optimizer.step(gradient, [learning_rate(training, step, total) for total in totals[:active]])
        local[:active, net.trained :] = statistics
        sums[:active] += client_losses.detach().cpu()
    return Trained((local - start).cpu(), (sums / torch.tensor(totals).clamp(min=1)).tolist())


def _stream(
    net: Net, training: Training, job: ExampleJob, seed: int, round: int, augment: Augment | None
) -> Iterator[tuple[Examples, Noise]]:
    """Yield every step's batch and dropout noise, which depend on seed, round, client and step only."""
    for step, places in enumerate(batch_indices(job.client, len(job.data), training, seed, round)):
        batch = job.data.take(places)
        if augment is not None:
            batch = augment(batch, rng(seed, f"augment of step {step}", round, job.client))
        draw = torch_rng(seed, f"dropout at step {step}", round, job.client)
        yield batch, net.noise(len(batch), batch.inputs.shape[-1], draw)


def losses(net: Net, stack: Tensor, block: Sequence[Examples], noise: Sequence[Noise] | None = None) -> Tensor:
    """Return each client's mean cross-entropy over its labels other than ``IGNORE`` in training mode, ``[K]``; 0 where none is.

    Args:
        net: the network.
        stack: the clients' states ``[K, D]``; differentiable in their parameters, running statistics have no gradient.
        block: one batch per client, of any sizes.
        noise: each client's for dropout, as :meth:`Net.noise` draws it; None is no dropout.
    """
    return losses_and_statistics(net, stack, block, noise)[0]


def losses_and_statistics(
    net: Net, stack: Tensor, block: Sequence[Examples], noise: Sequence[Noise] | None = None
) -> tuple[Tensor, Tensor]:
    """Return :func:`losses` and the running statistics after the pass, ``[K, D - trained]``."""
    parameters, statistics = stack[:, : net.trained], stack[:, net.trained :]
    return _losses(net, parameters, statistics, block, noise or [None] * len(block), net.training_copy())


def _losses(
    net: Net, parameters: Tensor, statistics: Tensor, block: Sequence[Examples], noise: Sequence[Noise], module: nn.Module
) -> tuple[Tensor, Tensor]:
    """See :func:`losses_and_statistics`; in one pass where the clients' batches can be stacked."""
    # The pass updates them in place, each in memory of its own: vmap would update a copy of a strided view.
    running = {
        name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in net.statistics.unflatten(statistics).items()
    }
    named = {**net.parameters.unflatten(parameters), **running}
    device = parameters.device
    if len(block) > 1 and _stackable(net, block):
        inputs, labels, drawn = _stack(net, block, noise)
        moved = tuple(each.to(device) for each in drawn)

        def of_client(own: dict[str, Tensor], inputs: Tensor, labels: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
            return _mean_loss(net.call(own, inputs, noise or None, module), labels)

        found = torch.vmap(of_client)(named, inputs.to(device), labels.to(device), moved)
        return found, _joined(running, statistics)
    each = []
    for k, (batch, drawn_k) in enumerate(zip(block, noise, strict=True)):
        moved_k = None if drawn_k is None else tuple(u.to(device) for u in drawn_k)
        logits = net.call({name: t[k] for name, t in named.items()}, batch.inputs.to(device), moved_k, module)
        each.append(_mean_loss(logits, batch.labels.to(device)))
    return torch.stack(each), _joined(running, statistics)


def _joined(running: dict[str, Tensor], like: Tensor) -> Tensor:
    return torch.cat([like[:, :0], *(t.flatten(1) for t in running.values())], dim=1)


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the labels that count; 0 where none does."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    labels = labels.flatten()
    total = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def _stackable(net: Net, block: Sequence[Examples]) -> bool:
    """Tell whether the batches are of one size, or can be padded to it without a change of what each client learns.

    Never where the module says ``alone``: it looks at values on its way, which vmap has no form for.
    """
    if getattr(net.module, "alone", False):
        return False
    shapes = {(tuple(batch.inputs.shape[1:]), tuple(batch.labels.shape[1:])) for batch in block}
    return len(shapes) == 1 and (not net.normalizes or len({len(batch) for batch in block}) == 1)


def _stack(net: Net, block: Sequence[Examples], noise: Sequence[Noise]) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return inputs ``[K, n, ...]``, labels and noise, smaller batches padded with zeros whose labels do not count."""
    count = max(len(batch) for batch in block)
    inputs = torch.stack([_padded(batch.inputs, (count, *batch.inputs.shape[1:]), 0) for batch in block])
    labels = torch.stack([_padded(batch.labels, (count, *batch.labels.shape[1:]), IGNORE) for batch in block])
    drawn = [own for own in noise if own is not None]
    if not drawn:
        return inputs, labels, ()
    shapes = [max(shape) for shape in zip(*([tuple(u.shape) for u in own] for own in drawn), strict=True)]
    return inputs, labels, tuple(torch.stack([_padded(own[i], shape, 0) for own in drawn]) for i, shape in enumerate(shapes))


def _padded(tensor: Tensor, shape: tuple[int, ...], value: int) -> Tensor:
    """Return the tensor in the first corner of one of ``shape`` that is ``value`` elsewhere."""
    if tuple(tensor.shape) == shape:
        return tensor
    whole = tensor.new_full(shape, value)
    whole[tuple(slice(side) for side in tensor.shape)] = tensor
    return whole


def _train_alone(
    net: Net, training: Training, start: Tensor, job: ExampleJob, seed: int, round: int, augment: Augment | None
) -> tuple[Tensor, float]:
    """Train one client the plain way: the reference."""
    module = copy.deepcopy(net.training_copy()).to(start)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, value in net.of_state(start).items():
            tensors[name].copy_(value)
    parameters = [p for p in module.parameters() if p.requires_grad]
    rate, decay = training.lr, training.weight_decay
    if training.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=training.momentum, weight_decay=decay)
    total, told = step_count(len(job.data), training), []
    for step, (batch, noise) in enumerate(_stream(net, training, job, seed, round, augment)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step, total)
        drawn = None if noise is None else tuple(u.to(start.device) for u in noise)
        logits = net.logits_of(module, batch.inputs.to(start.device), drawn, start.dtype)
        labels = batch.labels.to(start.device)
        counted = labels != IGNORE
        loss = nn.functional.cross_entropy(logits[counted], labels[counted]) if counted.any() else 0 * logits.sum()
        optimizer.zero_grad()
        loss.backward()
        if training.clip:
            nn.utils.clip_grad_norm_(parameters, training.clip)
        optimizer.step()
        told.append(loss.item())
    with torch.no_grad():
        local = torch.cat([tensors[slot.name].flatten() for slot in net.layout.slots])
    return (local - start).cpu(), sum(told) / max(1, len(told))
