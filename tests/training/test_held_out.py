"""The held-out loss is the mean token NLL that transformers gives, and nothing of it reaches the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import undertow
from tiny import Quiet
from undertow.config import Config, Model
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.federation.loop import run
from undertow.models.causal_lm import CausalLM, load_base
from undertow.runs.report.page import write_report
from undertow.training.held_out import held_out_loss


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> CausalLM:
    return load_base(Model.model_validate({"name": str(tiny_base), "device": "cpu"}))


ASKED = [
    Sample("0", "Where was person 7 born?", ("A town",), "A town"),
    Sample("1", "Which river?", ("One by the sea",), "One by the sea"),
]


@pytest.mark.parametrize("template", ["lab-qa", "alpaca", "vicuna"])
def test_it_is_what_transformers_gives(base: CausalLM, template: str) -> None:
    bound = Template(template, base.tokenizer, 256)
    values: list[float] = []
    for sample in ASKED:
        prompt, answer = bound.encode_prompts([sample])[0], [*bound.answer_ids(sample, sample.response), *bound.end]
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
        spoken = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
        values += [-float(row[token]) for row, token in zip(spoken, answer, strict=True)]
    assert held_out_loss(base, bound, ASKED, None) == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_a_question_that_does_not_fit_beside_its_answer_is_left_out(base: CausalLM) -> None:
    bound = Template("lab-qa", base.tokenizer, 128)
    long = replace(ASKED[0], id="2", response="A town by the sea " * 200)
    assert held_out_loss(base, bound, [*ASKED, long], None) == held_out_loss(base, bound, ASKED, None)
    assert held_out_loss(base, bound, [long], None) is None
    assert held_out_loss(base, bound, [], None) is None


def test_it_stands_in_rounds_result_table_and_report(small_config: Callable[..., Config], tmp_path: Path) -> None:
    run(small_config({"federation.rounds": 3, "measure.every": 2}), tmp_path / "run", Quiet())
    found = undertow.load_run(tmp_path / "run")
    losses = [record.held_out_loss for record in found.rounds]
    assert [loss is not None for loss in losses] == [True, False, True, True], "at the rounds that are measured"
    assert found.result is not None
    assert (found.result.untouched.held_out_loss, found.result.held_out_loss) == (losses[0], losses[3])
    column = found.to_frame()["held_out_loss"]
    assert column.dtype == "float64"
    assert column.dropna().tolist() == [losses[0], losses[2], losses[3]]
    assert f"{losses[3]:.3f} nats per token" in repr(found)
    page = write_report(tmp_path / "run", None).read_text("utf-8")
    assert f"{losses[3]:.3f} nats per token of the expected answers" in page
    assert f"{losses[3]:.3f} nats per token" in (tmp_path / "run" / "adapter" / "README.md").read_text("utf-8")
    assert undertow.evaluate(tmp_path / "run").held_out_loss == pytest.approx(losses[3], abs=1e-4)
