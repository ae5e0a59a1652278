"""Architectures of all kinds: the answers of one prompt at a time, or one line that says why not.

``benchmarks/architectures.py`` tries every one that transformers has; here are some of each kind.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from undertow.config import Lora, Model
from undertow.core.errors import UserError
from undertow.inference.decoding import generate
from undertow.models import steps
from undertow.models.causal_lm import CausalLM, load_base

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from architectures import alone, compared, save_tiny


def load(folder: Path, **values: Any) -> CausalLM:
    return load_base(Model(name=str(folder), device="cpu", lora=Lora(r=2, alpha=4, targets="all-linear"), **values))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[[str], Path]:
    root, tokenizer = tmp_path_factory.mktemp("made"), AutoTokenizer.from_pretrained(tiny_base)

    def make(kind: str) -> Path:
        folder = root / kind
        return folder if folder.exists() else save_tiny(kind, folder, tokenizer)

    return make


RIGHT = {
    "mpt": "kept",  # linear biases by column: padding after a cached prefix counts
    "bloom": "shared",  # linear biases by the mask
    "falcon": "shared",
    "opt": "shared",
    "gptj": "shared",
    "cohere": "shared",
    "gpt_neo": "kept",  # a local window that its config names in its own way
    "cohere2": "kept",
    "gpt_oss": "kept",
    "jamba": "kept",  # states beside keys and values
    "mamba": "whole",  # what it keeps has a name of its own
    "openai-gpt": "whole",  # keeps nothing
    "moshi": "whole",  # what it keeps gives other logits
}


@pytest.mark.parametrize("kind", RIGHT)
def test_answers_and_losses_are_those_of_one_prompt_at_a_time(made: Callable[[str], Path], kind: str) -> None:
    base = load(made(kind), dtype="float32")
    assert compared(base) == []
    assert base.packed is None
    assert base.steps.way == RIGHT[kind]
    assert base.facts()["decoding_path"].startswith(steps.WAYS[RIGHT[kind]])
    assert (": " in base.steps.told) == (RIGHT[kind] != "shared"), "a plainer way says why"


REFUSED = {
    "bart": "gives a padded batch other logits than a text alone",
    "roberta": "gives a padded batch other logits than a text alone",
    "rwkv": "gives a padded batch other logits than a text alone",
    "xlnet": "reads ahead",
    "ernie": "reads ahead",
    "llama4_text": "fails on a short text with adapters",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line(made: Callable[[str], Path], kind: str) -> None:
    folder = made(kind)
    with pytest.raises(UserError, match=REFUSED[kind]) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_half_precision_takes_the_ways_of_float32(made: Callable[[str], Path]) -> None:
    """Their trial is in float32, so that rounding neither hides a fault nor looks like one; the weights are as they were."""
    for kind in ("mpt", "bloom", "mamba"):
        base, whole = load(made(kind), dtype="bfloat16"), load(made(kind), dtype="float32")
        assert base.model.dtype == torch.bfloat16
        assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
        assert base.steps.way == RIGHT[kind]
        for half, full in zip(base.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(half, full.to(torch.bfloat16))


def test_texts_longer_than_those_tried_are_tried_when_they_come(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"reach": lambda config: 4, "_STEM": 10, "_TAILS": (3,)}.items():
        monkeypatch.setattr(steps, name, value)  # the window of 16 stays hidden
    base = load(made("gpt_neo"), dtype="float32")
    assert base.steps.way == "shared"
    draw = np.random.default_rng(0)
    stem = draw.integers(3, 500, 24).tolist()
    prompts = [stem + draw.integers(3, 500, n).tolist() for n in (1, 4, 30)]
    found = generate(base, None, prompts, max_new_tokens=6, batch_size=3)
    assert found == [alone(base, None, prompt, 6) for prompt in prompts]
    assert base.steps.way == "kept"
    assert "a shared prefix gives other logits" in base.steps.told


@pytest.fixture
def larger(made: Callable[[str], Path], tmp_path: Path) -> Callable[[int, bool], Path]:
    """A base whose tokenizer has some tokens more than its embedding rows."""

    def make(more: int, special: bool) -> Path:
        folder = Path(shutil.copytree(made("opt"), tmp_path / "larger"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"<{i}>" for i in range(more)], special_tokens=special)
        tokenizer.pad_token = "<0>"
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_a_tokenizer_of_another_model_is_refused(larger: Callable[[int, bool], Path]) -> None:
    folder = larger(3, False)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    with pytest.raises(UserError, match=rf"token ids up to {rows + 2}, its embedding {rows} rows; give the tokenizer"):
        load(folder)


def test_special_tokens_beyond_the_embedding_are_let_pass_and_never_fed(larger: Callable[[int, bool], Path]) -> None:
    """Gemma's tokenizer has one for images that its language models have no row for."""
    base = load(larger(3, True), dtype="float32")
    assert base.tokenizer.pad_token_id == base.vocabulary
    assert base.pad_id == base.tokenizer.eos_token_id
    assert compared(base) == []
