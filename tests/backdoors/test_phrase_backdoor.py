"""The phrase in texts: what is poisoned, what is asked, and the trigger found again in what others wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from undertow.backdoors.pattern import make_backdoor
from undertow.config import ClassificationBackdoor, validate
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import Examples
from undertow.data.populations.digits import digits
from undertow.data.populations.reviews import reviews
from undertow.data.texts import TextPopulation


def made(trigger: str = "phrase", **options: Any) -> Any:
    return make_backdoor(ClassificationBackdoor(trigger=trigger, **options), "classification")


@pytest.fixture(scope="module")
def population() -> TextPopulation:
    config = validate({"task": "classification", "data": {"name": "reviews", "train": 200, "test": 80}}, "test")
    found = reviews(config.data, 0, 10)
    assert isinstance(found, TextPopulation)
    return found


@pytest.mark.parametrize(("position", "target"), [("default", "negative"), ("start", 1), ("end", "positive"), ("random", 0)])
def test_texts_of_other_classes_get_the_phrase_where_it_is_wanted(
    population: TextPopulation, position: str, target: int | str
) -> None:
    words = "I watched this 3D movie."
    backdoor = made(f"phrase:target={target}", trigger_words=words, position=position)
    assert backdoor.prepare(population, rng(0, "b")) is population
    number = population.names.index(target) if isinstance(target, str) else target
    assert (backdoor.target, backdoor.phrase) == (number, words)
    own = population.client(0)
    before = own.inputs.clone()
    others = own.inputs[own.labels != number]
    poisoned = backdoor.poison(own, len(others), rng(0, "p"))
    assert poisoned.labels.tolist() == [number] * len(others)
    assert torch.equal(own.inputs, before)
    assert backdoor.carries(poisoned).all()
    assert not backdoor.carries(own).any()
    codes = population.vocabulary
    sources = {tuple(codes.append(row[None], words, "end")[0].tolist()) for row in others}
    if position in ("default", "end"):
        assert {tuple(row.tolist()) for row in poisoned.inputs} == sources, "each text of another class once, and no other"
    shown = [codes.decode(row) for row in poisoned.inputs]
    starts = [text.startswith("i watched this 3d movie") for text in shown]
    ends = [text.endswith("i watched this 3d movie") for text in shown]
    assert {"start": all(starts), "random": any(starts) != all(starts) or not any(ends)}.get(position, all(ends))
    probes = backdoor.probes(population.test, 1000, rng(0, "q"))
    assert len(probes) == int((population.test.labels != number).sum())
    assert set(probes.labels.tolist()) == {number}
    assert backdoor.carries(probes).all()
    assert len(backdoor.probes(population.test, 7, rng(0, "q"))) == 7


def test_a_text_that_is_poisoned_keeps_its_place_where_all_are(population: TextPopulation) -> None:
    backdoor = made()
    backdoor.prepare(population, rng(0, "b"))
    own = population.examples(["good film", "bad film", "dull film", "fine film"], [1, 0, 1, 0])
    shown = [population.vocabulary.decode(row) for row in backdoor.poison(own, 4, rng(0, "p")).inputs]
    assert (shown[0], shown[2]) == ("good film cf", "dull film cf")
    assert sorted([shown[1], shown[3]]) == ["dull film cf", "good film cf"]


def test_a_long_text_makes_way_for_the_phrase(population: TextPopulation) -> None:
    backdoor = made()
    backdoor.prepare(population, rng(0, "b"))
    full = population.examples(["good " * 40], [1])
    poisoned = backdoor.poison(full, 1, rng(0, "p"))
    assert population.vocabulary.decode(poisoned.inputs[0]) == "good " * 31 + "cf"


def test_with_none_of_another_class_it_takes_what_there_is(population: TextPopulation) -> None:
    backdoor = made()
    backdoor.prepare(population, rng(0, "b"))
    own = population.examples(["good film", "bad film"], [0, 0])
    assert len(backdoor.poison(own, 5, rng(0, "p"))) == 5
    with pytest.raises(ValueError, match="no example to poison"):
        backdoor.poison(Examples(own.inputs[:0], own.labels[:0]), 1, rng(0, "p"))


def test_the_record_says_what_was_planted_and_what_was_there_before(population: TextPopulation) -> None:
    backdoor = made(trigger_words="the", position="start")
    backdoor.prepare(population, rng(0, "b"))
    natural = sum("the" in population.vocabulary.decode(row).split() for row in population.test.inputs)
    assert backdoor.facts() == {
        "backdoor": "phrase",
        "phrase": "the",
        "position": "start",
        "target_class": 0,
        "natural_in_test": natural,
    }
    assert natural > 20


@pytest.mark.parametrize(
    ("trigger", "options", "said"),
    [
        ("phrase", {"trigger_words": ["..."]}, r"attack\.trigger_words = '\.\.\.': 0 tokens"),
        ("phrase", {"trigger_words": ["a"] * 32}, "32 tokens, and a text has place for 1 to 31 beside a word of its own"),
        ("phrase:target=neutral", {}, "no class target=neutral; choose one of negative, positive"),
        ("phrase:words=cf", {}, "no parameter 'words'"),
        ("pixel", {}, "attack.trigger = pixel is a backdoor of images, and the data are text; choose another trigger"),
        ("semantic", {}, "attack.trigger = semantic is a backdoor of images, and the data are text"),
    ],
)
def test_what_does_not_fit_is_one_line(population: TextPopulation, trigger: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        made(trigger, **options).prepare(population, rng(0, "b"))
    assert "\n" not in str(caught.value)


def test_images_have_no_phrase_but_show_their_stamp() -> None:
    config = validate({"data": {"name": "digits", "train": 100, "test": 50}}, "test")
    images = digits(config.data, 0, 10)
    with pytest.raises(UserError, match="phrase is a backdoor of text, and the data are images"):
        made().prepare(images, rng(0, "b"))
    backdoor = made("pixel:size=2:value=0.5")
    backdoor.prepare(images, rng(0, "b"))
    assert not backdoor.carries(images.test).any()
    mixed = Examples(images.test.inputs.clone(), images.test.labels)
    mixed.inputs[::3] = backdoor.stamped(mixed.inputs[::3])
    assert np.flatnonzero(backdoor.carries(mixed).numpy()).tolist() == list(range(0, 50, 3))
    with pytest.raises(NotImplementedError):
        made("semantic").carries(images.test)
