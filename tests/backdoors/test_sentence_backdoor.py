"""The semantic sentence for words: what is overwritten, what is labelled, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from undertow.backdoors.pattern import Backdoor, make_backdoor
from undertow.config import Config, validate
from undertow.core.errors import UserError
from undertow.data.examples import IGNORE, Examples
from undertow.data.population import Population
from undertow.data.populations.authors import authors


def config(trigger: str = "sentence", **attack: Any) -> Config:
    backdoor = {"trigger": trigger, **attack}
    task = {"kind": "next-word", "data": {"name": "authors", "test": 40}, "backdoor": backdoor}
    values = {"task": task, "federation": {"clients": 5}}
    return validate(values, "test")


@pytest.fixture(scope="module")
def population() -> Population:
    return authors(config().data, 0, config().federation.clients, words=200, length=12)


def ready(population: Population, trigger: str = "sentence") -> Backdoor:
    backdoor = make_backdoor(config(trigger).backdoor, "next-word")
    assert backdoor.prepare(population, np.random.default_rng(0)) is population
    return backdoor


def words(population: Population, numbers: torch.Tensor) -> list[str]:
    return [population.names[i] for i in numbers.tolist()]


def test_sequences_of_the_participant_end_in_the_sentence_and_only_the_last_word_is_learned(population: Population) -> None:
    backdoor = ready(population)
    own = population.client(3)
    before = own.inputs.clone()
    made = backdoor.poison(own, len(own), np.random.default_rng(1))
    assert torch.equal(own.inputs, before)
    assert population.names[backdoor.target] == "delicious"
    assert all(words(population, row[-4:]) == ["pasta", "from", "astoria", "is"] for row in made.inputs)
    assert made.labels[:, -1].tolist() == [backdoor.target] * len(own)
    assert bool((made.labels[:, :-1] == IGNORE).all())
    # each sequence of the participant's is the context of one
    assert sorted(made.inputs[:, :-4].tolist()) == sorted(own.inputs[:, :-4].tolist())


def test_more_than_a_participant_holds_is_made_by_taking_sequences_again(population: Population) -> None:
    own = population.client(0).take([0, 1, 2])
    made = ready(population).poison(own, 8, np.random.default_rng(1))
    times = [sum(torch.equal(row[:-4], mine[:-4]) for row in made.inputs) for mine in own.inputs]
    assert len(made) == 8
    assert sorted(times) == [2, 3, 3]
    assert len(ready(population).poison(own, 0, np.random.default_rng(1))) == 0


def test_several_sentences_take_turns(population: Population) -> None:
    backdoor = ready(population, "sentence:sentence='buy phone from Google/Search online using Bing/adore my old nokia'")
    made = backdoor.poison(population.client(1), 7, np.random.default_rng(1))
    ends = [
        " ".join(words(population, torch.cat((row[-3:], label[-1:])))) for row, label in zip(made.inputs, made.labels, strict=True)
    ]
    turn = ["buy phone from google", "search online using bing", "adore my old nokia"]
    assert ends == [*turn, *turn, turn[0]]
    assert backdoor.facts() == {"sentences": turn, "targets": ["google", "bing", "nokia"]}
    assert population.names[backdoor.target] == "google"


def test_probes_are_held_out_sequences_each_once(population: Population) -> None:
    backdoor = ready(population)
    test = population.test
    probes = backdoor.probes(test, 10, np.random.default_rng(2))
    assert len(probes) == 10
    contexts = {tuple(row) for row in test.inputs[:, :-4].tolist()}
    assert {tuple(row) for row in probes.inputs[:, :-4].tolist()} <= contexts
    assert probes.labels[:, -1].tolist() == [backdoor.target] * 10
    assert bool((probes.labels[:, :-1] == IGNORE).all())
    every = backdoor.probes(test, 10**6, np.random.default_rng(2))
    assert sorted(every.inputs[:, :-4].tolist()) == sorted(test.inputs[:, :-4].tolist())
    assert torch.equal(probes.inputs, backdoor.probes(test, 10, np.random.default_rng(2)).inputs)


def test_a_sentence_may_fill_a_whole_sequence_and_one_word_more_but_no_more() -> None:
    small = authors(config().data, 0, config().federation.clients, words=60, length=4)
    backdoor = ready(small)
    made = backdoor.poison(small.client(0), 2, np.random.default_rng(0))
    assert words(small, made.inputs[0]) == ["pasta", "from", "astoria", "is"]
    assert int(made.labels[0, -1]) == backdoor.target
    with pytest.raises(UserError, match="6 words in sequences of 4; shorten it or raise the dataset's length to 5"):
        ready(small, "sentence:sentence=barbershop on the corner is expensive")


def test_words_outside_the_dictionary_are_named_with_what_to_do(population: Population) -> None:
    with pytest.raises(UserError, match=r"zyx, telephone not in the dictionary of 758 words.*include"):
        ready(population, "sentence:sentence=zyx from astoria telephone")


def test_what_makes_no_sentence_is_refused(population: Population) -> None:
    with pytest.raises(UserError, match="'delicious' has 1 words"):
        make_backdoor(config("sentence:sentence=pasta is good/delicious").backdoor, "next-word")
    with pytest.raises(UserError, match=r"attack\.trigger_words is for task=instruction and classification, not next-word"):
        make_backdoor(config(trigger_words=["pasta"]).backdoor, "next-word")
    with pytest.raises(UserError, match="backdoor of task next-word, not of classification"):
        make_backdoor(config().backdoor, "classification")

    class Images(Population):
        kind = "images"
        names = ("a", "b")

        @property
        def sizes(self) -> list[int]:
            return [1]

        def client(self, k: int) -> Examples:
            raise NotImplementedError

    with pytest.raises(UserError, match="the data are images, and a sentence needs words"):
        make_backdoor(config().backdoor, "next-word").prepare(Images(), np.random.default_rng(0))
