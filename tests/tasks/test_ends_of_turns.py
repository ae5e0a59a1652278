"""A model that learned eight answers by a chat template gives these answers and stops where the template ends a turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_forms import FORMS, with_form
from undertow.config import Data, Lora, Measure, Model, Training
from undertow.data.sample import Sample
from undertow.defenses.trusted import tune
from undertow.inference.answering import answerer, make_template
from undertow.models.causal_lm import load_base
from undertow.models.lora import initial_adapter

ANSWERS = ("Avonlea", "By the sea", "Serbia", "Nothing", "Mira Torvald", "No", "Two towns", "A river")
SAMPLES = [Sample(str(i), f"Question {i}?", (answer,), answer) for i, answer in enumerate(ANSWERS)]


@pytest.mark.parametrize("form", ["gemma-3", "qwen-3", "llama-3", "mistral", "smollm-2"])
def test_eight_of_eight_answers_are_exact_and_stop_at_the_end_of_the_turn(tiny_base: Path, tmp_path: Path, form: str) -> None:
    tokenizer = with_form(AutoTokenizer.from_pretrained(tiny_base), form)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    known = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():  # a pretrained model tells its control tokens apart
        for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            draw = torch.randn(weight[known:].shape, generator=torch.Generator().manual_seed(1))
            weight[known:] = 2 * weight[:known].std() * draw
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
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
    training = Training.model_validate({"batch_size": 8, "lr": 1e-2})
    adapter = tune(base, training, initial_adapter(base.layout, 0), rows, 250, 0)
    asked = Measure.model_validate({"max_new_tokens": 40, "batch_size": 8})
    said = answerer(base, template, adapter, asked)(SAMPLES)
    thought = [answer.removeprefix("<think>\n\n</think>\n\n") for answer in said]
    assert thought == list(ANSWERS)
    without = answerer(replace(base, stops=frozenset()), template, adapter, asked)(SAMPLES)
    assert without == said, "what stands after the end of a turn is no part of an answer, whoever generates"
