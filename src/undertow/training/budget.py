"""How many clients train side by side, and what a run will take: memory from the shapes, time from one measured step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from undertow.config import Training
from undertow.models.causal_lm import CausalLM, total_bytes
from undertow.training.local import Job, steps

#: Clients a chunk on a CPU: beyond this the time per client no longer falls, and memory is all that more would cost.
_CPU_CHUNK = 8

#: Share of the memory beside the base that activations and optimiser states may take.
_SHARE = 0.5


@dataclass(frozen=True)
class Budget:
    """What the memory allows.

    Attributes:
        chunk: clients side by side in one pass.
        recompute: whether layers are computed twice to keep fewer activations.
        bytes: predicted peak of one chunk: activations, gradients, optimiser states; without the base.
    """

    chunk: int
    recompute: bool
    bytes: int


def budget(base: CausalLM, training: Training, jobs: Sequence[Job]) -> Budget:
    """Choose the chunk of clients and whether to recompute activations.

    Counted from the machine's whole memory, not from what is free just now: the chunks decide the order of
    floating-point sums, and the same config must give the same bits tomorrow. Nor does it depend on the number of
    threads. Activations are recomputed where asked for, or where not even one client fits.
    """
    room = _SHARE * max(0, total_bytes(base.device) - base.bytes)
    longest = max((len(row.prompt) + len(row.answer) for job in jobs for row in job.data), default=1)
    whole, thin = (_client_bytes(base, training, longest, recompute) for recompute in (False, True))
    recompute = base.packed is not None and (training.recompute == "on" or (training.recompute == "auto" and whole > room))
    each = thin if recompute else whole
    fits = max(1, int(room // each))
    if training.client_chunk:
        chunk = min(training.client_chunk, len(jobs))
    elif base.device.type != "cpu":
        chunk = min(len(jobs), fits)
    else:
        # The time per client is flat from about five clients up; two chunks at least give two cores work.
        count = max(-(-len(jobs) // _CPU_CHUNK), min(2, len(jobs)))
        chunk = min(fits, -(-len(jobs) // count))
    return Budget(max(1, chunk), recompute, max(1, chunk) * each)


def _client_bytes(base: CausalLM, training: Training, longest: int, recompute: bool) -> int:
    config = base.model.config
    hidden, layers = getattr(config, "hidden_size", 1024), getattr(config, "num_hidden_layers", 12)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = getattr(config, "num_attention_heads", 8)
    width = 12 * hidden + 4 * inner + heads * min(longest, 1024)
    tokens = training.batch_size * longest
    activations = tokens * (width + layers * hidden if recompute else layers * width)
    # The adapter appears as parameters, gradient, two moments and two temporaries, in float32.
    return int(base.model.dtype.itemsize) * activations + 4 * (
        tokens * getattr(config, "vocab_size", 32_000) // 2 + 6 * base.layout.size
    )


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
    from undertow.core.threads import side_by_side
    from undertow.training.batched import losses

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
