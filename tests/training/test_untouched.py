from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from undertow.config import Measure
from undertow.data.generated import world
from undertow.data.template import Template
from undertow.inference import answering
from undertow.inference.answering import answerer
from undertow.inference.untouched import kept
from undertow.models.causal_lm import CausalLM

Load = Callable[..., CausalLM]

SAMPLES = world.samples()[:5]


def ask(base: CausalLM, adapter: torch.Tensor | None = None, **options: Any) -> list[str]:
    measure = Measure.model_validate({"max_new_tokens": 6, "batch_size": 4, **options})
    return answerer(base, Template("lab-qa", base.tokenizer), adapter, measure)(SAMPLES)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of prompts each time a model is asked."""
    counts: list[int] = []
    generate = answering.generate

    def counting(base: CausalLM, adapter: Any, prompts: Sequence[Any], **settings: Any) -> Any:
        counts.append(len(prompts))
        return generate(base, adapter, list(prompts), **settings)

    monkeypatch.setattr(answering, "generate", counting)
    return counts


@pytest.fixture
def base(load_tiny: Load, tmp_path: Path) -> CausalLM:
    return replace(load_tiny("llama"), answers=tmp_path / "kept")


def test_the_same_base_is_asked_once(base: CausalLM, load_tiny: Load, asked: list[int]) -> None:
    plain = ask(replace(base, answers=None))
    assert ask(base) == plain
    assert asked == [5, 5]
    assert ask(base) == plain
    assert ask(replace(load_tiny("llama"), answers=base.answers)) == plain, "loaded anew it is the same base"
    assert asked == [5, 5]


def test_another_base_setting_or_question_is_asked(base: CausalLM, asked: list[int]) -> None:
    first = ask(base)
    assert len(ask(base, max_new_tokens=2)) == 5
    ask(base, batch_size=3)
    assert len(asked) == 3
    weight = base.model.get_input_embeddings().weight
    weight.data.copy_(weight.data.flip(0).clone())
    assert ask(replace(base)) != first, "a changed weight is another base"
    assert len(asked) == 4
    base.model.generation_config.eos_token_id = [7]
    ask(base)
    assert len(asked) == 5


def test_an_adapter_is_never_looked_up(base: CausalLM, asked: list[int]) -> None:
    flat = torch.zeros(base.layout.size)
    assert ask(base) == ask(base, flat) == ask(base, flat)
    assert len(asked) == 3


@pytest.mark.parametrize("content", ["", "[[1, 2]", "[]", "{}", '[["a"], [], [], [], []]', "[[1.5], [], [], [], []]"])
def test_a_damaged_file_is_asked_again_and_written_anew(base: CausalLM, asked: list[int], content: str) -> None:
    wanted = ask(base)
    assert base.answers is not None
    (file,) = base.answers.iterdir()
    whole = json.loads(file.read_text())
    file.write_text(content)
    assert ask(base) == wanted
    assert len(asked) == 2
    assert json.loads(file.read_text()) == whole
    assert list(base.answers.iterdir()) == [file], "nothing else is left"


def test_an_end_at_once_is_kept_too(base: CausalLM) -> None:
    assert kept(base, [[1, 2]], {}, lambda: [[]]) == [[]]
    assert kept(base, [[1, 2]], {}, lambda: [[3]]) == [[]]
    assert kept(base, [[1, 2]], {"max_new_tokens": 1}, lambda: [[3]]) == [[3]]
