"""What a frozen model shows of single samples: the states its head reads, and the gradient of one matrix for each sample.

Nothing is trained. Rows go side by side, their common prefixes are computed once where the base allows it, and only the layers
that a gradient passes through are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from undertow.core.layout import Layout
from undertow.data.examples import IGNORE
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM
from undertow.models.general import TreeModel
from undertow.models.lora import adapted
from undertow.models.padding import pad
from undertow.models.prefix_trie import pack
from undertow.models.token_loss import token_losses
from undertow.training.batched import losses

#: Rows side by side.
_ROWS = 32


def states(base: CausalLM, rows: Sequence[Encoded], adapter: Tensor | None = None) -> list[Tensor]:
    """Return what the output head reads where it predicts each answer token: for each row ``[tokens, d]`` float32 on the CPU.

    The last state of a text is that of its last token: ``Encoded(text, (any,))``.

    Args:
        base: the frozen model.
        rows: tokenised samples; their weights are not looked at.
        adapter: ``[D]``; None = the base alone.
    """
    found = [torch.empty(0)] * len(rows)
    with torch.no_grad():
        for places, batch in _batches(rows):
            told = _states(base, batch, adapter).to("cpu", torch.float32)
            for i, own in zip(places, told.split([len(row.answer) for row in batch]), strict=True):
                found[i] = own.clone()
    return found


def head_errors(base: CausalLM, rows: Sequence[Encoded]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield for each row its index, ``E [tokens, V]`` and ``H [tokens, d]``, float32 on the CPU, in no particular order.

    Eᵀ H is the gradient of the row's mean cross-entropy by the weight of the output head: E holds the derivative by the head's
    outputs at each answer token, H what it reads there. Where the head shares its weight with the embedding of the input,
    that is the head's part. No adapter.
    """
    for places, batch in _batches(rows):
        errors, read = _head_errors(base, batch)
        sizes = [len(row.answer) for row in batch]
        for i, e, h in zip(places, errors.cpu().split(sizes), read.cpu().split(sizes), strict=True):
            yield i, e.float() / len(e), h.float()


def lora_gradients(base: CausalLM, module: str, down: Tensor, rows: Sequence[Encoded]) -> Tensor:
    """Return for each row the gradient of its mean cross-entropy by one module's B, ``[n, out·r]`` float32 on the CPU.

    The adapter is one with B = 0 in all modules, as before round 1: no other module's adapter changes anything then, and only A of
    this one matters. Each row has an adapter of its own in a common pass, so that the gradient comes row by row, and the
    backward ends at the module.

    Args:
        base: the frozen model.
        module: an adapted module, by its full name.
        down: its A, ``[r, in]``.
        rows: tokenised samples.
    """
    outputs = next(slot.shape[0] for slot in base.layout.slots if slot.name == f"{module}.lora_B")
    rank = down.shape[0]
    layout = Layout.of({f"{module}.lora_A": tuple(down.shape), f"{module}.lora_B": (outputs, rank)}, base.layout.scale)
    alone = _with_layout(base, layout)
    start = torch.cat([down.detach().flatten(), torch.zeros(outputs * rank, dtype=down.dtype)]).to(base.device)
    found = torch.empty(len(rows), outputs * rank)
    # Rows of about one length stand together: less padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].answer))
    for first in range(0, len(order), _ROWS):
        places = order[first : first + _ROWS]
        stack = start.expand(len(places), -1).clone().requires_grad_()
        total = losses(alone, stack, [[rows[i]] for i in places]).sum()
        (gradient,) = torch.autograd.grad(total, stack)
        found[places] = gradient[:, down.numel() :].to("cpu", torch.float32)
    return found


def _with_layout(base: CausalLM, layout: Layout) -> CausalLM:
    return replace(
        base,
        layout=layout,
        packed=None if base.packed is None else base.packed.for_layout(layout),
        trees=None if base.trees is None else TreeModel(base.model, layout, base.head),
    )


def _batches(rows: Sequence[Encoded]) -> Iterator[tuple[list[int], list[Encoded]]]:
    # Sorted as a trie sorts, so that its loss terms come row by row; stable, so that equal rows keep their order.
    order = sorted(range(len(rows)), key=lambda i: (*rows[i].prompt, *rows[i].answer[:-1]))
    for first in range(0, len(order), _ROWS):
        places = order[first : first + _ROWS]
        yield places, [replace(rows[i], weights=None) for i in places]


def _states(base: CausalLM, batch: list[Encoded], adapter: Tensor | None) -> Tensor:
    """Return the states of all answer tokens of a batch, row by row, ``[E, d]``."""
    stack = torch.zeros(1, base.layout.size, device=base.device) if adapter is None else adapter[None].to(base.device)
    if base.packed is not None:
        return base.packed.states(stack, pack([batch], base.pad_id, base.packed.groups(batch)).to(base.device))
    with _watched(base) as seen:
        answered, _ = _padded(base, batch, stack)
    return _tail(seen["read"], answered)[answered]


def _head_errors(base: CausalLM, batch: list[Encoded]) -> tuple[Tensor, Tensor]:
    stack = torch.zeros(1, base.layout.size, device=base.device)
    if base.packed is not None:
        packed = pack([batch], base.pad_id, base.packed.groups(batch)).to(base.device)
        with torch.no_grad():
            read = base.packed.states(stack, packed)
            return base.packed.head.errors(read, packed.targets), read
    # What an architecture does to the head's outputs, such as a soft cap, is differentiated too.
    with torch.enable_grad(), _watched(base) as seen:
        answered, each = _padded(base, batch, stack)
        (gradient,) = torch.autograd.grad(each.sum(), seen["told"])
    return _tail(gradient, answered)[answered].float(), _tail(seen["read"], answered)[answered]


@contextmanager
def _watched(base: CausalLM) -> Iterator[dict[str, Tensor]]:
    """Within this context the general model leaves what its head ``read``, and what it ``told``, a leaf."""
    seen: dict[str, Tensor] = {}

    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["read"] = inputs[0].detach()
        seen["told"] = output.detach().requires_grad_(torch.is_grad_enabled())
        return seen["told"]

    handle = base.model.get_output_embeddings().register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _padded(base: CausalLM, batch: list[Encoded], stack: Tensor) -> tuple[Tensor, Tensor]:
    """Return where answer tokens are predicted, ``[rows, columns]`` booleans, and their cross-entropies ``[E]``."""
    ids, attention, labels, tail = pad(batch, base.pad_id)
    ids, attention = ids.to(base.device), attention.to(base.device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    keep = {"logits_to_keep": tail} if base.logits_to_keep else {}
    with adapted(base.model, base.layout, stack):
        out = base.model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False, **keep)
    targets = labels[:, -tail:][:, 1:].to(out.logits.device)
    answered = targets != IGNORE
    return answered, token_losses(out.logits[:, -tail:][:, :-1][answered], targets[answered], None)


def _tail(wide: Tensor, answered: Tensor) -> Tensor:
    """Return the columns of ``wide [rows, columns, ...]`` that ``answered`` speaks of: all but the last of the end."""
    return wide[:, -answered.shape[1] - 1 :][:, :-1]
