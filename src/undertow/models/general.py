"""The path of architectures that have no fast form: the transformers model itself, adapters of all clients hung in by hooks.

Where the model takes an attention mask per pair of tokens, a client's batch goes in as token tries, so that common
prefixes are computed once here too; whether it does so rightly is tried when a base is loaded. Otherwise, and with
LoRA dropout, whose masks differ between repeats of a prefix, samples are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.data.examples import IGNORE
from undertow.data.template import Encoded
from undertow.models.head import GivenLogits, Head
from undertow.models.lora import DropoutMask, adapted
from undertow.models.padding import pad, pad_weights, weighted
from undertow.models.prefix_trie import Packed, cheapest_cut, pack
from undertow.models.token_loss import TokenLoss

#: A window up to this long is outgrown by one text of a trial, which has at most so many tokens before.
_SHORT_WINDOW, _BEFORE = 512, 16


def keep_inputs_contiguous(model: nn.Module) -> None:
    """Let every plain linear of a frozen model copy its input where that is a slice with gaps, and nothing else.

    torch folds a batch of rows into one product only where they lie without gaps or the weight requires a gradient. A frozen
    weight it expands and copies once for each row of the batch: for an output head that reads ``hidden[:, -k:]`` this is
    most of a step. Whoever uses the model is helped, ``generate`` and peft included.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.register_forward_pre_hook(_contiguous)


def _contiguous(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return None if not inputs or inputs[0].is_contiguous() else (inputs[0].contiguous(), *inputs[1:])


def states_at(model: Any, head: Head, places: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
    """Return what a model's head reads at some places of a batch, ``[E, d]``, and what the model gives beside logits.

    The head itself is given no row.

    Args:
        model: a transformers model.
        head: its head; of :class:`GivenLogits` the logits at those places come back, ``[E, V]``.
        places: ``[E]``, of the batch ``[rows, columns]`` flattened.
        inputs: of the model's forward.
    """
    if isinstance(head, GivenLogits):
        out = model(**inputs)
        return out.logits.flatten(0, 1)[places.to(out.logits.device)], out
    seen: list[Tensor] = []

    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        seen.append(hidden.flatten(0, 1)[places.to(hidden.device)])
        return (hidden[:, :0], *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(hook, prepend=True)
    try:
        out = model(**inputs)
    finally:
        handle.remove()
    (found,) = seen
    return found, out


def next_states(model: Any, head: Head, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Return what the head reads in the last column of ``ids [n, q]`` after a cache, ``[n, d]``, and the cache with ``ids``."""
    places = torch.arange(1, len(ids) + 1, device=ids.device) * ids.shape[1] - 1
    inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
    states, out = states_at(model, head, places, input_ids=ids, **inputs)
    return states, out.past_key_values


def plain_head(model: Any, layout: Layout) -> Head:
    """Return a model's head if it computes what the model does and no adapter sits on it, else :class:`GivenLogits`."""
    head, name = Head.of(model), next((name for name, part in model.named_modules() if part is model.get_output_embeddings()), "")
    if head is None or any(slot.name.startswith(f"{name}.lora_") for slot in layout.slots):
        return GivenLogits()
    draw = rng(0, "output head check")
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor(draw.integers(0, model.get_input_embeddings().weight.shape[0], (2, 3)), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with torch.no_grad():
        try:
            theirs = model(**inputs).logits.flatten(0, 1)
            ours = head.logits(states_at(model, head, torch.arange(6), **inputs)[0])
        except Exception:  # whatever an architecture makes of no rows at all
            return GivenLogits()
    gap = float((ours.float() - theirs.float()).norm() / theirs.float().norm()) if ours.shape == theirs.shape else 1.0
    same = gap <= (1e-4 if model.dtype in (torch.float32, torch.float64) else 2e-2)
    return head if same else GivenLogits()


class TreeModel:
    """A transformers model that computes token tries.

    Args:
        model: frozen.
        layout: of the adapters.
        head: of the model.
    """

    def __init__(self, model: Any, layout: Layout, head: Head) -> None:
        self.model, self.layout, self.head = model, layout, head
        tables = {
            id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None
        }
        self.per_token = sum(p.numel() for p in model.parameters() if id(p) not in tables)
        self.per_pair = 4 * getattr(model.config, "hidden_size", 1024)

    def groups(self, rows: Sequence[Encoded]) -> int:
        """Return how many tries to cut a client's batch into."""
        return cheapest_cut(rows, self.per_token, self.per_pair)

    def losses(self, stack: Tensor, packed: Packed, *, loss: TokenLoss | None = None) -> Tensor:
        """Return each client's mean loss over its answer tokens, ``[K]``; ``loss`` as of :meth:`PackedLlama.losses`."""
        each = self.head.losses(self.states(stack, packed), packed.targets, loss)
        each = each * packed.weights.to(each.dtype)
        return torch.zeros(stack.shape[0], dtype=each.dtype, device=each.device).index_add(0, packed.clients, each)

    def states(self, stack: Tensor, packed: Packed) -> Tensor:
        """Return what the head reads at every loss term, ``[E, d]``."""
        dtype = self.model.dtype
        mask = torch.zeros(1, dtype=dtype, device=packed.tokens.device).where(packed.visible(), torch.finfo(dtype).min)
        inputs = {"input_ids": packed.tokens, "attention_mask": mask, "position_ids": packed.positions, "use_cache": False}
        trie = packed.rows // packed.nodes.shape[1]
        places = trie * packed.tokens.shape[1] + packed.nodes.flatten()[packed.rows]
        with adapted(self.model, self.layout, stack):
            return states_at(self.model, self.head, places, **inputs)[0]


def reach(config: Any) -> int:
    """Return how many tokens outgrow every short window, chunk or local reach that a model's config names."""
    sizes = [
        value
        for name, value in config.to_dict().items()
        if type(value) is int and any(word in name for word in ("window", "chunk", "local")) and value <= _SHORT_WINDOW
    ]
    room = (getattr(config, "max_position_embeddings", None) or 2 * _SHORT_WINDOW) - _BEFORE
    return int(min(max([24, *sizes]) + 6, max(room, 8)))


def tree_model(model: Any, layout: Layout, head: Head, pad_id: int) -> TreeModel | None:
    """Return the model as one that computes tries, or None where it does not give the same logits that way."""
    config = model.config
    windows = set(getattr(config, "layer_types", None) or []) - {"full_attention"} or getattr(config, "sliding_window", None)
    if model.dtype == torch.float64 or windows:  # a window would count other branches' tokens
        return None
    made = TreeModel(model, layout, head)
    draw = rng(0, "tree mask check")
    vocabulary, device = model.get_input_embeddings().weight.shape[0], model.get_input_embeddings().weight.device
    stem = tuple(draw.integers(0, vocabulary, 4).tolist())
    rows = [
        Encoded((*stem, *draw.integers(0, vocabulary, n).tolist()), tuple(draw.integers(0, vocabulary, 2).tolist()))
        for n in (1, 3, reach(config))
    ]
    stack = 0.02 * torch.tensor(draw.standard_normal((1, layout.size)), dtype=torch.float32, device=device)
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    with torch.no_grad():
        try:
            ours = made.losses(stack, pack([rows], pad_id).to(device))
            theirs = padded_losses(model, layout, stack, [rows], pad_id, head)
        except Exception:  # whatever an architecture makes of a mask it does not know
            return None
    return made if torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance) else None


def padded_losses(
    model: Any,
    layout: Layout,
    stack: Tensor,
    block: list[list[Encoded]],
    pad_id: int,
    head: Head,
    *,
    mask: DropoutMask | None = None,
    loss: TokenLoss | None = None,
) -> Tensor:
    """Return each client's mean loss over its answer tokens, ``[K]``, every sample a padded row; ``loss`` as above."""
    count = max(len(rows) for rows in block)
    length = max(len(row.prompt) + len(row.answer) for rows in block for row in rows)
    padded = [pad(rows, pad_id, count=count, length=length) for rows in block]
    ids, attention, labels = (torch.cat([p[i] for p in padded]).to(stack.device) for i in range(3))  # type: ignore[misc]
    inputs = {"input_ids": ids, "attention_mask": attention, "use_cache": False}
    places, targets = answered(labels)
    with adapted(model, layout, stack, mask):
        states, _ = states_at(model, head, places, position_ids=(attention.cumsum(1) - 1).clamp(min=0), **inputs)
    each = head.losses(states, targets, loss)
    if any(weighted(rows) for rows in block):
        weights = torch.cat([pad_weights(rows, count=count, length=length) for rows in block])
        each = each * weights[:, 1:].flatten()[places.cpu() - places.cpu() // length].to(each)
    clients = places // (count * length)
    sums = torch.zeros(len(block), dtype=each.dtype, device=each.device).index_add(0, clients, each)
    return sums / clients.bincount(minlength=len(block))


def answered(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return where answer tokens are predicted, ``[E]`` places of ``labels [rows, columns]`` flattened, and these tokens
    ``[E]``."""
    rows, columns = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns, labels[rows, columns + 1]
