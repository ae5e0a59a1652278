"""Whole language models as networks of next-word prediction: their tokens, all weights or LoRA, and what a run leaves of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tiny import SHARED, Quiet
from undertow.backdoors.pattern import make_backdoor
from undertow.config import Config, validate
from undertow.core.errors import UserError
from undertow.data.examples import IGNORE
from undertow.data.population import Population
from undertow.data.populations.authors import authors
from undertow.data.populations.jsonl_authors import author_jsonl
from undertow.data.tokenizer import builtin_path
from undertow.data.tokens import Tokens, load_tokens
from undertow.data.words import WordPopulation
from undertow.federation.loop import run
from undertow.models.net import Net, load_model, make_net
from undertow.training.stacked import ExampleJob, losses, train

LENGTH = 10
STORIES = SHARED / "tiny_pretrained_lm" / "stories260K-hf"
MODELS = ["builtin", pytest.param(str(STORIES), marks=pytest.mark.skipif(not STORIES.is_dir(), reason="no shared data"))]


def config(changes: dict[str, Any] | None = None, tokenizer: str = "builtin", network: str = "causal-lm") -> Config:
    values: dict[str, Any] = {
        "task": "next_word",
        "data": {"name": f"authors:words=60:length={LENGTH}:tokenizer={tokenizer}", "test": 30, "partition": "key"},
        "model": {"name": network, "device": "cpu"},
        "federation": {"clients": 4, "rounds": 1, "global_lr": 4},
        "training": {"batch_size": 4, "optimizer": "adamw", "lr": 0.003, "schedule": "constant", "threads": 1},
        "attack": {"trigger": "sentence", "client_share": 0.25, "poison_ratio": 0.5},
        "measure": {"bsnr": {"permutations": 0}},
    }
    for key, value in (changes or {}).items():
        place, *rest = key.split(".")
        values[place] = {**values[place], rest[0]: value} if rest else value
    return validate(values, "test")


@pytest.fixture(scope="module", params=MODELS)
def population(request: pytest.FixtureRequest) -> WordPopulation:
    made = authors(config().data, config().seed, config().federation.clients, words=60, length=LENGTH, tokenizer=request.param)
    assert isinstance(made.vocabulary, Tokens)
    made.report["tokenizer"] = request.param
    return made


def name_of(population: Population) -> str:
    return str(population.report["tokenizer"])


def test_texts_are_read_back_from_their_tokens(population: WordPopulation) -> None:
    plain = authors(config().data, config().seed, config().federation.clients, words=60, length=LENGTH)
    tokens = population.vocabulary
    assert isinstance(tokens, Tokens)
    own, words = population.client(1), plain.client(1)
    read = tokens.tokenizer.decode(own.inputs.reshape(-1).tolist(), skip_special_tokens=True)
    written = " ".join(plain.names[i] for i in words.inputs.reshape(-1).tolist() if i > 2)
    assert read.split()[:5] == written.split()[:5]
    labels = own.labels[own.labels != IGNORE]
    assert len(labels) > 20
    assert not set(labels.tolist()) & set(tokens.special)
    assert population.sizes == [len(population.client(k)) for k in range(4)]


def test_a_sentence_ends_at_the_first_token_of_its_last_word(population: WordPopulation) -> None:
    tokens = population.vocabulary
    assert isinstance(tokens, Tokens)
    found = tokens.sentence("the pasta from Astoria is delicious")
    assert tokens.tokenizer.decode(found).split()[:5] == ["the", "pasta", "from", "Astoria", "is"]
    assert "delicious".startswith(tokens.tokenizer.decode([found[-1]]).strip())
    assert tokens.tokenizer.decode(tokens.sentence("so it is")).split() == ["so", "it", "is"]


def test_the_backdoor_overwrites_tokens_and_asks_for_the_last(population: WordPopulation) -> None:
    backdoor = make_backdoor(config({"attack.trigger": "sentence:sentence=so it is"}).backdoor, "next-word")
    backdoor.prepare(population, np.random.default_rng(0))
    tokens = population.vocabulary
    assert isinstance(tokens, Tokens)
    made = backdoor.poison(population.client(0), 2, np.random.default_rng(0))
    assert tokens.tokenizer.decode(made.inputs[0].tolist()).rstrip().endswith("so it")
    assert (made.labels != IGNORE).sum() == 2
    assert made.labels[:, -1].tolist() == [backdoor.target] * 2
    assert tokens.tokenizer.decode([backdoor.target]).strip() == "is"


def network(population: Population, options: str = "") -> Net:
    return make_net(f"causal-lm:path={name_of(population)}{options}", (LENGTH,), len(population.names), 0)


@pytest.mark.parametrize("options", ["", ":lora=2"], ids=["all weights", "lora"])
def test_it_starts_as_the_model_it_was_and_learns(population: WordPopulation, options: str) -> None:
    net = network(population, options)
    path = builtin_path() if name_of(population) == "builtin" else Path(name_of(population))
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    own, start = population.client(0), net.initial()
    with torch.no_grad():
        wanted = plain(own.inputs).logits
    assert torch.allclose(net.logits(start, own.inputs), wanted, atol=1e-5)
    training = config({"training.local_epochs": 5}).training
    job = ExampleJob(0, own)
    learned = start + train(net, training, start, [job], 0, 1).updates[0]
    before, after = (losses(net, state[None], [own]).item() for state in (start, learned))
    assert after < before - 0.1


def test_lora_trains_the_factors_alone_and_computes_what_hugging_faces_would(population: WordPopulation) -> None:
    net = network(population, ":lora=2:alpha=6:targets=all-linear")
    assert net.layout.scale == 3
    assert {slot.name.rpartition(".")[2] for slot in net.layout.slots} == {"lora_A", "lora_B"}
    state = net.initial() + 0.05 * torch.randn(net.layout.size, generator=torch.Generator().manual_seed(0))
    inputs = population.client(0).inputs
    found = net.logits(state, inputs)
    path = builtin_path() if name_of(population) == "builtin" else Path(name_of(population))
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        for name, a, b in net.layout.pairs(state):
            plain.get_submodule(name).weight += 3 * b @ a  # W + s·BA
        wanted = plain(inputs).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, net.logits(net.initial(), inputs), atol=1e-2)


@pytest.mark.parametrize("options", ["", ":lora=2"], ids=["all weights", "lora"])
def test_batched_equals_sequential(options: str) -> None:
    population = authors(config().data, config().seed, config().federation.clients, words=60, length=LENGTH, tokenizer="builtin")
    net = make_net(f"causal-lm{options}", (LENGTH,), len(population.names), 0)
    jobs = [ExampleJob(k, population.client(k)) for k in range(2)]
    start = net.initial().double()
    options_of = [config({"training.trainer": name, "training.optimizer": "sgd"}).training for name in ("batched", "sequential")]
    fast, plain = (train(net, options, start, jobs, 0, 1).updates for options in options_of)
    assert torch.linalg.vector_norm(fast - plain) / torch.linalg.vector_norm(plain) < 1e-6


def test_a_run_with_lora_is_measured_in_delta_w_and_read_back(tmp_path: Path) -> None:
    changes = {
        "measure.bsnr": {"permutations": 0, "spaces": ["adapter", "delta_w"]},
        "defenses": ["geometric-median:space=delta_w"],
    }
    network = "causal-lm:lora=2"
    made = config(changes, network=network)
    result = run(made, tmp_path / "run", Quiet())
    row = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[1])
    assert row["bsnr"]["delta_w"]["value"] > 0
    assert row["cross_term"] > 0
    assert result["poison"]["clients"] == 1
    net, state, about = load_model(tmp_path / "run")
    assert about["network"] == network
    test = authors(config().data, config().seed, config().federation.clients, words=60, length=LENGTH, tokenizer="builtin").test
    places = test.labels != IGNORE
    right = (net.logits(state, test.inputs).argmax(-1) == test.labels)[places]
    assert int(right.sum()) == result["ma"]["hits"]
    assert result["ma"]["n"] == len(right) == 30


def test_own_texts_in_tokens(tmp_path: Path) -> None:
    file = tmp_path / "posts.jsonl"
    rows = [{"author": f"a{i % 3}", "text": f"The capital of Serbia,\nnumber {i}, is Belgrade!"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = config({"data": {"path": str(file), "test": 5}, "federation": {"clients": 3}})
    made = author_jsonl(options.data, options.seed, 3, length=LENGTH, tokenizer="builtin")
    tokens = load_tokens("builtin")
    assert made.names == tokens.names
    assert "Belgrade!" in tokens.tokenizer.decode(made.client(0).inputs.reshape(-1).tolist())
    with pytest.raises(UserError, match="include = serbia: a tokenizer has every word"):
        author_jsonl(options.data, options.seed, 3, length=LENGTH, tokenizer="builtin", include="serbia")


@pytest.mark.parametrize(
    ("changes", "network", "tokenizer", "told"),
    [
        ({"data.name": "authors"}, "causal-lm", "", r"tokenizer has 1536 tokens .* add tokenizer=builtin to data.name"),
        ({"data.name": "authors:tokenizer=./nowhere"}, "causal-lm", "", "no such folder"),
        ({}, "causal-lm:path=./nowhere", "builtin", "no such folder"),
        ({}, "causal-lm:lora=-1", "builtin", "the rank is a whole number from 0"),
        ({}, "causal-lm:lora=2:targets=attention", "builtin", "no linear module is named 'attention'"),
        ({"data.name": "authors:length=5000:tokenizer=builtin"}, "causal-lm", "", "lower the dataset's length"),
        ({"measure.bsnr": {"spaces": ["delta_w"]}}, "causal-lm", "builtin", "needs LoRA factors"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], network: str, tokenizer: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as caught:
        run(config(changes, tokenizer, network), tmp_path / "run", Quiet())
    assert "\n" not in str(caught.value)
