"""All clients in one pass: their adapters are rows of one matrix over the shared frozen base.

One forward and one backward serve K clients. Row k of the gradient belongs to client k alone, because the loss
is the sum of the clients' own mean losses; clip and AdamW work row by row. The mathematics is that of
``sequential.py``; only the order of floating-point sums differs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from undertow.config import Lora, Training
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM, free_bytes
from undertow.models.lora import DropoutMask, adapted
from undertow.training.local import IGNORE, Job, Trained, batches, dropout_mask, learning_rate, pad, steps
from undertow.training.trie import pack

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # AdamW's own defaults


def train(
    base: CausalLM, lora: Lora, training: Training, global_adapter: Tensor, jobs: list[Job], seed: int, round: int
) -> Trained:
    """Train every client from the global adapter and return its update; arguments as in ``sequential.train``."""
    size = training.client_chunk or _chunk_that_fits(base, training, jobs)
    # Clients with more steps come first, so that those still training are always the first rows.
    order = sorted(range(len(jobs)), key=lambda i: -steps(jobs[i], training))
    updates = torch.empty(len(jobs), global_adapter.numel(), dtype=global_adapter.dtype)
    losses = [0.0] * len(jobs)
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        rows, means = _train_chunk(base, lora, training, global_adapter, [jobs[i] for i in chunk], seed, round)
        for i, row, loss in zip(chunk, rows, means, strict=True):
            updates[i] = row
            losses[i] = loss
    return Trained(updates, losses)


def _train_chunk(
    base: CausalLM, lora: Lora, training: Training, global_adapter: Tensor, jobs: list[Job], seed: int, round: int
) -> tuple[Tensor, list[float]]:
    start = global_adapter.to(base.device)
    local = start.repeat(len(jobs), 1)  # [K, D]
    optimizer = RowOptimizer(training, local)
    totals = [steps(job, training) for job in jobs]
    streams = [batches(job, training, seed, round) for job in jobs]
    loss_sums = torch.zeros(len(jobs), dtype=torch.float64)
    for step in range(max(totals)):
        active = sum(total > step for total in totals)
        block = [next(stream) for stream in streams[:active]]
        stack = local[:active].clone().requires_grad_()
        mask = _dropout(lora.dropout, block, [job.client for job in jobs[:active]], seed, round, step) if lora.dropout else None
        client_losses = losses(base, stack, block, mask)
        (gradient,) = torch.autograd.grad(client_losses.sum(), stack)
        rates = [learning_rate(training, step, total) for total in totals[:active]]
        optimizer.step(gradient, rates)
        loss_sums[:active] += client_losses.detach().cpu()
    return (local - start).cpu(), (loss_sums / torch.tensor(totals)).tolist()


def losses(base: CausalLM, stack: Tensor, block: list[list[Encoded]], mask: DropoutMask | None = None) -> Tensor:
    """Return each client's mean loss over the answer tokens of its batch, ``[K]``.

    Llama-family bases take the packed path, which computes common prefixes once; it has no LoRA dropout, whose masks
    differ between repeats of a prefix.

    Args:
        base: the frozen model.
        stack: the clients' adapters ``[K, D]``.
        block: one batch per client.
        mask: LoRA's dropout.
    """
    if base.packed is not None and mask is None:
        return base.packed.losses(stack, pack(block, base.pad_id, _groups(block)).to(base.device))
    count = max(len(rows) for rows in block)
    length = max(len(row.prompt) + len(row.answer) for rows in block for row in rows)
    padded = [pad(rows, base.pad_id, count=count, length=length) for rows in block]
    ids, attention, labels = (torch.cat([p[i] for p in padded]).to(base.device) for i in range(3))  # type: ignore[misc]
    tail = max(p[3] for p in padded)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    keep = {"logits_to_keep": tail} if base.logits_to_keep else {}
    with adapted(base.model, base.layout, stack, mask):
        logits = base.model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False, **keep).logits
    logits, labels = logits[:, -tail:][:, :-1], labels[:, -tail:][:, 1:]  # [K * count, tail - 1, V]
    kind = torch.promote_types(logits.dtype, torch.float32)
    each = nn.functional.cross_entropy(logits.flatten(0, 1).to(kind), labels.flatten(), ignore_index=IGNORE, reduction="none")
    tokens = (labels != IGNORE).view(len(block), -1).sum(1)
    return each.view(len(block), -1).sum(1) / tokens


def _groups(block: list[list[Encoded]]) -> int:
    """Tries per client: one for small batches; larger ones are cut so that attention stays short."""
    return max(1, round(max(len(rows) for rows in block) / 8))


class RowOptimizer:
    """Clip and optimiser over rows of a matrix: row k is exactly what torch's own does for client k alone.

    Clip: g ← g·min(1, c / (‖g‖₂ + 1e-6)). AdamW (Loshchilov & Hutter 2019, Algorithm 2): m ← β₁m + (1-β₁)g,
    v ← β₂v + (1-β₂)g², θ ← θ - ηλθ - η·m̂ / (√v̂ + ε). Rows that end earlier must be the last ones.
    """

    def __init__(self, training: Training, parameters: Tensor) -> None:
        self.training, self.parameters, self.steps = training, parameters, 0
        if training.optimizer == "adamw":
            self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)

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
            rows -= rate * (gradient + decay * rows)
            return
        if decay:
            rows *= 1 - rate * decay
        first, second = self.first[:k], self.second[:k]
        first.lerp_(gradient, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        scale = (second / (1 - _BETA2**self.steps)).sqrt_().add_(_EPS)
        rows -= rate / (1 - _BETA1**self.steps) * (first / scale)


def _dropout(p: float, block: list[list[Encoded]], clients: list[int], seed: int, round: int, step: int) -> DropoutMask:
    """Return the mask function: each client's own mask, laid into the common padding."""
    count = max(len(rows) for rows in block)
    lengths = [max(len(row.prompt) + len(row.answer) for row in rows) for rows in block]

    def mask(module: str, x: Tensor) -> Tensor:
        whole = torch.ones(len(block), count, max(lengths), x.shape[-1])
        for k, (rows, length, client) in enumerate(zip(block, lengths, clients, strict=True)):
            own = dropout_mask(p, seed, round, client, step, module, (len(rows), length, x.shape[-1]))
            whole[k, : len(rows), max(lengths) - length :] = own
        return whole.view(len(block), -1, x.shape[-1]).to(x)

    return mask


def _chunk_that_fits(base: CausalLM, training: Training, jobs: list[Job]) -> int:
    """Return how many clients' activations and optimiser states fit into half of the free memory."""
    config = base.model.config
    hidden, layers = getattr(config, "hidden_size", 1024), getattr(config, "num_hidden_layers", 12)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = getattr(config, "num_attention_heads", 8)
    longest = max(len(row.prompt) + len(row.answer) for job in jobs for row in job.data)
    width = 16 * hidden + 6 * inner + 2 * heads * longest
    tokens = training.batch_size * longest
    # The adapter appears as parameters, gradient, two moments and two temporaries.
    per_client = 4 * (tokens * (layers * width + 3 * getattr(config, "vocab_size", 32_000) // 4) + 6 * base.layout.size)
    return max(1, min(len(jobs), int(0.5 * free_bytes(base.device) // per_client)))
