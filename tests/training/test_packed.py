"""The packed forward against the transformers model: same losses and gradients, with and without shared prefixes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from undertow.config import Lora
from undertow.core.layout import Layout
from undertow.data.template import Encoded
from undertow.models.llama.check import packed_llama
from undertow.models.llama.family import Unsupported
from undertow.models.llama.packed import PackedLlama
from undertow.models.lora import adapted, adapter_layout, find_targets
from undertow.models.prefix_trie import build_trie, pack

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILY = {
    "llama": LlamaConfig(**SIZES),
    "llama-biases-untied": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "llama-tied-one-layer": LlamaConfig(**{**SIZES, "num_hidden_layers": 1}, tie_word_embeddings=True),
    "llama3-rope": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}


def make(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and norms start at constants; make them matter
        parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.to(dtype)


def block(clients: int, rows: int, seed: int = 0, vocab: int = 61) -> list[list[Encoded]]:
    draw = np.random.default_rng(seed)
    stem = tuple(draw.integers(0, vocab, 6).tolist())
    return [
        [
            Encoded(
                stem + tuple(draw.integers(0, vocab, draw.integers(0, 5)).tolist()),
                tuple(draw.integers(0, vocab, draw.integers(1, 4)).tolist()),
            )
            for _ in range(rows)
        ]
        for _ in range(clients)
    ]


def reference(model: Any, layout: Layout, stack: torch.Tensor, batches: list[list[Encoded]]) -> torch.Tensor:
    """Each client's mean loss, one row at a time through the transformers model."""
    found = []
    for k, rows in enumerate(batches):
        total, count = torch.zeros((), dtype=stack.dtype), 0
        for row in rows:
            with adapted(model, layout, stack[k : k + 1]):
                logits = model(input_ids=torch.tensor([[*row.prompt, *row.answer]]), use_cache=False).logits[0]
            wanted = torch.tensor(row.answer)
            total = total + torch.nn.functional.cross_entropy(logits[len(row.prompt) - 1 : -1], wanted, reduction="sum")
            count += len(row.answer)
        found.append(total / count)
    return torch.stack(found)


def random_stack(layout: Layout, clients: int, dtype: torch.dtype) -> torch.Tensor:
    return (0.1 * torch.randn(clients, layout.size, generator=torch.Generator().manual_seed(1), dtype=dtype)).requires_grad_()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("groups", [1, 2])
def test_losses_and_gradients_equal_the_transformers_model(name: str, groups: int) -> None:
    model = make(FAMILY[name])
    layout = adapter_layout(model, find_targets(model, Lora(r=3, alpha=6, targets="all-linear")), Lora(r=3, alpha=6))
    batches = block(3, 5)
    stack = random_stack(layout, 3, torch.float32)
    ours = packed_llama(model, layout, 0).losses(stack, pack(batches, 0, groups))
    theirs = reference(model, layout, stack, batches)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (a,), (b,) = torch.autograd.grad(ours.sum(), stack), torch.autograd.grad(theirs.sum(), stack)
    assert float((a - b).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj"], ["o_proj", "up_proj"], ["gate_proj", "down_proj"]])
def test_any_subset_of_the_linears(targets: list[str]) -> None:
    model = make(FAMILY["qwen2"])
    lora = Lora(r=2, alpha=4, targets=targets)
    layout = adapter_layout(model, find_targets(model, lora), lora)
    batches, stack = block(2, 3), random_stack(layout, 2, torch.float32)
    (a,) = torch.autograd.grad(PackedLlama(model, layout).losses(stack, pack(batches, 0)).sum(), stack)
    (b,) = torch.autograd.grad(reference(model, layout, stack, batches).sum(), stack)
    assert float((a - b).norm() / b.norm()) < 1e-5


def test_the_mathematics_is_the_same_to_the_last_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, with norms that do not round to float32 on the way, prefixes shared or not."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def exact(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(LlamaRMSNorm, "forward", exact)
    model = make(FAMILY["llama"], torch.float64)
    lora = Lora(r=3, alpha=6, targets="all-linear")
    layout = adapter_layout(model, find_targets(model, lora), lora)
    batches, stack = block(3, 6), random_stack(layout, 3, torch.float64)
    theirs = reference(model, layout, stack, batches)
    (b,) = torch.autograd.grad(theirs.sum(), stack)
    for groups in (1, 3):
        ours = PackedLlama(model, layout).losses(stack, pack(batches, 0, groups))
        (a,) = torch.autograd.grad(ours.sum(), stack)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert float((a - b).norm() / b.norm()) < 1e-11


def test_bfloat16_base_stays_close() -> None:
    model = make(FAMILY["llama"], torch.bfloat16)
    lora = Lora(targets="all-linear")
    layout = adapter_layout(model, find_targets(model, lora), lora)
    batches, stack = block(2, 4), random_stack(layout, 2, torch.float32)
    ours = packed_llama(model, layout, 0).losses(stack, pack(batches, 0))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, reference(model, layout, stack, batches), rtol=0.03, atol=0.03)


def test_a_model_of_another_structure_is_named_and_left_to_the_general_path() -> None:
    from transformers import CohereConfig, MixtralConfig, OPTConfig, PhiConfig

    cases: dict[str, Any] = {
        "not built like Llama": OPTConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32),
        "no post_attention_layernorm": CohereConfig(**SIZES, pad_token_id=0),
        "its activation is relu": LlamaConfig(**SIZES, hidden_act="relu"),
        "not made of plain linears gate_proj": MixtralConfig(**SIZES),
        "known family": PhiConfig(**SIZES),
    }
    for reason, config in cases.items():
        model = make(config)
        layout = adapter_layout(model, find_targets(model, Lora(targets="all-linear")), Lora())
        with pytest.raises(Unsupported, match=reason):
            packed_llama(model, layout, 0)


def test_a_model_that_computes_something_else_is_found_out_by_its_logits() -> None:
    model = make(FAMILY["llama"])
    layout = adapter_layout(model, find_targets(model, Lora()), Lora())
    original = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda x: 1.05 * original(x)
    with pytest.raises(Unsupported, match="differ"):
        packed_llama(model, layout, 0)


rows_strategy = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.lists(st.integers(0, 3), min_size=1, max_size=4)),
    min_size=1,
    max_size=8,
)


@given(rows_strategy)
@settings(max_examples=200, deadline=None)
def test_a_trie_holds_every_row_and_a_node_sees_exactly_its_prefix(raw: list[tuple[list[int], list[int]]]) -> None:
    rows = [Encoded(tuple(p), tuple(a)) for p, a in raw]
    trie = build_trie(rows)
    prefixes = {(*r.prompt, *r.answer)[:n] for r in rows for n in range(1, len(r.prompt) + len(r.answer))}
    assert len(trie.tokens) == len(prefixes)  # nothing twice, nothing missing
    seen = []
    for i, position in enumerate(trie.positions):
        ancestors = [j for j in range(len(trie.tokens)) if j <= i < trie.ends[j]]
        assert [trie.positions[j] for j in ancestors] == list(range(position + 1))
        seen.append(tuple(trie.tokens[j] for j in ancestors))
    assert set(seen) == prefixes
    expected = sorted(((*r.prompt, *r.answer[:i]), r.answer[i]) for r in rows for i in range(len(r.answer)))
    assert sorted((seen[node], target) for node, target in trie.losses) == expected


@given(rows_strategy, st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_packing_weights_every_answer_token_once(raw: list[tuple[list[int], list[int]]], groups: int) -> None:
    rows = [Encoded(tuple(p), tuple(a)) for p, a in raw]
    packed = pack([rows, rows[:1]], 0, groups)
    for client in (0, 1):
        assert packed.weights[packed.clients == client].sum().item() == pytest.approx(1.0)
    assert packed.tokens.shape[0] == 2 * groups
    visible = packed.visible()
    assert visible.diagonal(dim1=-2, dim2=-1).all()  # every node, padding too, sees itself


def test_trainer_takes_the_general_path_with_dropout(tiny_base: Any) -> None:
    from undertow.config import Model
    from undertow.models.causal_lm import load_base
    from undertow.training import batched

    base = load_base(Model(name=str(tiny_base)))
    assert base.packed is not None
    batches = block(2, 3, vocab=len(base.tokenizer))
    stack = random_stack(base.layout, 2, torch.float32)
    called = []
    mask = lambda name, x: called.append(name) or torch.ones_like(x)  # noqa: E731
    general = batched.losses(base, stack, batches, mask)
    assert called
    torch.testing.assert_close(batched.losses(base, stack, batches), general, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(batched.losses(replace(base, packed=None), stack, batches), general, rtol=1e-6, atol=1e-6)


def long_block(clients: int) -> list[list[Encoded]]:
    """Tries of over 150 nodes: several blocks of queries."""
    draw = np.random.default_rng(5)
    stem = tuple(draw.integers(0, 61, 20).tolist())
    return [
        [
            Encoded(stem + tuple(draw.integers(0, 61, draw.integers(8, 16)).tolist()), tuple(draw.integers(0, 61, 3).tolist()))
            for _ in range(11)
        ]
        for _ in range(clients)
    ]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("cache", [1 << 22, 1], ids=["together", "trie by trie"])
def test_long_tries_and_any_blocks(name: str, cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undertow.models.llama.fused._CACHE", cache)
    model = make(FAMILY[name])
    lora = Lora(r=3, alpha=6, targets="all-linear")
    layout = adapter_layout(model, find_targets(model, lora), lora)
    batches, stack = long_block(3), random_stack(layout, 3, torch.float32)
    packed = pack(batches, 0)
    assert min(packed.lengths) > 128
    ours, theirs = PackedLlama(model, layout).losses(stack, packed), reference(model, layout, stack, batches)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (a,), (b,) = torch.autograd.grad(ours.sum(), stack), torch.autograd.grad(theirs.sum(), stack)
    assert float((a - b).norm() / b.norm()) < 1e-5


def test_recomputed_activations_give_the_same_bits() -> None:
    model = make(FAMILY["llama"])
    lora = Lora(r=3, alpha=6, targets="all-linear")
    layout = adapter_layout(model, find_targets(model, lora), lora)
    packed_model, packed, stack = PackedLlama(model, layout), pack(block(3, 5), 0), random_stack(layout, 3, torch.float32)
    kept: list[int] = []

    def saved(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    found = []
    for recompute in (False, True):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            losses = packed_model.losses(stack, packed, recompute=recompute)
        found.append((losses, *torch.autograd.grad(losses.sum(), stack), sum(kept)))
    (a, a_grad, whole), (b, b_grad, thin) = found
    assert torch.equal(a, b)
    assert torch.equal(a_grad, b_grad)
    assert thin < whole / 2, "fewer activations are kept"
