"""What both trainers share: a client's work for one round, its batches, its learning rates, its dropout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.config import Training
from undertow.core.rng import rng, torch_rng
from undertow.data.template import Encoded


@dataclass(frozen=True)
class Job:
    """One client's local training in one round: ``client`` index and its tokenised samples."""

    client: int
    data: Sequence[Encoded]


@dataclass(frozen=True)
class Trained:
    """What a round of local training gives.

    Attributes:
        updates: ``U [K, D]`` float32 on the CPU, row k = local adapter of job k minus the global one.
        losses: mean training loss of each client over its steps.
    """

    updates: Tensor
    losses: list[float]


def batches(job: Job, training: Training, seed: int, round: int) -> Iterator[list[Encoded]]:
    """Yield the client's mini-batches of one round; the last one of an epoch may be smaller."""
    for places in batch_indices(job.client, len(job.data), training, seed, round):
        yield [job.data[i] for i in places]


def batch_indices(client: int, count: int, training: Training, seed: int, round: int) -> Iterator[NDArray[np.int64]]:
    """Yield which of a client's ``count`` samples make each mini-batch of one round."""
    for epoch in range(training.local_epochs):
        order = rng(seed, f"batches of epoch {epoch}", round, client).permutation(count)
        for start in range(0, count, training.batch_size):
            yield order[start : start + training.batch_size]


def steps(job: Job, training: Training) -> int:
    """Number of optimiser steps of one round."""
    return step_count(len(job.data), training)


def step_count(count: int, training: Training) -> int:
    """Number of optimiser steps of one round over ``count`` samples."""
    return training.local_epochs * math.ceil(count / training.batch_size)


def learning_rate(training: Training, step: int, total: int) -> float:
    """Rate of step ``step`` (from 0) of ``total``: constant, or lr·(1 - step/total), restarted each round."""
    return training.lr if training.schedule == "constant" else training.lr * (1 - step / total)


def dropout_mask(p: float, seed: int, round: int, client: int, step: int, module: str, shape: tuple[int, ...]) -> Tensor:
    """Return LoRA dropout's keep-mask, scaled by 1/(1-p): the same for both trainers, whatever the batch around it.

    ``shape`` is ``[rows, columns, in]`` of the client's own batch, columns counted from the right.
    """
    generator = torch_rng(seed, f"dropout of {module} at step {step}", round, client)
    return (torch.rand(shape, generator=generator) >= p).to(torch.float32) / (1 - p)
