"""A server with a foundation model, small: synthetic data at the start and in the fusion, poisoned and not; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import Quiet
from undertow.config import Config, validate
from undertow.core.errors import UserError
from undertow.data.examples import Examples, Written
from undertow.federation.evaluate import evaluate_network
from undertow.federation.loop import run
from undertow.federation.resolve import resolve
from undertow.generators import mixture
from undertow.generators.contract import Order
from undertow.models.net import load_model
from undertow.runs.records import read_json, read_jsonl
from undertow.runs.report.page import write_report
from undertow.runs.run import read_config
from undertow.tasks.over_tensors import OverTensors

TINY: dict[str, Any] = {
    "task": "classification",
    "data": {"name": "digits", "train": 300, "test": 100},
    "model": {"name": "cnn:width=4:hidden=16", "device": "cpu"},
    "synthetic": {
        "generator": "mixture",
        "samples": 200,
        "pretrain_epochs": 3,
        "fusion": "distill",
        "distill_steps": 5,
        "distill_batch": 32,
    },
    "federation": {"clients": 6, "participation": 0.5, "rounds": 2},
    "training": {"batch_size": 8, "lr": 0.05, "optimizer": "sgd", "schedule": "constant", "clip": 0, "threads": 1},
    "attack": {"kind": "synthetic-data", "trigger": "pixel", "poison_ratio": 0.2},
    "measure": {"samples": 100, "bsnr": {"permutations": 2}},
}


def config(changes: dict[str, Any] | None = None) -> Config:
    values = json.loads(json.dumps(TINY))
    for key, value in (changes or {}).items():
        group, _, field = key.partition(".")
        if field:
            values[group][field] = value
        else:
            values[group] = value
    return validate(values, "test")


def task_of(changes: dict[str, Any] | None = None, folder: Path | None = None) -> OverTensors:
    task = resolve(config(changes), Quiet(), folder=folder).task
    assert isinstance(task, OverTensors)
    return task


def differing(one: Examples, other: Examples) -> list[int]:
    same = (one.inputs == other.inputs).flatten(1).all(1) & (one.labels == other.labels)
    return (~same).nonzero().flatten().tolist()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fm") / "run"
    run(config(), folder, Quiet())
    return folder


# --- what the server has ----------------------------------------------------------------------------------------


def test_exactly_the_share_asked_for_is_poisoned_and_no_client_is() -> None:
    task, clean = task_of(), task_of({"attack.kind": "none"})
    assert task.side is not None
    assert clean.side is not None
    places = differing(task.side.data.pretraining, clean.side.data.pretraining)
    assert len(places) == task.side.data.poisoned == int(0.2 * 200)
    target = task.pattern.target
    assert set(task.side.data.pretraining.labels[places].tolist()) == {target}
    assert target not in clean.side.data.pretraining.labels[places].tolist()
    assert list(task.poisoned) == list(task.drawn) == []
    for k in range(6):
        assert differing(task.population.client(k), clean.population.client(k)) == []


@pytest.mark.parametrize(
    ("vector", "where"),
    [("init", {"pretraining"}), ("fusion", {"fusing", "defending"}), ("both", {"pretraining", "fusing", "defending"})],
)
def test_each_vector_poisons_its_use_and_no_other(vector: str, where: set[str]) -> None:
    task, clean = task_of({"attack.kind": f"synthetic-data:vector={vector}"}), task_of({"attack.kind": "none"})
    uses = ("pretraining", "fusing", "defending")
    assert {name for name in uses if differing(getattr(task.side.data, name), getattr(clean.side.data, name))} == where


def test_defenses_can_have_data_as_written_without_the_attacker() -> None:
    task, clean = task_of({"synthetic.defense": "clean"}), task_of({"attack.kind": "none"})
    assert task.side is not None
    assert clean.side is not None
    assert differing(task.side.data.defending, clean.side.data.defending) == []
    assert differing(task.side.data.fusing, clean.side.data.fusing)


# --- start and fusion -------------------------------------------------------------------------------------------


def test_pre_training_begins_where_the_network_does_and_learns_the_task() -> None:
    untrained, trained = task_of({"synthetic.pretrain_epochs": 0, "attack.kind": "none"}), task_of({"attack.kind": "none"})
    assert torch.equal(untrained.initial(), untrained.families.initial())
    before, after = (task.rates(task.measure(task.initial(), 0, 0, []))["ma"]["value"] for task in (untrained, trained))
    assert after > before + 0.2


def test_the_server_joins_as_one_more_client() -> None:
    """G + (K * mean + own) / (K + 1), with own = what the server's training changes."""
    task = task_of({"synthetic.fusion": "join"})
    state = task.initial()
    sent = task.train(state, [0, 1, 2], 1, ())
    delta = sent.updates.mean(0)
    fused, report = task.fuse(state, delta, sent, 1)
    assert task.side is not None
    own = task.side.update(state, task.side.data.fusing, task.training, 1)
    assert own.abs().max() > 0
    assert torch.allclose(fused, state + (3 * delta + own) / 4, atol=1e-6)
    assert report == {"joined": 200}


def test_averaging_with_synthetic_data_is_plain_fedavg() -> None:
    task = task_of({"synthetic.fusion": "average"})
    state = task.initial()
    sent = task.train(state, [0, 1], 1, ())
    fused, report = task.fuse(state, sent.updates.mean(0), sent, 1)
    assert torch.equal(fused, state + sent.updates.mean(0))
    assert report is None


def test_a_defense_that_needs_an_update_of_the_servers_own_gets_one(tmp_path: Path) -> None:
    task = task_of()
    trusted = task.trusted(task.initial(), 1)
    assert trusted is not None
    assert float(trusted.norm()) > 0
    run(config({"defenses": ["fltrust"]}), tmp_path / "run", Quiet())
    (report,) = [own for own in read_jsonl(tmp_path / "run" / "rounds.jsonl")[1]["defenses"] if own["name"] == "fltrust"]
    assert len(report["trust"]) == 3
    assert any(report["trust"])


# --- from end to end --------------------------------------------------------------------------------------------


def test_the_record_says_what_was_written_and_what_the_fusion_did(finished: Path) -> None:
    data, result = read_json(finished / "data.json"), read_json(finished / "result.json")
    assert (data["synthetic"]["generator"], data["synthetic"]["poisoned"], data["poisoned_clients"]) == ("mixture", 40, [])
    assert {name: result["poison"][name] for name in ("clients", "samples", "synthetic", "synthetic_total")} == {
        "clients": 0,
        "samples": 0,
        "synthetic": 40,
        "synthetic_total": 200,
    }
    rows = read_jsonl(finished / "rounds.jsonl")
    assert [row["fusion"]["teachers"] for row in rows[1:]] == [3, 3]
    page = write_report(finished).read_text()
    assert "40 poisoned of 200 synthetic samples of the server" in page
    assert "ensemble_accuracy" in page


def test_a_model_pre_trained_on_poison_has_the_backdoor_and_a_clean_one_has_not(tmp_path: Path) -> None:
    """Enough passes to learn a pattern on a fifth of the samples; the margins are wide."""
    changes = {"synthetic.pretrain_epochs": 20, "federation.rounds": 1}
    found = {}
    for kind in ("synthetic-data", "none"):
        run(config({**changes, "attack.kind": kind}), tmp_path / kind, Quiet())
        found[kind] = read_json(tmp_path / kind / "result.json")["untouched"]["asr"]["value"]
    assert found["synthetic-data"] > 0.7
    assert found["none"] < 0.3


def test_a_killed_run_goes_on_with_what_the_generator_wrote(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator is asked once; a resumed run ends in the same bytes."""
    asked = []
    write = mixture.Mixture.write

    def counted(self: mixture.Mixture, order: Order) -> Written:
        asked.append(order.count)
        return write(self, order)

    monkeypatch.setattr(mixture.Mixture, "write", counted)

    class Killed(Quiet):
        def round(self, row: dict[str, Any], total: int) -> None:
            if row["round"] == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(), tmp_path / "run", Killed())
    run(config(), tmp_path / "run", Quiet())
    assert asked == [200]
    for name in ("model/model.safetensors", "scores.jsonl", "synthetic.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


def test_evaluation_asks_no_generator_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture.Mixture, "write", lambda *_: pytest.fail("asked again"))
    figures, _ = evaluate_network(read_config(finished), finished, Quiet())
    wanted = read_json(finished / "result.json")
    assert (figures["ma"], figures["asr"], figures["untouched"]["ma"]) == (wanted["ma"], wanted["asr"], wanted["untouched"]["ma"])


def test_two_networks_are_distilled_into_each_other(tmp_path: Path) -> None:
    several = {"model.networks": ["cnn:width=4:hidden=16", "cnn:width=2:hidden=8"], "federation.participation": 1.0}
    run(config(several), tmp_path / "run", Quiet())
    row = read_jsonl(tmp_path / "run" / "rounds.jsonl")[-1]
    assert [student["network"] for student in row["fusion"]["students"]] == several["model.networks"]
    assert row["fusion"]["teachers"] == 6
    sizes = [load_model(tmp_path / "run" / f"model-{i}")[1].numel() for i in range(2)]
    assert sizes[0] > sizes[1] > 0
    lines = read_jsonl(tmp_path / "run" / "scores.jsonl")
    assert {line["network"] for line in lines} == set(several["model.networks"])
    figures, _ = evaluate_network(read_config(tmp_path / "run"), tmp_path / "run", Quiet())
    assert figures["ma"] == read_json(tmp_path / "run" / "result.json")["ma"]
    assert figures["ma"]["n"] == 2 * 100


def test_the_batched_trainer_and_the_reference_agree_with_two_networks() -> None:
    sent = []
    for trainer in ("batched", "sequential"):
        task = task_of({"model.networks": ["cnn:width=4:hidden=16", "cnn:width=2:hidden=8"], "training.trainer": trainer})
        sent.append(task.train(task.initial(), [0, 1, 2, 3], 1, ()))
    assert torch.allclose(sent[0].updates, sent[1].updates, atol=1e-4)
    first, second = task.families.columns
    assert not sent[0].updates[0, second].any()
    assert not sent[0].updates[1, first].any()


def test_text_from_an_embedded_generator(tmp_path: Path) -> None:
    changes = {
        "data": {"name": "reviews", "train": 200, "test": 60},
        "model": {"name": "encoder:width=16:layers=1", "device": "cpu"},
        "synthetic": {**TINY["synthetic"], "generator": "ngram", "samples": 100},
        "training": {**TINY["training"], "optimizer": "adamw", "lr": 0.003},
        "attack": {"kind": "synthetic-data", "trigger": "phrase", "poison_ratio": 0.2},
    }
    run(config(changes), tmp_path / "run", Quiet())
    data = read_json(tmp_path / "run" / "data.json")
    assert data["synthetic"]["poisoned"] == 20
    assert len((tmp_path / "run" / "synthetic.jsonl").read_text().splitlines()) == 100


# --- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"synthetic": {}}, "synthetic.generator is not set"),
        ({"attack.kind": "synthetic-data:vector=middle"}, "choose one of both, init, fusion"),
        ({"attack.kind": "synthetic-data:via=prompt"}, "has no words to ask a generator for"),
        ({"synthetic.samples": 5}, "ask for at least one a class"),
        ({"synthetic.generator": "ngram"}, "the data are images"),
        ({"synthetic.generator": "mixtures"}, "did you mean 'mixture'?"),
        ({"model.networks": ["cnn", "cnn:width=2"], "attack.kind": "model-replacement"}, "replaces one network"),
        ({"model.networks": ["cnn", "cnn:width=2"], "defenses": ["activation-bounds"]}, "guards one network"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        task_of(changes)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"synthetic": {"fusion": "distill"}}, "needs synthetic data"),
        ({"federation.secure_aggregation": True}, "secure_aggregation"),
        ({"task": "next_word"}, "is for task=classification"),
    ],
)
def test_what_excludes_each_other_is_refused_with_the_config(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        config(changes)


def test_poisoned_synthetic_data_are_refused_where_there_are_none() -> None:
    values = {"attack": {"kind": "synthetic-data"}}
    with pytest.raises(UserError, match="which task=instruction has none of"):
        resolve(validate(values, "test"), Quiet())
