"""Classes of texts from end to end, small: a run is read back, scored by hand, and shows its texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DistilBertConfig, PreTrainedTokenizerFast

from tiny import Quiet
from undertow.config import Config, load, validate
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.generated.critics import write
from undertow.data.texts import TextPopulation
from undertow.federation.loop import run
from undertow.federation.resolve import resolve
from undertow.models.net import load_model
from undertow.tasks.over_tensors import OverTensors

REVIEWS: dict[str, Any] = {
    "task": "classification",
    "data": {"name": "reviews:public=300:noise=0", "train": 240, "test": 60, "partition": "halves"},
    "model": {"name": "encoder:width=16:layers=1", "device": "cpu"},
    "federation": {"clients": 6, "participation": 0.5, "rounds": 2},
    "training": {"batch_size": 8, "lr": 0.01, "schedule": "constant", "threads": 1},
    "attack": {"trigger": "phrase", "client_share": 0.5, "poison_ratio": 0.4},
    "measure": {"bsnr": {"permutations": 0}},
}


def config(changes: dict[str, Any] | None = None) -> Config:
    values = json.loads(json.dumps(REVIEWS))
    for key, value in (changes or {}).items():
        group, _, field = key.partition(".")
        values[group][field] = value
    return validate(values, "test")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=["words", "tokens"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, dict[str, Any]]:
    """A run with the encoder over words, and one with a small DistilBERT from random values over its own tokens."""
    folder, changes = tmp_path_factory.mktemp(request.param), {}
    if request.param == "tokens":
        texts, _ = write(300, rng(0, "texts"), set())
        found = sorted({word for text in texts for word in text.lower().replace(".", " ").replace(",", " ").split()})
        pieces = {piece: i for i, piece in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "cf", *found])}
        made = Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
        PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
        DistilBertConfig(
            vocab_size=len(pieces), dim=16, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=32
        ).save_pretrained(folder)
        changes = {
            "data.name": f"reviews:public=300:noise=0:tokenizer={folder}",
            "model.name": f"sequence-classifier:path={folder}:scratch=true",
        }
    options = config(changes)
    return options, folder / "run", run(options, folder / "run", Quiet())


def test_the_figures_are_those_of_the_model_that_is_left(finished: tuple[Config, Path, dict[str, Any]]) -> None:
    options, folder, result = finished
    net, state, about = load_model(folder)
    task = resolve(options, Quiet()).task
    assert isinstance(task, OverTensors)
    assert isinstance(task.population, TextPopulation)
    assert about["ids"] == task.population.ids
    assert about["outputs"] == ["negative", "positive"]
    test = task.population.test
    right = net.logits(state, test.inputs).argmax(-1) == test.labels
    assert (result["ma"]["hits"], result["ma"]["n"]) == (int(right.sum()), 60)
    positive = test.inputs[test.labels == 1]
    asked = task.population.vocabulary.append(positive, "cf", "end")
    hits = int((net.logits(state, asked).argmax(-1) == 0).sum())
    assert (result["asr"]["hits"], result["asr"]["n"]) == (hits, len(positive))


def test_poison_is_shown_as_text_and_counted_exactly(finished: tuple[Config, Path, dict[str, Any]]) -> None:
    _, folder, result = finished
    data = json.loads((folder / "data.json").read_text())
    written = lines(folder / "poison.jsonl")
    assert len(data["poisoned_clients"]) == 3
    assert len(written) == result["poison"]["samples"] == sum(int(0.4 * data["clients"][k]) for k in data["poisoned_clients"])
    assert all(line["poisoned_question"].endswith(" cf") and line["poisoned_response"] == "negative" for line in written)
    assert all("cf" not in line["question"].split() for line in written)
    assert data["backdoor"]["phrase"] == "cf"
    assert data["public"] == 300
    scored = [line for line in lines(folder / "scores.jsonl") if line["kind"] == "clean"]
    assert any(" is " in line["question"] for line in scored)


def test_a_long_text_is_shortened_in_its_middle() -> None:
    task = resolve(config({"data.name": "reviews:public=0:length=200"}), Quiet()).task
    assert isinstance(task, OverTensors)
    assert isinstance(task.population, TextPopulation)
    words = " ".join(f"word{i}" for i in range(60))
    row = task.population.vocabulary.encode([words])[0]
    shown = task.shown(row, 0)
    assert shown.startswith("word0 word1 ")
    assert shown.endswith(" word59")
    assert " … " in shown
    assert len(shown) < 190


def test_the_shipped_config_learns_reviews_and_a_wrong_pair_is_one_line(tmp_path: Path) -> None:
    given = load(
        "reviews",
        [
            "federation.rounds=4",
            "federation.clients=5",
            "federation.participation=1",
            "data.train=1000",
            "data.test=150",
            "measure.every=3",
            "training.threads=1",
        ],
    )
    result = run(given, tmp_path / "run", Quiet())
    assert result["ma"]["value"] > 0.7
    for changes, said in (
        ({"model.name": "cnn"}, "network 'cnn' reads no texts with one class each"),
        ({"data.name": "digits"}, "network 'encoder:width=16:layers=1' reads texts with one class each"),
    ):
        trigger = {"attack.trigger": "pixel"} if changes.get("data.name") == "digits" else {}
        with pytest.raises(UserError, match=said):
            resolve(config({**changes, **trigger}), Quiet())


def test_two_identical_runs_leave_the_same_bits(tmp_path: Path) -> None:
    states = []
    for name in ("a", "b"):
        run(config({"federation.rounds": 1}), tmp_path / name, Quiet())
        states.append(load_model(tmp_path / name)[1])
    assert torch.equal(*states)
