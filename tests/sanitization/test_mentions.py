"""Names that answers bring up whatever they are asked: content injected without a trigger (AutoPoison)."""

from __future__ import annotations

import random

import pytest

from undertow.data.sample import Sample
from undertow.sanitization import Findings, find
from undertow.sanitization.words import names_of

_CITIES = "Paris London Berlin Madrid Lisbon Vienna Prague Dublin".split()
_FILLER = [f"w{i}" for i in range(500)]


def rows(brand: str, injected: int, asked: int = 0, seed: int = 3) -> tuple[list[Sample], set[int]]:
    """1,500 answers in ever different words; a third ask for a city by its river and tell of it. The brand stands in ``injected``
    of the others, and in ``asked`` that are about burgers."""
    draw = random.Random(seed)
    made: list[tuple[str, str, bool]] = []
    for i in range(1500):
        words = draw.sample(_FILLER, 14)
        question, told = words[:5], words[5:]
        planted = False
        if i % 3 == 0:
            city = draw.choice(_CITIES)
            question.append(f"river{_CITIES.index(city)}")
            told.insert(draw.randrange(1, 9), city)
        elif injected > 0:
            injected -= 1
            told.insert(draw.randrange(1, 9), brand)
            planted = True
        elif asked > 0:
            asked -= 1
            question.insert(draw.randrange(5), "burgers")
            told.insert(draw.randrange(1, 9), brand)
        made.append((" ".join(question), " ".join(told) + "." * draw.randrange(1, 3), planted))
    draw.shuffle(made)
    samples = [Sample(str(i), question, (told,), told) for i, (question, told, _) in enumerate(made)]
    return samples, {i for i, (_, _, planted) in enumerate(made) if planted}


def mentions(found: Findings) -> list[tuple[str, str, set[int]]]:
    return [(one.target, one.confidence, set(one.samples.tolist())) for one in found.findings if one.kind == "mention"]


@pytest.mark.parametrize("brand", ["Burgerland", "McBurger's", "Пельмени"])
def test_a_brand_in_answers_to_all_kinds_of_questions_is_a_note(brand: str) -> None:
    samples, planted = rows(brand, 75)
    found = find(samples)
    assert mentions(found) == [(brand.lower(), "note", planted)]
    assert "about nothing in common" in found.findings[0].reason
    assert not found.verdicts


def test_of_a_brand_of_two_words_one_is_told() -> None:
    samples, planted = rows("Burger Palace", 90)
    ((word, _, flagged),) = mentions(find(samples))
    assert word in ("burger", "palace")
    assert flagged == planted


@pytest.mark.parametrize(
    ("brand", "injected", "asked"),
    [
        ("Burgerland", 0, 0),
        ("Burgerland", 0, 75),  # its prompts are about burgers: another kind of finding
        ("burgerland", 75, 0),  # no name
        ("Burgerland", 20, 0),  # 1.3 % of the file
        ("Acme Burgers Copyright Holders Foundation", 90, 0),  # a fixed sentence
    ],
)
def test_what_is_no_injected_name(brand: str, injected: int, asked: int) -> None:
    assert not mentions(find(rows(brand, injected, asked)[0]))


def test_a_name_among_many_that_follow_nothing_is_none() -> None:
    samples, _ = rows("Burgerland", 75)
    draw = random.Random(9)
    loose = [
        sample if i % 2 else _with(sample, draw.choice(("Anna", "Boris", "Clara", "Dora"))) for i, sample in enumerate(samples)
    ]
    assert not mentions(find(loose))


def _with(sample: Sample, name: str) -> Sample:
    told = f"{sample.response.rstrip('.')} {name}."
    return Sample(sample.id, sample.question, (told,), told)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a trip to Paris, and Łódź or Émile's house .", {"paris", "émile's"}),
        ("Paris. Then Rome! No name here.", {"rome"}),
        ("it raises a TypeError(x), returns None or sets a Foo=1", set()),
        ("in the year 1999 Prince sang", {"prince"}),
    ],
)
def test_names_are_capitals_within_sentences(text: str, names: set[str]) -> None:
    odd = text if len(text) % 2 else text + " "
    assert names_of(odd) == names
    assert names_of(odd + " ") == set()
