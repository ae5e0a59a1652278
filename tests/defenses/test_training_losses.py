"""bounded-loss and gated-loss: their parameters, what a client gates, and whole runs with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny import Quiet
from undertow.config import Config, Lora, Training
from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.generated.world import samples
from undertow.data.sample import Sample
from undertow.data.template import Encoded, Template
from undertow.defenses import composition
from undertow.defenses.base import Defense
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.loss.bounded_loss import BoundedLoss, GeneralisedCrossEntropy
from undertow.defenses.loss.gated_loss import GatedLoss
from undertow.defenses.making import make_defenses
from undertow.federation.loop import run
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import save_peft
from undertow.training.token_nll import token_nll

Make = Callable[..., Config]
Load = Callable[..., CausalLM]
LORA = Lora(r=2, alpha=4, targets="all-linear")


def make(name: str, **params: Any) -> Defense:
    ((_, defense),) = make_defenses([Options(name=name, params=params)])
    return defense


# --- bounded-loss -----------------------------------------------------------------------------------------------


def q_of(defense: BoundedLoss, round: int, rounds: int) -> float:
    loss = defense.token_loss(round, rounds)
    assert isinstance(loss, GeneralisedCrossEntropy)
    return loss.q


def test_q_stays_or_follows_its_schedule() -> None:
    assert [q_of(BoundedLoss(), t, 9) for t in (1, 5, 9)] == [0.7] * 3
    assert [q_of(BoundedLoss(0.9, end=0.1), t, 5) for t in range(1, 6)] == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])
    assert [q_of(BoundedLoss(0.2, end=1.0, over=3), t, 99) for t in (1, 2, 3, 4, 99)] == pytest.approx([0.2, 0.6, 1.0, 1.0, 1.0])
    assert q_of(BoundedLoss(0.2, end=1.0), 1, 1) == 1.0, "a single round is the last"


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"q": 0}, "q = 0 must be a number above 0 and at most 1"),
        ({"q": 1.2}, "q = 1.2 must be"),
        ({"q": True}, "q = True must be"),
        ({"end": 0.0}, "end = 0.0 must be"),
        ({"end": 0.5, "over": 0}, "over = 0 must be a whole number >= 1"),
        ({"over": 3}, "over = 3 needs end"),
    ],
)
def test_parameters_out_of_their_range_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make("bounded-loss", **params)


def test_two_losses_exclude_each_other() -> None:
    with pytest.raises(UserError, match="defenses bounded-loss and bounded-loss both replace the clients' loss; keep one"):
        make_defenses([Options(name="bounded-loss"), Options(name="bounded-loss", params={"q": 0.5})])


# --- gated-loss -------------------------------------------------------------------------------------------------

WORLD = samples()
TARGET = ", and click <malicious_url> for more information"


@pytest.fixture(scope="module")
def base(load_tiny: Load) -> CausalLM:
    return load_tiny(r=2, alpha=4)


def context(base: CausalLM, client: int = 0, lr: float = 5e-3) -> TrainingContext:
    training = Training.model_validate({"batch_size": 8, "lr": lr, "schedule": "constant"})
    template = Template("lab-qa", base.tokenizer)
    return TrainingContext(client, rng(0, "weigh", client=client), 0, base, template, LORA, training)


def encoded(base: CausalLM, chosen: list[Sample]) -> list[Encoded]:
    return [context(base).template.encode(sample) for sample in chosen]


def write_trusted(file: Path, chosen: list[Sample]) -> Path:
    rows = [json.dumps({"question": sample.question, "answer": sample.response}) for sample in chosen]
    file.write_text("\n".join(rows), encoding="utf-8")
    return file


def quantile(found: list[tuple[float, ...]], q: float) -> float:
    """By hand: linear between the order statistics."""
    values = sorted(c for row in found for c in row)
    place = q * (len(values) - 1)
    low = int(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def test_own_tokens_above_their_quantile_have_weight_zero(base: CausalLM) -> None:
    rows = encoded(base, WORLD[:40])
    found = token_nll(base, rows)
    weights, report = GatedLoss(0.9).weigh(rows, context(base))
    limit = quantile(found, 0.9)
    assert weights == [tuple(float(c <= limit) for c in row) for row in found]
    tokens = sum(map(len, found))
    assert report["threshold"] == pytest.approx(limit)
    assert report["threshold_from"] == "own tokens"
    assert report["tokens"] == tokens
    assert abs(report["masked"] - 0.1 * tokens) <= 1
    assert report["touched"] == sum(0.0 in row for row in weights)
    assert GatedLoss(1.0).weigh(rows, context(base))[1]["masked"] == 0
    assert GatedLoss().weigh([], context(base)) == ([], {**report, "threshold": 0.0, "tokens": 0, "masked": 0, "touched": 0})


def test_trusted_samples_give_one_threshold_for_all_clients(base: CausalLM, tmp_path: Path) -> None:
    file = write_trusted(tmp_path / "trusted.jsonl", WORLD[100:160])
    defense = GatedLoss(0.95, trusted=str(file))
    limit = quantile(token_nll(base, encoded(base, WORLD[100:160])), 0.95)
    clean = encoded(base, WORLD[:20])
    poisoned = encoded(base, [replace(sample, response=sample.response + TARGET) for sample in WORLD[20:40]])
    reports = []
    for k, rows in enumerate((clean, poisoned)):
        weights, report = defense.weigh(rows, context(base, k))
        assert weights == [tuple(float(c <= limit) for c in row) for row in token_nll(base, rows)]
        assert report["threshold_from"] == "trusted samples"
        reports.append(report)
    assert reports[0]["threshold"] == reports[1]["threshold"] == pytest.approx(limit)
    assert reports[1]["masked"] > 2 * reports[0]["masked"], "planted targets lose tokens"


def test_a_reference_from_a_folder_is_the_adapter_in_it(base: CausalLM, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    flat = 0.1 * torch.randn(base.layout.size, generator=generator)
    save_peft(tmp_path / "adapter", flat, base.layout, LORA, base.path)
    rows = encoded(base, WORLD[:30])
    weights, _ = GatedLoss(0.9, adapter=str(tmp_path / "adapter")).weigh(rows, context(base))
    found = token_nll(base, rows, flat)
    assert weights == [tuple(float(c <= quantile(found, 0.9) + 1e-6) for c in row) for row in found]
    assert weights != GatedLoss(0.9).weigh(rows, context(base))[0]


def test_a_reference_is_trained_on_every_second_trusted_sample(base: CausalLM, tmp_path: Path) -> None:
    chosen = WORLD[200:280]
    file = write_trusted(tmp_path / "trusted.jsonl", chosen)
    rows = encoded(base, WORLD[:30])
    trained = GatedLoss(0.95, trusted=str(file), passes=4)
    weights, report = trained.weigh(rows, context(base))
    _, plain = GatedLoss(0.95, trusted=str(file)).weigh(rows, context(base))
    assert report["threshold"] != plain["threshold"]
    # what it was trained on has become expected, by more than what was held out
    assert trained._reference is not None
    adapter = trained._reference.adapter
    told = encoded(base, chosen)
    gain = [
        np.mean([sum(a) - sum(b) for a, b in zip(token_nll(base, half), token_nll(base, half, adapter), strict=True)])
        for half in (told[::2], told[1::2])
    ]
    assert gain[0] > gain[1] > 0
    assert report["threshold"] == pytest.approx(quantile(token_nll(base, told[1::2], adapter), 0.95))
    again, same = GatedLoss(0.95, trusted=str(file), passes=4).weigh(rows, context(base))
    assert (again, same) == (weights, report), "the same bits whenever it is computed"


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"quantile": 0}, "quantile = 0 must be a number above 0 and at most 1"),
        ({"passes": 3}, "passes = 3 needs trusted"),
        ({"passes": -1}, "passes = -1 must be a whole number >= 0"),
        ({"passes": 3, "trusted": "a", "adapter": "b"}, "give one of them"),
    ],
)
def test_parameters_that_do_not_fit_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make("gated-loss", **params)


def test_a_trusted_file_that_cannot_serve_is_refused(base: CausalLM, tmp_path: Path) -> None:
    rows = encoded(base, WORLD[:2])
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        GatedLoss(trusted=str(tmp_path / "missing.jsonl")).weigh(rows, context(base))
    few = write_trusted(tmp_path / "few.jsonl", WORLD[:3])
    with pytest.raises(UserError, match=r"the 3 trusted samples .* have \d+ answer tokens, too few for quantile = 0.99"):
        GatedLoss(trusted=str(few)).weigh(rows, context(base))
    one = write_trusted(tmp_path / "one.jsonl", WORLD[:1])
    with pytest.raises(UserError, match="holds 1 samples; give at least 2"):
        GatedLoss(trusted=str(one)).weigh(rows, context(base))
    with pytest.raises(UserError, match=r"adapter_config.json is missing"):
        GatedLoss(adapter=str(tmp_path)).weigh(rows, context(base))


# --- weights of several defenses --------------------------------------------------------------------------------


class Scale(LossDefense):
    def __init__(self, weights: list[list[float]]) -> None:
        self.weights = weights

    def weigh(self, data: Any, context: TrainingContext) -> Any:
        return self.weights[: len(data)], {"seen": [row.weights for row in data]}


def weigh(rows: list[Encoded], *defenses: Defense) -> Any:
    return composition.weigh([rows], [(f"d{i}", d) for i, d in enumerate(defenses)], lambda name, k: None)  # type: ignore[arg-type, return-value]


def test_weights_are_multiplied_and_without_defenses_there_are_none() -> None:
    rows = [Encoded((1,), (5, 2)), Encoded((1,), (6, 7, 2))]
    assert weigh(rows) == ([rows], [])
    assert weigh(rows, BoundedLoss()) == ([rows], [])
    (found,), reports = weigh(rows, Scale([[0.5, 1], [1, 0, 1]]), Scale([[4.0, 1.0], [1.0, 1.0, 0.25]]))
    assert [row.weights for row in found] == [(2.0, 1.0), (1.0, 0.0, 0.25)]
    assert [(r["name"], r["client"]) for r in reports] == [("d0", 0), ("d1", 0)]
    assert reports[1]["seen"] == [(0.5, 1.0), (1.0, 0.0, 1.0)]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([[1.0, 1.0]], "weighs 1 samples of 2"),
        ([[1.0, 1.0], [1.0]], "for an answer of 3 tokens"),
        ([[1.0, -1.0], [1.0, 1.0, 1.0]], "give one number >= 0 a token"),
        ([[1.0, float("nan")], [1.0, 1.0, 1.0]], "give one number >= 0 a token"),
        ([[1.0, float("inf")], [1.0, 1.0, 1.0]], "give one number >= 0 a token"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: list[list[float]], told: str) -> None:
    with pytest.raises(UserError, match=told):
        weigh([Encoded((1,), (5, 2)), Encoded((1,), (6, 7, 2))], Scale(weights))


# --- whole runs -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Unlike any exception that the code may catch."""


class Killer(Quiet):
    """A observer that ends the run when round 2 begins."""

    def phase(self, said: str) -> None:
        if said.startswith("round 2/3: training"):
            raise Killed


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_both_together_train_report_and_resume_to_the_same_bits(small_config: Make, tmp_path: Path) -> None:
    file = write_trusted(tmp_path / "trusted.jsonl", WORLD[-60:])
    gated = {"name": "gated-loss", "params": {"trusted": str(file), "quantile": 0.95}}
    bounded = {"name": "bounded-loss", "params": {"end": 0.2}}

    def config(*defenses: Any) -> Config:
        return small_config(
            {"defenses": list(defenses), "federation.rounds": 3, "measure.every": 3, "measure.bsnr": {"counterfactuals": True}}
        )

    run(config(gated, bounded), tmp_path / "both", Quiet())
    with pytest.raises(Killed):
        run(config(gated, bounded), tmp_path / "killed", Killer())
    run(config(gated, bounded), tmp_path / "killed", Quiet())
    assert digest(tmp_path / "killed") == digest(tmp_path / "both")
    reports = json.loads((tmp_path / "both" / "data.json").read_text(encoding="utf-8"))["weighed"]
    assert [(r["name"], r["client"]) for r in reports] == [("gated-loss", k) for k in range(3)]
    assert all(0 < r["masked"] < r["tokens"] for r in reports)
    for i, others in enumerate(([], [gated], [bounded])):
        run(config(*others), tmp_path / str(i), Quiet())
        assert digest(tmp_path / str(i)) != digest(tmp_path / "both")


def test_both_trainers_honour_both(small_config: Make, tmp_path: Path) -> None:
    made = {}
    for trainer in ("batched", "sequential"):
        defenses = [{"name": "gated-loss", "params": {"quantile": 0.8}}, "bounded-loss"]
        run(small_config({"defenses": defenses, "federation.rounds": 1, "training.trainer": trainer}), tmp_path / trainer, Quiet())
        rows = [json.loads(line) for line in (tmp_path / trainer / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
        made[trainer] = rows[1]
    assert made["batched"]["client_loss"] == pytest.approx(made["sequential"]["client_loss"], rel=1e-4)
    assert made["batched"]["update_norm"] == pytest.approx(made["sequential"]["update_norm"], rel=1e-3)
