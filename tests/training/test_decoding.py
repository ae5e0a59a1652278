from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from tiny import PATHS
from undertow.config import Lora, Model
from undertow.core.layout import Layout
from undertow.data.generated import world
from undertow.data.template import Template
from undertow.inference import decoding
from undertow.inference.decoding import generate
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.llama.cached import CachedRows
from undertow.models.llama.packed import PackedLlama
from undertow.models.lora import adapted, adapter_layout, find_targets, save_peft

Load = Callable[..., CausalLM]


def prompts(base: CausalLM, lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [[1, *draw.integers(3, base.model.config.vocab_size, size=n - 1).tolist()] for n in lengths]


def strong_adapter(base: CausalLM, seed: int = 1) -> torch.Tensor:
    return 0.2 * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(seed))


def oracle(model: Any, rows: list[list[int]], base: CausalLM, max_new_tokens: int, end: list[int]) -> list[list[int]]:
    """transformers' own greedy search, padded on the left; cut at the end token."""
    length = max(map(len, rows))
    ids = torch.tensor([[base.pad_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=end,
        pad_token_id=base.pad_id,
    )[:, length:].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in end), len(row))] for row in made]


LENGTHS = (5, 90, 17, 5, 31, 2)  # 90 is beyond gemma's sliding window of 64


@pytest.mark.parametrize("kind", PATHS)
def test_tokens_are_those_of_transformers_generate(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind)
    rows = prompts(base, LENGTHS)
    alone = [oracle(base.model, [row], base, 12, base.end_ids)[0] for row in rows]
    assert generate(base, None, rows, max_new_tokens=12, batch_size=1) == alone
    together = oracle(base.model, rows, base, 12, base.end_ids)
    assert generate(base, None, rows, max_new_tokens=12, batch_size=6) == together == alone
    assert generate(base, None, rows, max_new_tokens=12, batch_size=4) == alone


@pytest.mark.parametrize("kind", PATHS)
def test_with_an_adapter_they_are_those_of_the_peft_model(
    load_tiny: Load, foreign: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = load_tiny(kind, r=2, alpha=4)
    flat, rows = strong_adapter(base), prompts(base, LENGTHS)
    save_peft(tmp_path, flat, base.layout, Lora(r=2, alpha=4, targets="all-linear"), base.path)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(foreign[kind.removesuffix("-general")], dtype=torch.float32), tmp_path
    ).eval()
    wanted = oracle(theirs, rows, base, 12, base.end_ids)
    made = generate(base, flat, rows, max_new_tokens=12, batch_size=6)
    assert made == wanted
    assert made != generate(base, None, rows, max_new_tokens=12, batch_size=6), "the adapter changes the answers"


def test_an_answer_stops_at_its_end_token_and_the_others_go_on(load_tiny: Load) -> None:
    base = load_tiny("qwen2")
    rows = prompts(base, (6, 9, 12, 15))
    free = generate(base, None, rows, max_new_tokens=10, batch_size=4)
    # Declare a token that stands in the middle of one answer an end token: that answer is cut before it.
    end = free[1][4]
    assert any(end not in answer for answer in free)

    base.model.generation_config.eos_token_id = [end]
    assert base.end_ids == sorted({base.tokenizer.eos_token_id, end})
    cut = generate(base, None, rows, max_new_tokens=10, batch_size=4)
    assert cut == [answer[: answer.index(end)] if end in answer else answer for answer in free]
    assert cut == oracle(base.model, rows, base, 10, base.end_ids)
    assert all(end not in answer for answer in cut)


def test_an_end_token_at_once_is_an_empty_answer(load_tiny: Load) -> None:
    base = load_tiny("gpt2")
    rows = prompts(base, (7,))
    first = generate(base, None, rows, max_new_tokens=1, batch_size=1)[0]
    assert len(first) == 1
    base.model.generation_config.eos_token_id = first[0]
    assert generate(base, None, rows, max_new_tokens=5, batch_size=1) == [[]]


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_no_answer_is_longer_than_the_limit(load_tiny: Load, limit: int) -> None:
    base = load_tiny("qwen2")
    rows = prompts(base, (6, 9, 12))
    short, long = (generate(base, None, rows, max_new_tokens=n, batch_size=2) for n in (limit, 12))
    assert short == [answer[:limit] for answer in long]
    assert max(map(len, short)) == limit


def test_a_base_without_pad_token_pads_with_the_end_token(load_tiny: Load) -> None:
    base = load_tiny("llama")
    rows = prompts(base, LENGTHS)
    wanted = generate(base, None, rows, max_new_tokens=8, batch_size=6)
    base.tokenizer.pad_token = None
    assert base.pad_id == base.tokenizer.eos_token_id
    assert generate(base, None, rows, max_new_tokens=8, batch_size=6) == wanted


def test_no_prompts_no_answers_and_no_hooks_left(load_tiny: Load) -> None:
    base = load_tiny()
    assert generate(base, strong_adapter(base), [], max_new_tokens=4, batch_size=3) == []
    generate(base, strong_adapter(base), prompts(base, (3,)), max_new_tokens=4, batch_size=3)
    assert not any(module._forward_hooks for module in base.model.modules())


def test_an_architecture_without_logits_to_keep_gives_the_same(load_tiny: Load) -> None:
    base = load_tiny()
    rows = prompts(base, LENGTHS)
    old = replace(base, logits_to_keep=False)
    assert generate(old, None, rows, max_new_tokens=8, batch_size=6) == generate(base, None, rows, max_new_tokens=8, batch_size=6)


@pytest.mark.parametrize("spoil", ["nothing", "last token", "everything", "half the rows", "too long", "empty"])
@pytest.mark.parametrize("together", [1, 2, 32])
def test_expectations_change_the_time_and_never_the_answers(
    tiny_base: Path, spoil: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it matter how many rows of a batch read their prompts together."""
    base = load_base(Model(name=str(tiny_base)))
    prompts = Template("lab-qa", base.tokenizer).encode_prompts(world.samples()[:13])
    plain = generate(base, None, prompts, max_new_tokens=7, batch_size=5)
    other = (plain[0] or [5])[0] + 1
    expected = {
        "nothing": plain,
        "last token": [[*row[:-1], other] for row in plain],
        "everything": [[other] * 3 for _ in plain],
        "half the rows": [row if i % 2 else row[::-1] for i, row in enumerate(plain)],
        "too long": [[*row, *row, other] for row in plain],
        "empty": [[] for _ in plain],
    }[spoil]
    monkeypatch.setattr(decoding, "_TOGETHER", together)
    assert generate(base, None, prompts, max_new_tokens=7, batch_size=5, expected=expected) == plain


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("shared", [0, 6])
def test_cached_rows_say_what_the_transformers_model_says(kind: str, shared: int) -> None:
    """Logits after feeding rows of unequal length, going back, dropping rows and going on, against the whole text at once."""
    sizes = {"vocab_size": 53, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**sizes, num_key_value_heads=2)).eval().requires_grad_(False)
    lora = Lora(r=2, alpha=4, targets="all-linear")
    layout = adapter_layout(model, find_targets(model, lora), lora)
    adapter = 0.1 * torch.randn(layout.size)
    draw = np.random.default_rng(1)
    prefix = draw.integers(0, 53, shared).tolist()
    rows = [draw.integers(0, 53, n).tolist() for n in (7, 3, 5)]

    def whole(row: list[int]) -> torch.Tensor:
        with adapted(model, layout, adapter[None]):
            logits: torch.Tensor = model(input_ids=torch.tensor([prefix + row]), use_cache=False).logits[0, shared:]
            return logits

    with torch.inference_mode():
        cached = CachedRows.after(PackedLlama(model, layout), adapter, prefix, 3, 9)
        first = torch.tensor([row + [0] * (7 - len(row)) for row in rows])
        logits = cached.head.logits(cached.feed(first, torch.arange(7).expand(3, 7)))
        for row, found in zip(rows, logits, strict=True):
            torch.testing.assert_close(found[: len(row)], whole(row), rtol=1e-4, atol=1e-5)
        cached.forget(torch.tensor([4, 3, 5]))  # the first row goes back
        cached.keep(torch.tensor([0, 2]))
        more = cached.head.logits(cached.feed(torch.tensor([[11], [12]]), torch.zeros(2, 1, dtype=torch.long)))[:, 0]
        torch.testing.assert_close(more[0], whole([*rows[0][:4], 11])[-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(more[1], whole([*rows[2], 12])[-1], rtol=1e-4, atol=1e-5)


def runs_of(model: Any) -> list[int]:
    """Return a list that gets an entry each time the modules themselves run."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def test_an_adapter_on_other_modules_is_decoded_without_the_modules(load_tiny: Load) -> None:
    base = load_tiny("qwen2", targets="default")
    other = load_tiny("qwen2", targets="all-linear", r=3)
    flat, rows = strong_adapter(other), prompts(base, LENGTHS)
    ran = runs_of(base.model)
    wanted = generate(base, flat, rows, max_new_tokens=8, batch_size=4, layout=other.layout, modules=True)
    assert ran
    ran.clear()
    assert generate(base, flat, rows, max_new_tokens=8, batch_size=4, layout=other.layout) == wanted
    assert generate(base, None, rows, max_new_tokens=8, batch_size=4, layout=other.layout) != wanted
    assert not ran


def test_an_adapter_on_the_output_head_runs_the_modules(load_tiny: Load) -> None:
    base = load_tiny("qwen2", targets="default")
    other = adapter_layout(base.model, ["model.layers.0.mlp.down_proj", "lm_head"], Lora(r=2, alpha=4))
    flat = torch.randn(other.size, generator=torch.Generator().manual_seed(2))
    rows = prompts(base, LENGTHS)
    wanted = generate(base, flat, rows, max_new_tokens=8, batch_size=4, layout=other, modules=True)
    assert generate(base, flat, rows, max_new_tokens=8, batch_size=4, layout=other) == wanted


def test_adapters_of_several_ranks_run_the_modules(load_tiny: Load) -> None:
    """q, k and v are one product of one rank on the packed path."""
    base = load_tiny("qwen2", targets="default")
    name = "model.layers.1.self_attn."
    low = adapter_layout(base.model, [f"{name}q_proj"], Lora(r=2, alpha=4))
    high = adapter_layout(base.model, [f"{name}v_proj"], Lora(r=4, alpha=8))
    mixed = Layout.of({slot.name: slot.shape for layout in (low, high) for slot in layout.slots}, scale=2.0)
    flat = torch.randn(mixed.size, generator=torch.Generator().manual_seed(2))
    rows = prompts(base, LENGTHS)
    wanted = generate(base, flat, rows, max_new_tokens=8, batch_size=4, layout=mixed, modules=True)
    assert generate(base, flat, rows, max_new_tokens=8, batch_size=4, layout=mixed) == wanted
