"""Images and words from end to end, small: what a run leaves is counted by hand, and what cannot be is one line."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import Quiet
from undertow.config import Config, validate
from undertow.core.errors import UserError
from undertow.data.examples import IGNORE, Examples
from undertow.federation import loop as experiment
from undertow.federation.evaluate import evaluate_network, score_again
from undertow.federation.loop import run
from undertow.federation.resolve import resolve
from undertow.models.net import load_model
from undertow.runs.collect import collect
from undertow.runs.report.page import write_report
from undertow.runs.run import read_config
from undertow.tasks.over_tensors import OverTensors
from undertow.tasks.participation import participants
from undertow.training import stacked

DIGITS: dict[str, Any] = {
    "task": "classification",
    "data": {"name": "digits", "train": 300, "test": 120, "partition": {"kind": "dirichlet", "alpha": 0.9}},
    "model": {"name": "cnn:width=4:hidden=16", "device": "cpu"},
    "federation": {"clients": 12, "participation": 0.5, "rounds": 2, "global_lr": 2},
    "training": {"batch_size": 8, "lr": 0.05, "optimizer": "sgd", "schedule": "constant", "clip": 0, "threads": 1},
    "attack": {
        "kind": "model-replacement:epochs=2:milestones=false",
        "rounds": [2],
        "trigger": "semantic",
        "client_share": 0.17,
        "poison_ratio": 0.25,
        "extra_samples": 20,
    },
    "measure": {"samples": 60, "bsnr": {"permutations": 2}},
}
WORDS: dict[str, Any] = {
    **DIGITS,
    "task": "next_word",
    "data": {"name": "authors:words=120:length=10", "test": 80, "partition": "key"},
    "model": {"name": "lstm:hidden=8", "device": "cpu"},
    "training": {**DIGITS["training"], "lr": 1.0},
    "attack": {**DIGITS["attack"], "trigger": "sentence"},
}
TASKS = {"digits": DIGITS, "authors": WORDS}


def config(name: str, changes: dict[str, Any] | None = None) -> Config:
    values = json.loads(json.dumps(TASKS[name]))
    for key, value in (changes or {}).items():
        group, _, field = key.partition(".")
        if field:
            values[group][field] = value
        else:
            values[group] = value
    return validate(values, "test")


@pytest.fixture(scope="module", params=list(TASKS))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    run(config(request.param), folder, Quiet())
    return request.param, folder


def task_of(name: str, changes: dict[str, Any] | None = None) -> OverTensors:
    task = resolve(config(name, changes), Quiet()).task
    assert isinstance(task, OverTensors)
    return task


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a growing file without the time it took."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (folder / name).read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def assert_same_run(found: Path, wanted: Path) -> None:
    assert weights(found) == weights(wanted)
    for name in ("scores.jsonl", "poison.jsonl", "data.json"):
        assert (found / name).read_bytes() == (wanted / name).read_bytes()
    assert lines(found, "rounds.jsonl") == lines(wanted, "rounds.jsonl")


# --- what is recorded -------------------------------------------------------------------------------------------


def test_the_recorded_ground_truth_is_what_differs_from_the_clean_data(finished: tuple[str, Path]) -> None:
    name, folder = finished
    task = task_of(name)
    data = json.loads((folder / "data.json").read_text())
    recorded = {(line["client"], line["index"]) for line in lines(folder, "poison.jsonl")}
    differing: set[tuple[int, int]] = set()
    for k in range(12):
        clean = task.population.client(k)
        if k not in task.poisoned:
            assert data["poisoned"][k] == 0
            continue
        own = task.items([k])
        assert isinstance(own, Examples)
        # Its own come first, then those of others; all that is not poisoned is as it was.
        same = [
            torch.equal(own.inputs[i], clean.inputs[i]) and torch.equal(own.labels[i], clean.labels[i]) for i in range(len(clean))
        ]
        places = {i for client, i in recorded if client == k}
        assert {i for i, equal in enumerate(same) if not equal} == {i for i in places if i < len(clean)}
        before = task.poison[k].before
        changed = [
            i
            for i in range(len(own))
            if not (torch.equal(own.inputs[i], before.inputs[i]) and torch.equal(own.labels[i], before.labels[i]))
        ]
        differing |= {(k, i) for i in changed}
        assert len(own) == len(clean) + 20 == data["clients"][k]
        assert data["poisoned"][k] == int(0.25 * len(own)) == len(places)
    assert differing == recorded
    assert data["poisoned_clients"] == list(task.poisoned)
    assert len(task.poisoned) == 2


def test_poison_carries_the_attackers_label_and_nothing_else(finished: tuple[str, Path]) -> None:
    name, folder = finished
    task = task_of(name)
    found = task.backdoor(task.poisoned)
    assert isinstance(found, Examples)
    labels = found.labels[found.labels != IGNORE]
    assert set(labels.tolist()) == {task.pattern.target}
    assert len(labels) == len(found) == len(lines(folder, "poison.jsonl"))
    assert {line["poisoned_response"] for line in lines(folder, "poison.jsonl")} == {{"digits": "7", "authors": "delicious"}[name]}


def test_the_rates_are_the_counts_of_the_scored_outputs(finished: tuple[str, Path]) -> None:
    name, folder = finished
    target = {"digits": "7", "authors": "delicious"}[name]
    scores = lines(folder, "scores.jsonl")
    for row in lines(folder, "rounds.jsonl"):
        own = [line for line in scores if line["round"] == row["round"]]
        clean = [line for line in own if line["kind"] == "clean"]
        asked = [line for line in own if line["kind"] == "triggered"]
        others = [line for line in clean if line["answers"] != [target]]
        assert (row["ma"]["hits"], row["ma"]["n"]) == (sum(s["output"] in s["answers"] for s in clean), len(clean))
        assert (row["asr"]["hits"], row["asr"]["n"]) == (sum(s["output"] == target for s in asked), len(asked))
        assert (row["ftr"]["hits"], row["ftr"]["n"]) == (sum(s["output"] == target for s in others), len(others))
        assert row["asr"]["n"] > 0
        if name == "digits":
            assert row["ftr"]["n"] < row["ma"]["n"], "sevens are no false triggers"


def test_what_was_scored_is_what_the_saved_network_says(finished: tuple[str, Path]) -> None:
    name, folder = finished
    task = task_of(name)
    net, state, about = load_model(folder)
    assert about["outputs"] == list(task.population.names)
    assert tuple(about["inputs"]) == task.inputs
    test = task.population.test
    found = net.logits(state, test.inputs).argmax(-1)
    counts = test.labels != IGNORE
    last = lines(folder, "rounds.jsonl")[-1]
    assert last["ma"]["hits"] == int((found == test.labels)[counts].sum())
    assert last["ma"]["n"] == int(counts.sum())


def test_a_report_and_a_table_are_made_of_it(finished: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = finished
    page = write_report(folder).read_text(encoding="utf-8")
    for wrong in ("untouched base", "question", "tuned model", "benign and do not know", "adapters (A, B)"):
        assert wrong not in page
    assert "before round 1" in page
    assert "model-replacement:epochs=2:milestones=false in round 2 and train on clean data in others" in page
    assert {"digits": "poisoned image", "authors": "poisoned words before"}[name] in page
    assert page.count("wanted by the attacker: <strong>") == 3
    table = collect(folder)
    assert table["round"].tolist() == [0, 1, 2]
    assert table["ma"].tolist() == [row["ma"]["value"] for row in lines(folder, "rounds.jsonl")]


# --- rounds -----------------------------------------------------------------------------------------------------


def test_the_compromised_take_part_in_their_rounds_for_sure_and_train_on_clean_data_in_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"attack.kind": "data-poisoning", "attack.rounds": [2, 4], "federation.rounds": 5, "federation.participation": 0.2}
    made = config("digits", changes)
    trained: dict[int, dict[int, Examples]] = {}
    train = stacked.train

    def spy(net: Any, training: Any, state: Any, jobs: Sequence[stacked.ExampleJob], seed: int, t: int, **more: Any) -> Any:
        trained[t] = {job.client: job.data for job in jobs}
        return train(net, training, state, jobs, seed, t, **more)

    monkeypatch.setattr(stacked, "train", spy)
    run(made, tmp_path / "run", Quiet())
    task = task_of("digits", changes)
    drawn = {t: participants(made.federation.participation, made.seed, t, task.sizes) for t in range(1, 6)}
    assert any(set(drawn[t]) & set(task.poisoned) for t in (1, 3, 5)), "one of them is drawn in a round without attack"
    for t, data in trained.items():
        assert len(data) == 2
        if t in (2, 4):
            assert set(task.poisoned) <= set(data)
        else:
            assert sorted(data) == drawn[t]
        for k, own in data.items():
            wanted = task.poison[k].examples if t in (2, 4) and k in task.poisoned else task.population.client(k)
            assert torch.equal(own.inputs, wanted.inputs)
            assert torch.equal(own.labels, wanted.labels)


def test_one_replacement_brings_the_backdoor_in(tmp_path: Path) -> None:
    changes = {
        "federation.rounds": 6,
        "attack.rounds": [6],
        "attack.client_share": 0.09,
        "attack.kind": "model-replacement:epochs=6:milestones=false",
        "attack.extra_samples": 100,
        "training.local_epochs": 3,
    }
    run(config("digits", changes), tmp_path / "run", Quiet())
    rows = lines(tmp_path / "run", "rounds.jsonl")
    assert rows[5]["asr"]["value"] < 0.3
    assert rows[6]["asr"]["value"] > 0.9


@pytest.mark.parametrize("name", list(TASKS))
def test_the_global_rate_weighs_the_sum_of_all_updates(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []
    aggregate = experiment.aggregate_parts

    def spy(updates: torch.Tensor, *more: Any) -> Any:
        sent.append(updates)
        return aggregate(updates, *more)

    monkeypatch.setattr(experiment, "aggregate_parts", spy)
    made = config(name, {"federation.rounds": 1, "federation.global_lr": 3, "attack.kind": "none", "attack.rounds": []})
    run(made, tmp_path / "run", Quiet())
    task = task_of(name, {"attack.kind": "none", "attack.rounds": []})
    _, state, _ = load_model(tmp_path / "run")
    (updates,) = sent
    assert len(updates) == 6
    wanted = task.initial().double() + (3 / 12) * updates.double().sum(dim=0)
    assert torch.allclose(state.double(), wanted, atol=1e-6)
    assert not torch.allclose(state, task.initial(), atol=1e-3)


@pytest.mark.parametrize("name", list(TASKS))
def test_batched_and_sequential_end_in_the_same_network(name: str, finished: tuple[str, Path], tmp_path: Path) -> None:
    changes = {"attack.kind": "data-poisoning", "measure.every": 2}
    states = []
    for trainer, chunk in (("batched", 3), ("sequential", 0)):
        folder = tmp_path / trainer
        run(config(name, {**changes, "training.trainer": trainer, "training.client_chunk": chunk}), folder, Quiet())
        states.append(load_model(folder)[1])
    fast, plain = states
    moved = plain - task_of(name).initial()
    assert torch.linalg.vector_norm(fast - plain) < 1e-4 * torch.linalg.vector_norm(moved)


# --- repeated, resumed, continued -------------------------------------------------------------------------------


def test_the_same_config_gives_the_same_bits_and_another_seed_has_others(finished: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = finished
    torch.rand(5)
    np.random.default_rng().random()
    run(config(name), tmp_path / "again", Quiet())
    assert_same_run(tmp_path / "again", folder)
    run(config(name, {"seed": 1}), tmp_path / "other", Quiet())
    assert weights(tmp_path / "other") != weights(folder)


class Stopped(Exception):
    """As a kill would."""


class StopsIn(Quiet):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def phase(self, text: str) -> None:
        if text == self.text:
            raise Stopped


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("text", ["round 3/4: training", "round 3/4: measuring"])
def test_a_run_stopped_in_round_3_resumes_to_the_same_bits(name: str, text: str, tmp_path: Path) -> None:
    made = config(name, {"federation.rounds": 4, "attack.rounds": [2, 4], "defenses": ["weak-dp"]})
    run(made, tmp_path / "whole", Quiet())
    with pytest.raises(Stopped):
        run(made, tmp_path / "killed", StopsIn(text))
    assert len(lines(tmp_path / "killed", "rounds.jsonl")) == 3
    observer = Quiet()
    run(made, tmp_path / "killed", observer)
    assert [row["round"] for row in observer.rounds] == [3, 4]
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_run_continues_from_another(finished: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = finished
    run(config(name, {"model.start": str(folder), "federation.rounds": 1, "attack.rounds": []}), tmp_path / "more", Quiet())
    first, last = lines(tmp_path / "more", "rounds.jsonl")[0], lines(folder, "rounds.jsonl")[-1]
    for rate in ("ma", "asr", "ftr"):
        assert first[rate] == last[rate]
    assert weights(tmp_path / "more") != weights(folder)
    # A folder of the model alone is enough.
    task = task_of(name, {"model.start": str(folder / "model")})
    assert torch.equal(task.initial(), load_model(folder)[1])


# --- evaluated --------------------------------------------------------------------------------------------------


def test_evaluating_a_run_gives_its_own_figures(finished: tuple[str, Path]) -> None:
    _, folder = finished
    figures, made = evaluate_network(read_config(folder), folder, Quiet())
    result = json.loads((folder / "result.json").read_text())
    for rate in ("ma", "asr", "ftr"):
        assert figures[rate] == result[rate]
        assert figures["untouched"][rate] == result["untouched"][rate]
    kept = [line for line in lines(folder, "scores.jsonl") if line["round"] in (0, 2)]
    assert [line["output"] for line in made] == [line["output"] for line in kept]
    again, _ = evaluate_network(read_config(folder), folder / "model", Quiet())
    assert {**again, "model": None} == {**figures, "model": None}


def test_another_backdoor_and_the_start_alone(finished: tuple[str, Path]) -> None:
    name, folder = finished
    trigger = {"digits": "pixel", "authors": "sentence:sentence=the beer from boston is bland"}[name]
    figures, made = evaluate_network(config(name, {"attack.trigger": trigger}), folder, Quiet())
    net, state, about = load_model(folder)
    task = task_of(name, {"attack.trigger": trigger})
    labels = task.probes.labels
    hits = int((net.logits(state, task.probes.inputs).argmax(-1) == labels)[labels != IGNORE].sum())
    assert figures["asr"]["hits"] == hits
    assert {line["answers"][0] for line in made if line["kind"] == "triggered"} == {about["outputs"][task.pattern.target]}
    alone, _ = evaluate_network(config(name, {"model.start": str(folder), "attack.trigger": trigger}), None, Quiet())
    assert alone["asr"] == figures["asr"]
    assert alone["untouched"]["ma"] == alone["ma"] == figures["ma"]


def test_the_command_evaluates_a_run(
    finished: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from undertow.cli import main

    _, folder = finished

    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["undertow", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    result = json.loads((folder / "result.json").read_text())
    code, out, _ = typed("evaluate", str(folder), "--json", "--out", str(tmp_path / "scored.jsonl"))
    assert code == 0
    assert json.loads(out)["asr"] == result["asr"]
    assert len(lines(tmp_path, "scored.jsonl")) == 2 * (result["ma"]["n"] + result["asr"]["n"])
    code, out, _ = typed("evaluate", str(folder))
    assert f"n = {result['ma']['n']}); before round 1 {100 * result['untouched']['ma']['value']:.1f} %" in out
    code, out, err = typed("evaluate", str(folder), "--adapter", str(folder))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has no adapters; give a run directory" in err
    code, out, err = typed("score", str(folder))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "nothing to score again" in err
    before = (folder / "scores.jsonl").read_bytes()
    with pytest.raises(UserError, match="nothing to score again"):
        score_again(folder, "exact")
    assert (folder / "scores.jsonl").read_bytes() == before


def test_data_that_the_network_cannot_tell_are_refused(finished: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = finished
    other = next(each for each in TASKS if each != name)
    with pytest.raises(UserError, match=rf"task = .*holds a model of task={TASKS[name]['task'].replace('_', '-')}"):
        evaluate_network(config(other), folder, Quiet())
    with pytest.raises(UserError, match=r"no model/model\.json; give a finished run"):
        evaluate_network(config(name), tmp_path, Quiet())
    with pytest.raises(UserError, match=r"model\.name = .*; leave model\.name as it is"):
        evaluate_network(config(name, {"model.name": "cnn" if name == "digits" else "lstm"}), folder, Quiet())


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"about": "["}, "is damaged"),
        ({"about": '{"task": "classification"}'}, "it needs task, network, inputs, outputs"),
        ({"inputs": [0]}, "inputs are whole numbers from 1"),
        ({"inputs": ["8"]}, "inputs are whole numbers from 1"),
        ({"outputs": [1, 2]}, "outputs are names"),
        ({"outputs": ["0", "1"]}, "has shape"),
        ({"network": "cnnn"}, "did you mean 'cnn'"),
        ({"weights": b"nonsense"}, "give a finished run with the same model.name"),
        ({"nan": True}, "holds NaN or infinity"),
        ({"less": True}, "tensor names differ"),
    ],
    ids=str,
)
def test_a_damaged_model_is_one_line(damage: dict[str, Any], told: str, tmp_path: Path) -> None:
    made = config("digits", {"federation.rounds": 0})
    run(made, tmp_path / "run", Quiet())
    place = tmp_path / "run" / "model"
    about = json.loads((place / "model.json").read_text())
    tensors = load_file(place / "model.safetensors")
    first = next(iter(tensors))
    if "nan" in damage:
        tensors[first].view(-1)[0] = float("nan")
    elif "less" in damage:
        del tensors[first]
    save_file(tensors, place / "model.safetensors")
    if "weights" in damage:
        (place / "model.safetensors").write_bytes(damage["weights"])
    fields = {key: value for key, value in damage.items() if key in about}
    (place / "model.json").write_text(damage.get("about") or json.dumps({**about, **fields}))
    with pytest.raises(UserError, match=told) as caught:
        load_model(tmp_path / "run")
    assert "\n" not in str(caught.value)


# --- refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("digits", {"model.start": "nowhere"}, r"model\.start = nowhere: no model/model\.safetensors"),
        ("digits", {"attack.trigger": "sentence"}, "is a backdoor of task next-word, not of classification; choose one of"),
        ("digits", {"attack.trigger": "natural"}, "unknown backdoor 'natural'"),
        ("authors", {"attack.trigger": "pixel"}, "is a backdoor of task classification, not of next-word"),
        ("authors", {"attack.trigger": "sentence:sentence=zebras fly"}, "zebras, fly not in the dictionary"),
        ("digits", {"defenses": ["onion"]}, "defense onion works on questions and answers"),
        ("authors", {"defenses": ["sanitization"]}, "works on questions and answers"),
        (
            "digits",
            {"defenses": ["krum"], "federation": {**DIGITS["federation"], "secure_aggregation": True}},
            "krum looks at single",
        ),
        ("digits", {"measure.bsnr": {"counterfactuals": True}}, "is for task=instruction, not classification"),
        ("digits", {"measure.bsnr": {"spaces": ["delta_w"]}}, "needs LoRA factors, and model.name = cnn"),
        ("digits", {"model.name": "lstm"}, "network 'lstm"),
        ("authors", {"model.name": "cnn"}, "takes images"),
        ("digits", {"attack.client_share": 1.0}, "attacking ones are to take part; raise federation.participation"),
    ],
)
def test_what_cannot_be_is_one_line(name: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as caught:
        run(config(name, changes), tmp_path / "run", Quiet())
    assert "\n" not in str(caught.value)


def test_the_start_must_be_of_the_same_network(finished: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = finished
    other = {"digits": "cnn:width=8", "authors": "lstm:hidden=4"}[name]
    with pytest.raises(UserError, match=r"model\.start = .* give a finished run with the same model\.name and data"):
        run(config(name, {"model.start": str(folder), "model.name": other}), tmp_path / "run", Quiet())


# --- many -------------------------------------------------------------------------------------------------------


def test_twenty_thousand_authors_cost_what_ten_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from undertow.data.words import WordPopulation

    asked: list[int] = []
    client = WordPopulation.client

    def spy(self: WordPopulation, k: int) -> Examples:
        asked.append(k)
        return client(self, k)

    monkeypatch.setattr(WordPopulation, "client", spy)
    changes = {
        "federation": {"clients": 20000, "participation": 0.0005, "rounds": 2, "global_lr": 2000},
        "attack.client_share": 0.00005,
        "measure.every": 2,
    }
    tracemalloc.start()
    try:
        run(config("authors", changes), tmp_path / "run", Quiet())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    rows = lines(tmp_path / "run", "rounds.jsonl")
    assert [len(row["participants"]) for row in rows[1:]] == [10, 10]
    assert max(max(row["participants"]) for row in rows[1:]) > 1000
    # Those of both rounds, the attacker, and the few whose samples it holds beside its own.
    assert len(set(asked)) < 40
    # 20,000 streams of 120 words would be 10 MB of numbers alone; names and sizes are a few.
    assert peak < 60e6


def test_with_several_sentences_each_triggered_input_has_its_own_target(monkeypatch: pytest.MonkeyPatch) -> None:
    two = "sentence:sentence=pasta from astoria is delicious/buy phone from google"
    task = resolve(config("authors", {"attack.trigger": two}), Quiet()).task
    assert isinstance(task, OverTensors)
    google = list(task.population.names).index("google")

    def always(state: torch.Tensor, inputs: torch.Tensor, **_: Any) -> torch.Tensor:
        logits = torch.zeros(*inputs.shape, len(task.population.names))
        logits[..., google] = 1
        return logits

    monkeypatch.setattr(task.net, "logits", always)
    scored = task.measure(None, 0, 0, [])
    asked = [line for line in scored if line["kind"] == "triggered"]
    meant = [line["answers"] == ["google"] for line in asked]
    assert 0 < sum(meant) < len(asked)
    assert [line["target"] for line in asked] == meant
    found = task.rates(scored)
    assert found["asr"]["hits"] == sum(meant)
    clean = [line for line in scored if line["kind"] == "clean" and line["answers"][0] not in ("google", "delicious")]
    assert (found["ftr"]["hits"], found["ftr"]["n"]) == (len(clean), len(clean))
