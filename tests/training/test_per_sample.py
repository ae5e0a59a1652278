from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import adapted, initial_adapter
from undertow.training.per_sample import head_errors, lora_gradients, states

Load = Callable[..., CausalLM]


def rows_of(vocab: int, count: int = 40) -> list[Encoded]:
    """Rows with a common stem, of unequal length, some equal, in no order; more than one batch."""
    draw = np.random.default_rng(1)
    found = []
    for _ in range(count - 1):
        prompt = (1, 5, 9, *draw.integers(3, vocab, draw.integers(1, 9)).tolist())
        found.append(Encoded(prompt, (*draw.integers(3, vocab, draw.integers(1, 6)).tolist(), 2)))
    return [*found, found[3]]


def entropies(model: Any, row: Encoded) -> Tensor:
    """-log p of each answer token, from softmax itself."""
    logits = model(input_ids=torch.tensor([[*row.prompt, *row.answer]])).logits[0, len(row.prompt) - 1 : -1]
    return -logits.softmax(-1)[range(len(row.answer)), list(row.answer)].log()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "opt", "gpt2-general"])
def test_gradients_of_one_matrix_row_by_row(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind, targets="default", r=2, alpha=4)
    rows = rows_of(500)
    module = [slot.name.removesuffix(".lora_B") for slot in base.layout.slots if slot.name.endswith(".lora_B")][-1]
    start = initial_adapter(base.layout, 0)
    down = base.layout.unflatten(start)[f"{module}.lora_A"]
    before = base.layout
    found = lora_gradients(base, module, down, rows)
    assert base.layout is before
    assert base.packed is None or base.packed.layout is before
    target = base.model.get_submodule(module)
    outputs = base.layout.unflatten(start)[f"{module}.lora_B"].shape[0]
    for i in (0, 3, 17, 39):
        up = torch.zeros(outputs, 2, requires_grad=True)
        handle = target.register_forward_hook(lambda m, x, y, up=up: y + 2.0 * (x[0] @ down.T) @ up.T)
        try:
            (wanted,) = torch.autograd.grad(entropies(base.model, rows[i]).mean(), up)
        finally:
            handle.remove()
        torch.testing.assert_close(found[i], wanted.flatten(), rtol=2e-3, atol=2e-6)
    # the same sample at another place: some processors multiply it in another order there
    torch.testing.assert_close(found[3], found[39], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt2-general", "gemma2-general"])
def test_head_errors_make_the_gradient_of_the_head(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind)
    rows = rows_of(500)
    found = {i: (errors, read) for i, errors, read in head_errors(base, rows)}
    assert sorted(found) == list(range(len(rows)))
    model = copy.deepcopy(base.model)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # its own, where it was the embedding's
    for i in (0, 8, 39):
        (wanted,) = torch.autograd.grad(entropies(model, rows[i]).mean(), head.weight)
        errors, read = found[i]
        assert errors.shape[0] == read.shape[0] == len(rows[i].answer)
        torch.testing.assert_close(errors.T @ read, wanted, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt2-general", "gemma2-general"])
@pytest.mark.parametrize("tuned", [False, True])
def test_states_are_what_the_head_reads(load_tiny: Load, kind: str, tuned: bool) -> None:
    base = load_tiny(kind)
    rows = rows_of(500)
    adapter = None
    if tuned:
        adapter = 0.1 * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(3))
    found = states(base, rows, adapter)
    stack = torch.zeros(1, base.layout.size) if adapter is None else adapter[None]
    for i in (1, 12, 39):
        ids = torch.tensor([[*rows[i].prompt, *rows[i].answer]])
        with torch.no_grad(), adapted(base.model, base.layout, stack):
            wanted = base.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(found[i], wanted[0, len(rows[i].prompt) - 1 : -1], rtol=1e-3, atol=1e-4)
