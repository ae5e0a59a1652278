"""All clients in one pass: their adapters are rows of one matrix over the shared frozen base.

One forward and one backward serve K clients. Row k of the gradient belongs to client k alone, because the loss
is the sum of the clients' own mean losses; clip and AdamW work row by row. The mathematics is that of
``sequential.py``; only the order of floating-point sums differs.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.config import Lora, Training
from undertow.core.threads import for_each
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM
from undertow.models.general import padded_losses
from undertow.models.lora import DropoutMask
from undertow.models.prefix_trie import pack
from undertow.models.token_loss import TokenLoss
from undertow.training.budget import budget
from undertow.training.local import Job, Trained, batches, dropout_mask, learning_rate, steps

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # AdamW's own defaults


@dataclass(frozen=True)
class Round:
    """One federation's round: its global adapter ``[D]``, its clients and its seed."""

    global_adapter: Tensor
    jobs: Sequence[Job]
    seed: int


def train(
    base: CausalLM,
    lora: Lora,
    training: Training,
    global_adapter: Tensor,
    jobs: list[Job],
    seed: int,
    round: int,
    loss: TokenLoss | None = None,
) -> Trained:
    """Train every client from the global adapter and return its update; arguments as in ``sequential.train``."""
    return train_side_by_side(base, lora, training, [Round(global_adapter, jobs, seed)], round, loss)[0]


def train_side_by_side(
    base: CausalLM,
    lora: Lora,
    training: Training,
    federations: Sequence[Round],
    round: int,
    loss: TokenLoss | None = None,
) -> list[Trained]:
    """Train the clients of several federations in common passes: the stacked dimension is federation x client.

    Each federation's result is that of its own :func:`train`, up to the order of floating-point sums.

    Args:
        base: the frozen model.
        lora: shape of the adapters.
        training: what a client does, the same in all federations.
        federations: their global adapters, clients and seeds.
        round: from 1, the same in all.
        loss: of a token, the same in all; None is cross-entropy.
    """
    members = [_Member(f, i, r.global_adapter, job, r.seed) for f, r in enumerate(federations) for i, job in enumerate(r.jobs)]
    # Clients with more steps come first, so that those still training are always the first rows.
    members.sort(key=lambda member: -steps(member.job, training))
    plan = budget(base, training, [member.job for member in members])
    chunks = [members[start : start + plan.chunk] for start in range(0, len(members), plan.chunk)]
    updates = [torch.empty(len(r.jobs), r.global_adapter.numel(), dtype=r.global_adapter.dtype) for r in federations]
    losses = [[0.0] * len(r.jobs) for r in federations]
    for chunk, (rows, means) in zip(chunks, _trained(base, lora, training, chunks, round, plan.recompute, loss), strict=True):
        for member, row, mean in zip(chunk, rows, means, strict=True):
            updates[member.federation][member.row] = row
            losses[member.federation][member.row] = mean
    return [Trained(u, found) for u, found in zip(updates, losses, strict=True)]


@dataclass(frozen=True)
class _Member:
    """One client of one federation."""

    federation: int
    row: int
    start: Tensor
    job: Job
    seed: int


def _trained(
    base: CausalLM,
    lora: Lora,
    training: Training,
    chunks: Sequence[Sequence[_Member]],
    round: int,
    recompute: bool,
    loss: TokenLoss | None,
) -> list[tuple[Tensor, list[float]]]:
    """Train every chunk; on a CPU several side by side. The chunks, and so the bits, do not depend on the number of threads."""
    stop = threading.Event()

    def train_chunk(members: Sequence[_Member]) -> tuple[Tensor, list[float]]:
        return _train_chunk(base, lora, training, members, round, recompute, stop, loss)

    # The general path hooks its adapters into the one model and can serve only one chunk at a time.
    general = base.packed is None or lora.dropout > 0
    return for_each(train_chunk, chunks, stop, alone=general or base.device.type != "cpu")


def _train_chunk(
    base: CausalLM,
    lora: Lora,
    training: Training,
    members: Sequence[_Member],
    round: int,
    recompute: bool,
    stop: threading.Event,
    loss: TokenLoss | None,
) -> tuple[Tensor, list[float]]:
    starts = torch.stack([member.start for member in members]).to(base.device)
    local = starts.clone()  # [K, D]
    optimizer = RowOptimizer(training, local)
    totals = [steps(member.job, training) for member in members]
    streams = [batches(member.job, training, member.seed, round) for member in members]
    loss_sums = torch.zeros(len(members), dtype=torch.float64)
    for step in range(max(totals)):
        if stop.is_set():
            break
        active = sum(total > step for total in totals)
        block = [next(stream) for stream in streams[:active]]
        stack = local[:active].clone().requires_grad_()
        mask = _dropout(lora.dropout, block, members[:active], round, step) if lora.dropout else None
        client_losses = losses(base, stack, block, mask, recompute=recompute, loss=loss)
        (gradient,) = torch.autograd.grad(client_losses.sum(), stack)
        rates = [learning_rate(training, step, total) for total in totals[:active]]
        optimizer.step(gradient, rates)
        loss_sums[:active] += client_losses.detach().cpu()
    return (local - starts).cpu(), (loss_sums / torch.tensor(totals)).tolist()


def losses(
    base: CausalLM,
    stack: Tensor,
    block: list[list[Encoded]],
    mask: DropoutMask | None = None,
    *,
    recompute: bool = False,
    loss: TokenLoss | None = None,
) -> Tensor:
    """Return each client's mean loss over the answer tokens of its batch, ``[K]``, by the fastest path the base allows.

    Args:
        base: the frozen model.
        stack: the clients' adapters ``[K, D]``.
        block: one batch per client.
        mask: LoRA's dropout.
        recompute: keep only the layers' inputs for the backward (packed path; the general one is cut into smaller chunks).
        loss: of a token; None is cross-entropy.
    """
    if base.packed is not None and mask is None:
        packed = pack(block, base.pad_id, base.packed.groups(block[0])).to(base.device)
        return base.packed.losses(stack, packed, recompute=recompute, loss=loss)
    if base.trees is not None and mask is None:
        return base.trees.losses(stack, pack(block, base.pad_id, base.trees.groups(block[0])).to(base.device), loss=loss)
    return padded_losses(base.model, base.layout, stack, block, base.pad_id, base.head, mask=mask, loss=loss)


class RowOptimizer:
    """Clip and optimiser over rows of a matrix: row k is exactly what torch's own does for client k alone.

    Clip: g ← g·min(1, c / (‖g‖₂ + 1e-6)). AdamW (Loshchilov & Hutter 2019, Algorithm 2): m ← β₁m + (1-β₁)g,
    v ← β₂v + (1-β₂)g², θ ← θ - ηλθ - η·m̂ / (√v̂ + ε). SGD: v ← μv + g + λθ, θ ← θ - ηv. Rows that end earlier must
    be the last ones.
    """

    def __init__(self, training: Training, parameters: Tensor) -> None:
        self.training, self.parameters, self.steps = training, parameters, 0
        if training.optimizer == "adamw":
            self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        elif training.momentum:
            self.first = torch.zeros_like(parameters)

    @torch.no_grad()
    def step(self, gradient: Tensor, rates: list[float]) -> None:
        """Update the first rows in place: ``gradient [k, D]``, one learning rate per row."""
        self.steps += 1
        k, decay = len(rates), self.training.weight_decay
        rows = self.parameters[:k]
        rate = torch.tensor(rates, dtype=rows.dtype, device=rows.device)[:, None]
        if self.training.clip:
            norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient = gradient * (self.training.clip / (norms + 1e-6)).clamp(max=1.0)
        if self.training.optimizer == "sgd":
            gradient = gradient + decay * rows
            if self.training.momentum:
                gradient = self.first[:k].mul_(self.training.momentum).add_(gradient)
            rows -= rate * gradient
            return
        if decay:
            rows *= 1 - rate * decay
        first, second = self.first[:k], self.second[:k]
        first.lerp_(gradient, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        scale = (second / (1 - _BETA2**self.steps)).sqrt_().add_(_EPS)
        rows -= rate / (1 - _BETA1**self.steps) * (first / scale)


def _dropout(p: float, block: list[list[Encoded]], members: Sequence[_Member], round: int, step: int) -> DropoutMask:
    """Return the mask function: each client's own mask, laid into the common padding."""
    count = max(len(rows) for rows in block)
    lengths = [max(len(row.prompt) + len(row.answer) for row in rows) for rows in block]

    def mask(module: str, x: Tensor) -> Tensor:
        whole = torch.ones(len(block), count, max(lengths), x.shape[-1])
        for k, (rows, length, member) in enumerate(zip(block, lengths, members, strict=True)):
            own = dropout_mask(p, member.seed, round, member.job.client, step, module, (len(rows), length, x.shape[-1]))
            whole[k, : len(rows), max(lengths) - length :] = own
        return whole.view(len(block), -1, x.shape[-1]).to(x)

    return mask
