"""What defenses share that look at a network with the server's synthetic data: the data, and tuning on them."""

from __future__ import annotations

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.data.examples import Examples
from undertow.defenses.contexts import NetSetting


def synthetic_data(name: str, network: NetSetting) -> Examples:
    """Return the synthetic data of a network's task.

    Args:
        name: of the defense, for the error.
        network: what the server knows.

    Raises:
        UserError: there are none.
    """
    if network.synthetic is None or not len(network.synthetic):
        raise UserError(f"{name} needs synthetic data on this task; set synthetic.generator to one of `undertow list generators`")
    return network.synthetic


def tune_network(network: NetSetting, start: Tensor, data: Examples, passes: int, *, keep: Tensor | None = None) -> Tensor:
    """Return the state ``[D]`` after passes over some data, as a client would train, dropout left out.

    Args:
        network: its network, training options and seed are used.
        start: the state ``[D]`` to begin with.
        data: the examples.
        passes: over all of them, >= 0.
        keep: ``[D]`` of 0 and 1; coordinates with 0 stay as they are.
    """
    from undertow.training.batched import RowOptimizer
    from undertow.training.local import batch_indices, learning_rate, step_count
    from undertow.training.stacked import losses_and_statistics

    if passes < 1:
        return start
    decay = network.training.weight_decay if keep is None else 0.0
    training = network.training.model_copy(update={"local_epochs": passes, "weight_decay": decay})
    net = network.net
    local = start[None].to(next(net.module.parameters()).device).clone()
    optimizer, total = RowOptimizer(training, local[:, : net.trained]), step_count(len(data), training)
    # Round 0, which no client trains in: an order of batches of its own.
    for step, places in enumerate(batch_indices(0, len(data), training, network.seed, 0)):
        parameters = local[:, : net.trained].clone().requires_grad_()
        stack = torch.cat([parameters, local[:, net.trained :]], dim=1)
        losses, statistics = losses_and_statistics(net, stack, [data.take(places)])
        (gradient,) = torch.autograd.grad(losses.sum(), parameters)
        if keep is not None:
            gradient = gradient * keep[: net.trained].to(gradient)
        optimizer.step(gradient, [learning_rate(training, step, total)])
        local[:, net.trained :] = statistics.detach()
    return local[0].to(start.device)
