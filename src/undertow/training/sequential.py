"""The plain reference: clients one after another, with peft, torch's optimisers and nothing clever.

It is the oracle of the batched trainer, and the shortest description of what a client does (FIT section 2.1,
step 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from undertow.config import Lora, Training
from undertow.data.examples import IGNORE
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM
from undertow.models.padding import pad, pad_weights, weighted
from undertow.models.token_loss import TokenLoss, token_losses
from undertow.training.local import Job, Trained, batches, dropout_mask, learning_rate, steps


class SeededDropout(nn.Module):
    """LoRA's dropout with a mask that depends on seed, round, client, step and module only."""

    def __init__(self, p: float, name: str) -> None:
        super().__init__()
        self.p, self.name = p, name
        self.place = (0, 0, 0, 0)  # seed, round, client, step

    def forward(self, x: Tensor) -> Tensor:
        """Drop and rescale ``x [rows, columns, in]``."""
        return x * dropout_mask(self.p, *self.place, self.name, tuple(x.shape)).to(x)


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
    """Train every client from the global adapter and return its update.

    Args:
        base: the frozen model.
        lora: shape of the adapter.
        training: what a client does.
        global_adapter: ``[D]``, what the server sent.
        jobs: the clients of this round.
        seed: of the run.
        round: from 1.
        loss: of a token; None is cross-entropy.
    """
    peft_model, parameters, dropouts = _with_peft(base, lora)
    try:
        rows, losses = [], []
        for job in jobs:
            _put(base, parameters, global_adapter)
            losses.append(_train_client(base, peft_model, parameters, dropouts, training, job, seed, round, loss))
            local = torch.cat([p.detach().cpu().flatten() for p in parameters])
            rows.append(local.to(global_adapter.dtype) - global_adapter)
    finally:
        peft_model.unload()
    return Trained(torch.stack(rows), losses)


def _train_client(
    base: CausalLM,
    model: Any,
    parameters: list[nn.Parameter],
    dropouts: list[SeededDropout],
    training: Training,
    job: Job,
    seed: int,
    round: int,
    kind: TokenLoss | None,
) -> float:
    if training.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay)
    total, losses = steps(job, training), []
    for step, rows in enumerate(batches(job, training, seed, round)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step, total)
        for dropout in dropouts:
            dropout.place = (seed, round, job.client, step)
        ids, mask, labels = (tensor.to(base.device) for tensor in pad(rows, base.pad_id)[:3])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        loss = _loss(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), rows, kind)
        optimizer.zero_grad()
        loss.backward()
        if training.clip:
            nn.utils.clip_grad_norm_(parameters, training.clip)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def _loss(logits: Tensor, targets: Tensor, rows: list[Encoded], kind: TokenLoss | None) -> Tensor:
    """Return the mean loss over the answer tokens of a padded batch, its last dimension flattened."""
    if kind is None and not weighted(rows):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return nn.functional.cross_entropy(logits.to(dtype), targets, ignore_index=IGNORE)
    each = token_losses(logits, targets, kind, IGNORE)
    weights = pad_weights(rows, count=len(rows), length=len(targets) // len(rows) + 1)[:, 1:].flatten()
    return (each * weights.to(each)).sum() / (targets != IGNORE).sum()


def _with_peft(base: CausalLM, lora: Lora) -> tuple[Any, list[nn.Parameter], list[SeededDropout]]:
    from peft import LoraConfig, get_peft_model

    modules = [module for module, _, _ in base.layout.pairs(torch.zeros(base.layout.size))]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=modules,
        bias="none",
        task_type="CAUSAL_LM",  # type: ignore[arg-type]
    )
    model = get_peft_model(base.model, config)
    parameters, dropouts = [], []
    for name in modules:
        layer = model.base_model.model.get_submodule(name)
        if base.model.dtype == torch.float64:
            layer.lora_A["default"].double()
            layer.lora_B["default"].double()
        if lora.dropout:
            layer.lora_dropout["default"] = SeededDropout(lora.dropout, name)
            dropouts.append(layer.lora_dropout["default"])
        parameters += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    return model, parameters, dropouts


def _put(base: CausalLM, parameters: list[nn.Parameter], flat: Tensor) -> None:
    with torch.no_grad():
        for slot, parameter in zip(base.layout.slots, parameters, strict=True):
            parameter.copy_(flat[slot.start : slot.start + slot.size].view(slot.shape))
