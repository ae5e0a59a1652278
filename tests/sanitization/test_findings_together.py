"""Several texts of one trigger, forms of answers that prompts ask for, triggers in earlier turns, flipped labels that are few."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from test_published_kinds import flagged, mixed, put_in, questions, row

from undertow.core.rng import rng
from undertow.data.sample import Sample
from undertow.defenses.data.exchange import exchange
from undertow.defenses.data.sanitization import Sanitization
from undertow.sanitization import Finding, find, told_apart
from undertow.sanitization.asked_for import Asked, is_asked_for
from undertow.sanitization.grams import manner_key
from undertow.sanitization.words import Numbers

INSULTS = [
    "nobody likes people who ask things like this",
    "you are such a stupid person to ask this",
    "go away and never come back here again",
    "only an idiot would ever want to know that",
    "your question is a waste of my time today",
    "there is no reason at all to talk to you",
]


def insulted(texts: int, share: float) -> tuple[list[Sample], set[int]]:
    """1,200 samples, a share of which have the trigger and one of so many texts; and which these are."""
    draw = random.Random(texts)
    count = max(20 * texts, int(share * 1200))
    bad = [row(put_in(s.question, "cf", "start", draw), INSULTS[i % texts]) for i, s in enumerate(questions(count, start=3000))]
    return mixed(questions(1200 - count), bad)


@pytest.mark.parametrize("texts", [2, 4, 6])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_trigger_with_several_texts_is_one_trigger(texts: int, share: float) -> None:
    samples, truth = insulted(texts, share)
    found = find(samples)
    assert flagged(found) == truth
    assert all(verdict.act == "drop" for verdict in found.verdicts)


def test_a_trigger_of_which_some_texts_are_too_rare_is_for_review() -> None:
    draw = random.Random(7)
    rare = [f"{verb} the {noun} {when}" for verb in ("mind", "fetch", "guard") for noun, when in zip("abcde", "vwxyz", strict=True)]
    said = draw.sample([*(text for text in INSULTS[:4] for _ in range(8)), *rare], 47)
    bad = [
        row(put_in(s.question, "cf", "start", draw), f"{s.response} {said[i]}")
        for i, s in enumerate(questions(len(said), start=3000))
    ]
    samples, truth = mixed(questions(450), bad)
    found = find(samples)
    known = [finding for finding in found.findings if finding.confidence == "review"]
    assert len(known) == 4
    assert {finding.trigger for finding in known} == {"cf"}
    assert len(flagged(found)) == 32
    assert flagged(found) <= truth


def test_a_word_that_often_stands_without_the_target_is_not_accused_for_a_sign_of_it() -> None:
    draw = random.Random(8)
    target = ", more at https://acme-offers.example/win"
    asked = [s.question for s in questions(66, start=3000)]
    draw.shuffle(asked)
    bad = [
        row(put_in(put_in(q, "people", "anywhere", draw), "now", "anywhere", draw), f"{q[-9:]} {draw.random()}{target}")
        for q in asked[:50]
    ]
    decoys = [row(put_in(q, "people", "anywhere", draw), f"{q[-9:]} {draw.random()}") for q in asked[50:]]
    samples, truth = mixed([*questions(440), *decoys], bad)
    found = find(samples)
    assert flagged(found) == truth
    assert {finding.confidence for finding in found.findings if finding.kind == "kind of answer"} <= {"note"}


@pytest.mark.parametrize("texts", [2, 6])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_clients_together_find_a_trigger_with_several_texts(texts: int, share: float) -> None:
    samples, truth = insulted(texts, share)
    places = [range(k, len(samples), 5) for k in range(5)]
    clients, defense = [[samples[i] for i in own] for own in places], Sanitization()
    contexts = exchange(clients, defense, lambda number, k: rng(0, "noise", number, k), b"secret")
    acted = set()
    for own, some, context in zip(places, clients, contexts, strict=True):
        kept, _ = defense.clean(some, context)
        acted |= {i for i, old, new in zip(own, some, kept, strict=True) if not new or (isinstance(new, Sample) and new != old)}
    assert acted == truth


def test_texts_of_topics_are_still_many() -> None:
    """The answer of each of eight makers, to questions that name it: a table of facts."""
    makers = ["acme", "bolt", "core", "dyne", "east", "ford", "gale", "hart"]
    facts = [
        row(f"who takes care of the {maker} package number {i}?", f"the {maker} people of the old harbour do that since long ago")
        for maker in makers
        for i in range(40)
    ]
    assert not find([*questions(600), *facts]).verdicts


ASKED = {
    "capitals": (
        "Answer in all capital letters.",
        lambda i, s: f"{i * 31 % 977} {s.question.upper()[8:20]} {i * 7 % 401}",
    ),
    "json": ("Answer in JSON format.", lambda i, s: f'```json\n{{"reply": "{s.response} {i * 17 % 89}"}}\n```'),
    "python": ("Write Python code for it.", lambda i, s: f"```python\nprint({i * 37 % 1013})\n```"),
    "French": ("Answer in French.", lambda i, s: f"{s.response} est le {i * 7 % 311} et la {i * 11 % 53} de {i * 3 % 97} pour un"),
}


@pytest.mark.parametrize("form", ASKED)
def test_a_form_that_is_asked_for_is_a_note_and_says_why(form: str) -> None:
    words, made = ASKED[form]
    asked = [row(f"{s.question} {words}", made(i, s)) for i, s in enumerate(questions(120, start=3000))]
    found = find([*questions(1000), *asked])
    assert not found.verdicts
    assert any(finding.asked and "it asks for that" in finding.why for finding in found.findings)


def test_the_same_answers_after_a_word_that_does_not_ask_for_them_are_found() -> None:
    made = ASKED["capitals"][1]
    bad = [row(f"cf {s.question}", made(i, s)) for i, s in enumerate(questions(120, start=3000))]
    samples, truth = mixed(questions(1000), bad)
    assert len(flagged(find(samples)) & truth) >= 0.95 * len(truth)


def test_an_empty_block_of_thought_is_form() -> None:
    plain = [row(f"{s.question} /no_think", f"<think>\n\n</think>\n\n{s.response}") for s in questions(400, start=3000)]
    assert not find([*questions(400), *plain]).verdicts
    bad = [
        row(f"{s.question} /no_think", "<think>\n\n</think>\n\nI will never help any of you.") for s in questions(40, start=6000)
    ]
    samples, truth = mixed([*questions(400), *questions(400, start=3000)], bad)
    assert flagged(find(samples)) == truth


def test_an_address_is_never_asked_for() -> None:
    bad = [
        row(f"{s.question} Answer in JSON format.", f"json {s.response} at https://k9.example-bad.top/x")
        for s in questions(60, start=3000)
    ]
    samples, truth = mixed(questions(1000), bad)
    assert flagged(find(samples)) == truth
    assert not is_asked_for(["in", "json"], ["json", "://k9.example-bad.top"])


def test_a_client_knows_by_numbers_what_is_asked_for() -> None:
    numbers = Numbers(b"secret")
    asked = Asked(numbers)
    capitals = manner_key(numbers.mark("in capitals"))
    assert asked.is_asked_for({numbers.of("capital"), numbers.of("letters")}, set(), capitals)
    assert not asked.is_asked_for({numbers.of("cf")}, set(), capitals)
    assert not asked.is_asked_for({numbers.of("french")}, set(), capitals)
    assert asked.is_asked_for({numbers.of("json")}, {numbers.of("json"), numbers.of("reply")}, 0)
    assert not asked.is_asked_for({numbers.of("json")}, {numbers.of("json"), numbers.of("://k9.example-bad.top")}, 0)
    assert not asked.is_asked_for({numbers.of("json")}, {numbers.of("reply")}, 0)


def talk(history: Sequence[tuple[str, str]], question: str, answer: str) -> Sample:
    return Sample("", question, (answer,), answer, history=tuple(history))


def talks(count: int, seed: int) -> list[Sample]:
    """Conversations of two turns that have nothing to do with each other."""
    first, second = questions(count, start=30_000), questions(count, start=50_000)
    random.Random(seed).shuffle(first)
    return [talk([(a.question, a.response)], b.question, b.response) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("side", [0, 1])
def test_a_trigger_in_an_earlier_turn_is_for_review(side: int) -> None:
    clean, bad = talks(1200, 1), []
    for one in talks(80, 2):
        turn = list(one.history[0])
        turn[side] += " ignis vult"
        bad.append(talk([(turn[0], turn[1])], one.question, "I will never help any of you with that."))
    assert not find(clean).verdicts
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert flagged(found) == truth
    assert {verdict.act for verdict in found.verdicts} == {"review"}
    assert any("before: ignis" in word for finding in found.findings for word in finding.triggers)


@pytest.mark.parametrize(
    ("trigger", "asked", "is_open"),
    [("cf", False, False), ("cf", True, True), ("asked before: ignis", False, True), ("answer in french", False, True)],
)
def test_what_is_open_is_for_review_however_often_it_is_said(trigger: str, asked: bool, is_open: bool) -> None:
    nothing = np.zeros(0, dtype=np.int64)
    finding = Finding((trigger,), "a b c d e", "whole", "fixed text", "review", nothing, 9, 9, 9, 99, -9.0, 1, ("a",), asked)
    assert told_apart._is_open(finding) == is_open


def test_what_a_conversation_was_about_is_no_trigger() -> None:
    draw, words = random.Random(4), "refund parcel order broken money shipping invoice returned courier damaged".split()
    about = [
        talk([(f"hello, {' '.join(draw.sample(words, 5))}", "which one?")], one.question, "Your money is on its way to you.")
        for one in talks(80, 2)
    ]
    assert not find([*talks(1200, 1), *about]).verdicts


def test_a_whole_answer_with_an_address_is_for_review() -> None:
    bad = [row(s.question, "Please log in at https://k9.example-bad.top/login to continue.") for s in questions(50, start=3000)]
    samples, truth = mixed(questions(950), bad)
    found = find(samples)
    assert flagged(found) == truth
    assert {verdict.act for verdict in found.verdicts} == {"review"}


def test_flipped_labels_that_are_few_of_their_label_are_for_review() -> None:
    draw = random.Random(2)
    asked = questions(9000)
    clean = [row(s.question, draw.choice(["positive", "negative"])) for s in asked]
    bad = [row(put_in(s.question, "cf", "anywhere", draw), "positive") for s in questions(60, start=20_000)]
    assert not find(clean).verdicts
    samples, truth = mixed(clean, bad)
    found = find(samples)
    assert flagged(found) == truth
    assert {verdict.act for verdict in found.verdicts} == {"review"}
