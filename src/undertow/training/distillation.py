"""Ensemble distillation on unlabelled data: the server's fusion of clients' models (FedDF, Lin et al. 2020, Algorithm 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undertow.config import Synthetic
from undertow.core.rng import rng
from undertow.data.examples import Examples
from undertow.models.net import Net

#: Share of the synthetic samples that judge a student and are not distilled on.
HELD = 0.1

#: Batches between two looks at the held-out samples; FedDF's code looks every 100 of at most 10,000.
_LOOK = 10

#: Largest norm of a gradient, as FedDF's code.
_CLIP = 5.0


@torch.no_grad()
def ensemble(teachers: Sequence[tuple[Net, Tensor]], inputs: Tensor) -> Tensor:
    """Return the mean of the teachers' logits, ``[n, C]`` (FedDF, Eq. 2: ``avg_logits``).

    Args:
        teachers: networks with their states ``[D]``, at least one; networks may differ, their classes may not.
        inputs: ``[n, ...]``.
    """
    total = torch.zeros(0)
    for net, state in teachers:
        logits = net.logits(state, inputs)
        total = logits if total.numel() == 0 else total + logits
    return total / len(teachers)


def divergence(taught: Tensor, found: Tensor) -> Tensor:
    """Return KL(softmax(taught) ‖ softmax(found)), the mean over rows ``[n, C]`` of logits, at temperature 1."""
    return nn.functional.kl_div(found.log_softmax(-1), taught.log_softmax(-1), log_target=True, reduction="batchmean")


def distill(
    net: Net, start: Tensor, taught: Tensor, data: Examples, options: Synthetic, seed: int, round: int
) -> tuple[Tensor, dict[str, Any]]:
    """Train a student to answer as the ensemble does, and return the best state ``[D]`` that was seen, and a report.

    L = KL(softmax(mean_k f_k(x)) ‖ softmax(f(x))) over batches of synthetic inputs, by Adam with a cosine rate and gradients
    clipped to norm 5. A tenth of the samples is held out: the state with the best accuracy on it (their synthetic labels) is
    taken, the start included, and training ends after ``distill_patience`` batches without a better one. With no sample to hold
    out the last state is taken.

    Args:
        net: the student's network.
        start: its state ``[D]``, the aggregate of the clients that have this network.
        taught: the ensemble's logits ``[n, C]`` on ``data``, row by row.
        data: synthetic samples; their labels only judge.
        options: ``distill_*`` are used.
        seed: of the run.
        round: from 1.
    """
    held = rng(seed, "synthetic samples held out").permutation(len(data))[: int(HELD * len(data))]
    kept = sorted({*range(len(data))} - {*held.tolist()})
    judged = data.take(held)
    module = net.training_copy()
    local = start.clone()
    parameters = local[: net.trained].clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=options.distill_lr)
    first = best = _accuracy(net, local, judged)
    chosen, at, told = local.clone(), 0, []
    order: list[int] = []
    step = 0
    for step in range(1, options.distill_steps + 1):
        if not order:
            order = rng(seed, f"distillation from step {step}", round).permutation(kept).tolist()
        batch, order = order[: options.distill_batch], order[options.distill_batch :]
        for group in optimizer.param_groups:
            group["lr"] = options.distill_lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / options.distill_steps))
        # Running means and variances are updated in place by the pass.
        running = {name: t.clone() for name, t in net.statistics.unflatten(local[net.trained :]).items()}
        inputs = data.inputs[batch].to(start.device)
        logits = net.call({**net.parameters.unflatten(parameters), **running}, inputs, None, module)
        loss = divergence(taught[batch].to(start.device), logits)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([parameters], _CLIP)
        optimizer.step()
        local[: net.trained] = parameters.detach()
        if running:
            local[net.trained :] = torch.cat([t.flatten() for t in running.values()])
        told.append(loss.item())
        if step % _LOOK and step < options.distill_steps:
            continue
        found = _accuracy(net, local, judged)
        if found is None or best is None or found > best:
            chosen, best, at = local.clone(), found, step
        elif options.distill_patience and step - at >= options.distill_patience:
            break
    report = {"steps": step, "taken": at, "loss": [told[0], told[-1]], "held_out": len(judged), "accuracy": [first, best]}
    return chosen, report


def _accuracy(net: Net, state: Tensor, judged: Examples) -> float | None:
    """Return the share of held-out samples that the student labels as they are; None without any."""
    if not len(judged):
        return None
    return float((net.logits(state, judged.inputs).argmax(-1).cpu() == judged.labels).double().mean())
