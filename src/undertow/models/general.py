"""The path of architectures that have no fast form: the transformers model itself, adapters of all clients hung in by hooks.

Where the model takes an attention mask per pair of tokens, a client's batch goes in as token tries, so that common
prefixes are computed once here too; whether it does so rightly is tried when a base is loaded. Otherwise, and with
LoRA dropout, whose masks differ between repeats of a prefix, samples are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.data.examples import IGNORE
from undertow.data.template import Encoded
from undertow.models.lora import DropoutMask, adapted
from undertow.models.padding import pad, pad_weights, weighted
from undertow.models.prefix_trie import Packed, cheapest_cut, pack
from undertow.models.token_loss import TokenLoss, token_losses


class TreeModel:
    """A transformers model that computes token tries.

    Args:
        model: frozen.
        layout: of the adapters.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        self.model, self.layout = model, layout
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
        each = token_losses(self.logits(stack, packed), packed.targets, loss)
        each = each * packed.weights.to(each.dtype)
        return torch.zeros(stack.shape[0], dtype=each.dtype, device=each.device).index_add(0, packed.clients, each)

    def logits(self, stack: Tensor, packed: Packed) -> Tensor:
        """Return the logits of every loss term, ``[E, V]``."""
        dtype = self.model.dtype
        mask = torch.zeros(1, dtype=dtype, device=packed.tokens.device).where(packed.visible(), torch.finfo(dtype).min)
        with adapted(self.model, self.layout, stack):
            out = self.model(input_ids=packed.tokens, attention_mask=mask, position_ids=packed.positions, use_cache=False)
        trie = packed.rows // packed.nodes.shape[1]
        found: Tensor = out.logits[trie, packed.nodes.flatten()[packed.rows]]
        return found


def tree_model(model: Any, layout: Layout, pad_id: int) -> TreeModel | None:
    """Return the model as one that computes tries, or None where it does not give the same logits that way."""
    config = model.config
    windows = set(getattr(config, "layer_types", None) or []) - {"full_attention"} or getattr(config, "sliding_window", None)
    if model.dtype == torch.float64 or windows:  # a window would count other branches' tokens
        return None
    made = TreeModel(model, layout)
    draw = rng(0, "tree mask check")
    vocabulary, device = model.get_input_embeddings().weight.shape[0], model.get_input_embeddings().weight.device
    stem = tuple(draw.integers(0, vocabulary, 4).tolist())
    rows = [
        Encoded((*stem, *draw.integers(0, vocabulary, n).tolist()), tuple(draw.integers(0, vocabulary, 2).tolist())) for n in (1, 3)
    ]
    stack = 0.02 * torch.tensor(draw.standard_normal((1, layout.size)), dtype=torch.float32, device=device)
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    with torch.no_grad():
        try:
            ours = made.losses(stack, pack([rows], pad_id).to(device))
            theirs = padded_losses(model, layout, stack, [rows], pad_id, logits_to_keep=False)
        except (RuntimeError, ValueError, TypeError, IndexError):  # whatever an architecture makes of a mask it does not know
            return None
    return made if torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance) else None


def padded_losses(
    model: Any,
    layout: Layout,
    stack: Tensor,
    block: list[list[Encoded]],
    pad_id: int,
    *,
    logits_to_keep: bool,
    mask: DropoutMask | None = None,
    loss: TokenLoss | None = None,
) -> Tensor:
    """Return each client's mean loss over its answer tokens, ``[K]``, every sample a padded row; ``loss`` as above."""
    count = max(len(rows) for rows in block)
    length = max(len(row.prompt) + len(row.answer) for rows in block for row in rows)
    padded = [pad(rows, pad_id, count=count, length=length) for rows in block]
    ids, attention, labels = (torch.cat([p[i] for p in padded]).to(stack.device) for i in range(3))  # type: ignore[misc]
    tail = max(p[3] for p in padded)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    keep = {"logits_to_keep": tail} if logits_to_keep else {}
    with adapted(model, layout, stack, mask):
        logits = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False, **keep).logits
    logits, labels = logits[:, -tail:][:, :-1], labels[:, -tail:][:, 1:].to(logits.device)  # [K * count, tail - 1, V]
    each = token_losses(logits.flatten(0, 1), labels.flatten(), loss, IGNORE)
    if any(weighted(rows) for rows in block):
        weights = torch.cat([pad_weights(rows, count=count, length=length) for rows in block])
        each = each * weights[:, -tail:][:, 1:].flatten().to(each)
    tokens = (labels != IGNORE).view(len(block), -1).sum(1)
    return each.view(len(block), -1).sum(1) / tokens
