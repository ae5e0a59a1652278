"""Today's decoder families on the packed path, every feature of each switched on, against the transformers model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from undertow.config import Lora
from undertow.core.layout import Layout
from undertow.data.template import Encoded
from undertow.models.llama.cached import CachedRows
from undertow.models.llama.check import packed_llama
from undertow.models.llama.family import Unsupported
from undertow.models.llama.packed import PackedLlama
from undertow.models.lora import adapted, adapter_layout, find_targets
from undertow.models.prefix_trie import pack

VOCAB = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TWO_BASES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
}
OLD = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

#: A window of 5 is shorter than most samples below.
FAMILIES: dict[str, Any] = {
    "llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=5, head_dim=16),
    "qwen2": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, layer_types=KINDS),
    "qwen3": Qwen3Config(**SIZES, head_dim=16, attention_bias=True),
    "smollm2": LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e5}),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=5, layer_types=KINDS),
    "gemma": GemmaConfig(**SIZES, head_dim=16),
    "gemma2": Gemma2Config(
        **{**SIZES, "num_key_value_heads": 1},
        head_dim=16,
        sliding_window=5,
        layer_types=KINDS,
        query_pre_attn_scalar=9,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.5,
    ),
    "gemma3": Gemma3TextConfig(
        **{**SIZES, "num_key_value_heads": 1},
        head_dim=16,
        sliding_window=5,
        layer_types=KINDS,
        rope_parameters=TWO_BASES,
        query_pre_attn_scalar=9,
        final_logit_softcapping=2.5,
    ),
    "phi3": Phi3Config(
        **SIZES, sliding_window=5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    ),
    "olmo2": Olmo2Config(**SIZES, attention_bias=True),
    "olmo3": Olmo3Config(**SIZES, sliding_window=5, layer_types=KINDS),
    "granite": GraniteConfig(
        **SIZES, embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.4, logits_scaling=0.7
    ),
    "gpt2": GPT2Config(**OLD, n_embd=32, n_layer=3, n_head=4, n_positions=64, scale_attn_by_inverse_layer_idx=True),
    "gpt_neox": GPTNeoXConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    "gpt_neox-in-turn": GPTNeoXConfig(**SIZES, use_parallel_residual=False, hidden_act="gelu_new", attention_bias=False),
}


def make(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and norms start at constants; make them matter
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype)


def block(clients: int, rows: int) -> list[list[Encoded]]:
    draw = np.random.default_rng(0)
    stem = tuple(draw.integers(0, VOCAB, 4).tolist())
    made = []
    for _ in range(clients):
        sizes = [(int(draw.integers(1, 8)), int(draw.integers(1, 4))) for _ in range(rows)]
        made.append(
            [
                Encoded(stem + tuple(draw.integers(0, VOCAB, n).tolist()), tuple(draw.integers(0, VOCAB, m).tolist()))
                for n, m in sizes
            ]
        )
    return made


def reference(model: Any, layout: Layout, stack: Tensor, batches: list[list[Encoded]]) -> Tensor:
    """The logits of every answer token, one row at a time, row by row as tries list them."""
    found = []
    for k, rows in enumerate(batches):
        for row in sorted(rows, key=lambda row: (*row.prompt, *row.answer[:-1])):
            with adapted(model, layout, stack[k : k + 1]):
                logits = model(input_ids=torch.tensor([[*row.prompt, *row.answer]]), use_cache=False).logits[0]
            found.append(logits[len(row.prompt) - 1 : -1])
    return torch.cat(found)


def adapters(model: Any, clients: int, dtype: torch.dtype) -> tuple[Layout, Tensor]:
    lora = Lora(r=3, alpha=6, targets="all-linear")
    layout = adapter_layout(model, find_targets(model, lora), lora)
    draw = torch.Generator().manual_seed(1)
    return layout, (0.1 * torch.randn(clients, layout.size, generator=draw, dtype=dtype)).requires_grad_()


def without_rounding(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a float64 model compute in float64 where transformers goes through float32: norms, and an eager softmax."""
    softmax = nn.functional.softmax
    monkeypatch.setattr(nn.functional, "softmax", lambda x, dim=-1, dtype=None: softmax(x, dim=dim))

    def exact(module: Any) -> Any:
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0
        return lambda x: (module.weight + offset) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            monkeypatch.setattr(module, "forward", exact(module))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_exact_in_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(FAMILIES[name], torch.float64)
    without_rounding(model, monkeypatch)
    layout, stack = adapters(model, 2, torch.float64)
    batches = block(2, 4)
    with torch.no_grad():
        theirs = reference(model, layout, stack, batches)
        packed = PackedLlama(model, layout)
        for groups in (1, 2):
            ours = packed.logits(stack, pack(batches, 0, groups))
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_autograd(name: str) -> None:
    model = make(FAMILIES[name])
    layout, stack = adapters(model, 2, torch.float32)
    batches = block(2, 4)
    packed, batch = packed_llama(model, layout, 0), pack(batches, 0, 2)
    whole = nn.functional.cross_entropy(reference(model, layout, stack, batches), batch.targets, reduction="none")
    theirs = (whole * batch.weights.float()).sum()
    for recompute in (False, True):
        ours = packed.losses(stack, batch, recompute=recompute).sum()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        (a,), (b,) = torch.autograd.grad(ours, stack), torch.autograd.grad(theirs, stack, retain_graph=True)
        assert float((a - b).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shared", [0, 6])
@pytest.mark.parametrize("alike", [False, True])
def test_cached_rows_say_what_the_model_says(name: str, shared: int, alike: bool) -> None:
    """Rows of unequal length, going back, dropping rows and going on, against the whole text at once."""
    model = make(FAMILIES[name])
    layout, stack = adapters(model, 1, torch.float32)
    adapter = stack[0].detach()
    draw = np.random.default_rng(1)
    prefix = draw.integers(0, VOCAB, shared).tolist()
    rows = [draw.integers(0, VOCAB, n).tolist() for n in (9, 3, 5)]
    if alike:  # the third goes with the first for three tokens, the second is its beginning
        rows[2][:3] = rows[0][:3]
        rows[1] = rows[0][:3]

    def whole(row: list[int]) -> Tensor:
        with adapted(model, layout, adapter[None]):
            logits: Tensor = model(input_ids=torch.tensor([prefix + row]), use_cache=False).logits[0, shared:]
        return logits

    with torch.inference_mode():
        cached = CachedRows.after(PackedLlama(model, layout), adapter, prefix, 3, 12)
        first = torch.tensor([row + [0] * (9 - len(row)) for row in rows])
        every, lengths = torch.arange(9).expand(3, 9), [9, 3, 5] if alike else None
        x, _ = CachedRows.after(PackedLlama(model, layout), adapter, prefix, 3, 12).begin(first, every, lengths)
        assert x.shape[:2] == ((1, 9 + 2) if alike else (3, 9))
        logits = cached.head.logits(cached.feed(first, every, lengths))
        for row, found in zip(rows, logits, strict=True):
            torch.testing.assert_close(found[: len(row)], whole(row), rtol=1e-3, atol=1e-4)
        cached.forget(torch.tensor([4, 3, 5]))  # the first row goes back
        cached.keep(torch.tensor([0, 2]))
        more = cached.head.logits(cached.feed(torch.tensor([[11], [12]]), torch.zeros(2, 1, dtype=torch.long)))[:, 0]
        torch.testing.assert_close(more[0], whole([*rows[0][:4], 11])[-1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(more[1], whole([*rows[2], 12])[-1], rtol=1e-3, atol=1e-4)


def no_window(keys: Tensor, place: Tensor, window: int) -> Tensor:
    return (keys > place[..., None])[:, None, None]


def ahead(keys: Tensor, place: Tensor, window: int) -> Tensor:
    return (keys > place[..., None] + 1)[:, None, None]


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("gemma2", "_hidden", no_window),
        ("gpt_neox", "_hidden", ahead),
        ("gemma3", "turned", lambda states, at: states),
        ("olmo2", "_capped", lambda scores, cap: 1.1 * scores),
    ],
)
def test_a_decoding_that_differs_is_found_when_a_base_is_loaded(
    name: str, part: str, wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(FAMILIES[name])
    layout, _ = adapters(model, 1, torch.float32)
    packed_llama(model, layout, 0)
    monkeypatch.setattr(f"undertow.models.llama.cached.{part}", wrong)
    with pytest.raises(Unsupported, match="in decoding differ"):
        packed_llama(model, layout, 0)


@pytest.mark.parametrize("name", ["gemma3", "gemma2", "olmo2", "phi3", "gpt_neox"])
def test_a_bfloat16_base_stays_close(name: str) -> None:
    model = make(FAMILIES[name], torch.bfloat16)
    layout, stack = adapters(model, 2, torch.float32)
    batches = block(2, 4)
    batch = pack(batches, 0)
    ours = packed_llama(model, layout, 0).losses(stack, batch)
    assert ours.dtype == torch.float32
    each = nn.functional.cross_entropy(reference(model, layout, stack, batches).float(), batch.targets, reduction="none")
    theirs = torch.zeros(2, dtype=torch.float64).index_add(0, batch.clients, each.double() * batch.weights)
    torch.testing.assert_close(ours.double(), theirs, rtol=0.03, atol=0.03)
