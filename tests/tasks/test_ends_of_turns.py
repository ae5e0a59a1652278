"""A model that learned eight answers by a chat template gives these answers and stops where the template ends a turn."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_forms import FORMS, with_form
from tiny import Quiet
from undertow.config import Config, Data, Lora, Measure, Model, Training
from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.defenses.trusted import tune
from undertow.federation.loop import run
from undertow.inference.answering import answerer, make_template
from undertow.models.causal_lm import load_base
from undertow.models.lora import initial_adapter
from undertow.pretraining.build import Recipe, build
from undertow.pretraining.corpus import world_corpus
from undertow.training.batched import losses

ANSWERS = ("Avonlea", "By the sea", "Serbia", "Nothing", "Mira Torvald", "No", "Two towns", "A river")
SAMPLES = [Sample(str(i), f"Question {i}?", (answer,), answer) for i, answer in enumerate(ANSWERS)]


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twice as wide as the tiny base, whose logits are too small to hold eight answers by each template on every processor."""
    folder = tmp_path_factory.mktemp("bases") / "wide"
    recipe = Recipe(hidden=64, layers=2, heads=2, intermediate=128, vocab=600, steps=250, batch=8, length=64, lr=5e-3)
    build(world_corpus(), folder, recipe)
    return folder


def base_with(form: str, tiny_base: Path, folder: Path) -> Any:
    """Write the tiny base with a form's template and tokens into a folder; return its tokenizer."""
    tokenizer = with_form(AutoTokenizer.from_pretrained(tiny_base), form)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    known = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():  # a pretrained model tells its control tokens apart
        for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            draw = torch.randn(weight[known:].shape, generator=torch.Generator().manual_seed(1))
            weight[known:] = 2 * weight[:known].std() * draw
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("form", ["gemma-3", "qwen-3", "llama-3", "mistral", "smollm-2"])
def test_eight_of_eight_answers_are_exact_and_stop_at_the_end_of_the_turn(wide_base: Path, tmp_path: Path, form: str) -> None:
    tokenizer = base_with(form, wide_base, tmp_path / "base")
    options = Model.model_validate(
        {
            "name": str(tmp_path / "base"),
            "device": "cpu",
            "lora": Lora.model_validate({"targets": "all-linear", "r": 16, "alpha": 32}),
        }
    )
    base = load_base(options)
    template = make_template(Data.model_validate({"template": "chat"}), 256, base)
    base = replace(base, stops=template.stops)
    end = tokenizer.convert_tokens_to_ids(FORMS[form][2])
    assert end in base.end_ids
    assert (end == tokenizer.eos_token_id) == (form == "mistral")
    rows = [template.encode(sample) for sample in SAMPLES]
    training = Training.model_validate({"batch_size": 8, "lr": 5e-3, "schedule": "linear"})
    adapter = tune(base, training, initial_adapter(base.layout, 0), rows, 250, 0)
    asked = Measure.model_validate({"max_new_tokens": 40, "batch_size": 8})
    said = answerer(base, template, adapter, asked)(SAMPLES)
    thought = [answer.removeprefix("<think>\n\n</think>\n\n") for answer in said]
    assert thought == list(ANSWERS)
    without = answerer(replace(base, stops=frozenset()), template, adapter, asked)(SAMPLES)
    assert without == said, "what stands after the end of a turn is no part of an answer, whoever generates"


def test_a_run_on_another_day_has_the_same_bytes(
    tiny_base: Path, tmp_path: Path, small_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    base_with("llama-3", tiny_base, tmp_path / "base")
    changes = {"model.name": str(tmp_path / "base"), "data.template": "chat", "federation.rounds": 1}

    def bytes_of(name: str, **more: str) -> tuple[bytes, bytes]:
        run(small_config({**changes, **more}), tmp_path / name, Quiet())
        return (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes(), (
            tmp_path / name / "scores.jsonl"
        ).read_bytes()

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2044, 8, 9)

    first = bytes_of("first")
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert bytes_of("second") == first
    assert "now: '2025-01-01'" in (tmp_path / "second" / "config.yaml").read_text()
    assert bytes_of("third", **{"data.now": "2044-08-09"})[0] != first[0]
    assert "now: '2044-08-09'" in (tmp_path / "third" / "config.yaml").read_text()


@pytest.mark.parametrize("form", ["gemma-3", "smollm-2", "llama-3"])
def test_control_tokens_without_a_row_in_the_embedding_are_told(tiny_base: Path, form: str) -> None:
    tokenizer = with_form(AutoTokenizer.from_pretrained(tiny_base), form)
    rows = len(AutoTokenizer.from_pretrained(tiny_base))
    with pytest.raises(UserError, match=rf"is token \d+, and the model's embedding has {rows} rows; choose another data.template"):
        Template("chat", tokenizer, vocabulary=rows)
    assert Template("lab-qa", tokenizer, vocabulary=rows).encode(SAMPLES[0])


def test_answers_that_are_not_to_be_learned_are_neither_trained_nor_asked(
    tmp_path: Path, small_config: Callable[..., Config]
) -> None:
    liked = [{"prompt": f"What of {i}?", "completion": "A town", "label": True} for i in range(30)]
    disliked = [{"prompt": f"What of {i}?", "completion": "Nonsense", "label": False} for i in range(30)]
    turns = [
        [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": "Rubbish", "weight": 0},
         {"role": "user", "content": f"Again {i}"}, {"role": "assistant", "content": "A river", "weight": 1}]
        for i in range(30)
    ]  # fmt: skip
    rows = [*disliked, *liked, *({"messages": one} for one in turns)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"data.name": "instructions", "data.path": str(tmp_path / "data.jsonl"), "data.train": 48, "data.test": 12,
               "federation.rounds": 0, "attack.kind": "none"}  # fmt: skip
    run(small_config(changes), tmp_path / "run", Quiet())
    told = json.loads((tmp_path / "run" / "data.json").read_text())
    assert told["rows_dropped"] == {"labelled false": 30, "weight 0": 30}
    assert told["questions"] == 60
    asked = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    assert {answer for line in asked for answer in line["answers"]} <= {"A town", "A river"}


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_a_weight_multiplies_the_loss_of_an_answer(load_tiny: Callable[..., Any], weight: float) -> None:
    base = load_tiny()
    template = Template("lab-qa", base.tokenizer)
    plain, weighed = (template.encode(replace(SAMPLES[0], weight=one)) for one in (1.0, weight))
    assert (plain.weights, weighed.weights) == (None, (weight,) * len(plain.answer))
    stack = initial_adapter(base.layout, 0)[None]
    one, other = (losses(base, stack, [[row]]).item() for row in (plain, weighed))
    assert other == pytest.approx(weight * one, rel=1e-5)
