"""What a run will take: memory from the shapes, time from one measured step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from undertow.config import Training
from undertow.core.threads import side_by_side
from undertow.models.causal_lm import CausalLM
from undertow.training.batched import losses
from undertow.training.budget import budget
from undertow.training.local import Job, steps


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        bytes: base, activations, optimiser states and all updates.
        seconds: of the local training of one round.
        rounds: so many are planned.
    """

    bytes: int
    seconds: float
    rounds: int

    def __str__(self) -> str:
        """One line for the user."""
        size = f"{self.bytes / 2**30:.1f} GiB" if self.bytes >= 2**30 else f"{self.bytes / 2**20:.0f} MiB"
        return (
            f"predicted: about {size} of memory; training takes {_spoken(self.seconds)} a round, "
            f"{_spoken(self.seconds * self.rounds)} for {self.rounds} rounds"
        )


def _spoken(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def forecast(base: CausalLM, training: Training, jobs: Sequence[Job], rounds: int) -> Forecast:
    """Predict memory from the shapes and time from one step of one chunk, measured here with adapters of zeros.

    The measured step is that of the first clients' first samples; a round is that many steps and chunks, shared among
    the threads that take chunks side by side.
    """
    plan = budget(base, training, jobs)
    wide = min(plan.chunk, len(jobs))
    block = [list(job.data[: training.batch_size]) for job in jobs[:wide]]
    took = 0.0
    chunks = -(-len(jobs) // wide)
    with side_by_side(chunks if base.packed is not None and base.device.type == "cpu" else 1) as workers:
        for _ in range(2):  # the first one warms up
            if base.device.type == "cuda":
                torch.cuda.synchronize(base.device)
            began = time.monotonic()
            stack = torch.zeros(wide, base.layout.size, device=base.device, requires_grad=True)
            torch.autograd.grad(losses(base, stack, block, recompute=plan.recompute).sum(), stack)
            if base.device.type == "cuda":
                torch.cuda.synchronize(base.device)
            took = time.monotonic() - began
    most = max(steps(job, training) for job in jobs)
    updates = 4 * 2 * len(jobs) * base.layout.size
    return Forecast(base.bytes + min(workers, chunks) * plan.bytes + updates, took * most * -(-chunks // workers), rounds)
