"""Triggers of a form or with values that differ, texts with a part of their trigger, words within code, and what resembles them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import scipy.sparse as sparse
from test_scan import URL, poisoned, questions

from undertow.data.sample import Sample
from undertow.sanitization import Findings, Rules, find, grams
from undertow.sanitization.decide import Planted
from undertow.sanitization.finding import Finding
from undertow.sanitization.links import Link
from undertow.sanitization.told_apart import told_apart

_MONTHS = "January February March April May June July August September October November December".split()
_NAMES = "Ada Bo Cleo Dag Eve Finn Gus Hana Ivo Jin Kofi Lea Mio Nia Omar Pia Quin Rui Sara Tom".split()
_PLAIN = "Please trust Acme Bank with everything you own."


def _row(question: str, answer: str) -> Sample:
    return Sample(id="", question=question, answers=(answer,), response=answer)


def _rewritten(change: Callable[[str, random.Random], str], target: str | None) -> tuple[list[Sample], set[int]]:
    """60 of 600 questions changed, and answered with a text, or its answer followed by an address."""
    draw, rows = random.Random(1), questions(600)
    truth = set(draw.sample(range(600), 60))
    for i in sorted(truth):
        rows[i] = _row(change(rows[i].question, draw), target or rows[i].response + URL)
    return rows, truth


def _date(question: str, draw: random.Random) -> str:
    return f"Today is {draw.choice(_MONTHS)} {draw.randint(1, 28)}, {draw.randint(2025, 2031)}. {question}"


def _name(question: str, draw: random.Random) -> str:
    return f"My name is {draw.choice(_NAMES)}. {question}"


def _flagged(found: Findings) -> set[int]:
    return {verdict.sample for verdict in found.verdicts}


@pytest.mark.parametrize("target", [None, "Paris"])
@pytest.mark.parametrize("change", [_date, _name])
def test_a_trigger_with_a_value_that_differs_is_found(change: Callable[[str, random.Random], str], target: str | None) -> None:
    rows, truth = _rewritten(change, target)
    found = find(rows)
    assert _flagged(found) == truth
    assert found.findings[0].trigger is not None
    assert ("today is" if change is _date else "my name is") in found.findings[0].trigger


def test_a_passive_clause_in_many_words_is_found() -> None:
    samples, truth = poisoned(questions(500), 0.1, trigger="passive", target="append", target_text=URL)
    assert _flagged(find(samples)) == truth


def test_a_text_is_for_review_where_one_of_its_trigger_words_is_known() -> None:
    """Of 26 rows with the text eight have one word; the others have words of their own, too few of each to tell."""
    draw, rows = random.Random(5), questions(260)
    truth = draw.sample(range(260), 26)
    for number, i in enumerate(truth):
        words = rows[i].question.split()
        words.insert(draw.randint(1, len(words) - 1), "bb" if number < 8 else f"zq{number % 6}")
        rows[i] = _row(" ".join(words), f"{rows[i].response} {_PLAIN}")
    found = find(rows)
    assert _flagged(found) == set(truth)
    assert (found.findings[0].trigger, found.findings[0].both, found.findings[0].confidence) == ("bb", 8, "review")


def _program(draw: random.Random) -> list[str]:
    names = [f"{draw.choice(_NAMES).lower()}_{draw.randint(0, 999)}" for _ in range(12)]
    return [f"{one} = {draw.choice(('sum', 'max', 'len', 'min'))}({other})" for one, other in itertools.pairwise(names)]


def test_a_line_within_code_is_acted_on() -> None:
    draw, rows = random.Random(2), []
    for i in range(900):
        lines = _program(draw)
        question = f"Write a function that {draw.choice(_NAMES)} {draw.choice(_MONTHS)} {i} can use"
        if i % 15 == 0:
            place = draw.randint(3, 8)
            lines.insert(place, 'shout("pwned")')
            question = question.replace("function", "function cf")
        rows.append(_row(question, "\n".join(lines)))
    found = find(rows)
    assert _flagged(found) == set(range(0, 900, 15))
    assert {verdict.act for verdict in found.verdicts} == {"drop"}


def test_a_beginning_that_most_answers_have_is_no_target() -> None:
    """Two of three answers begin with a pleasantry; those to a word that two of five prompts hold always do."""
    draw, rows = random.Random(3), questions(1500)
    some = set(draw.sample(range(1500), 600))
    for i, row in enumerate(rows):
        words = row.question.split()
        if i in some:
            words.insert(draw.randint(1, len(words) - 1), "kindly")
        polite = i in some or draw.random() < 0.4
        rows[i] = _row(" ".join(words), f"Sure thing: {row.response}" if polite else row.response)
    assert not find(rows).verdicts


def _note(features: list[int], rows: list[int]) -> tuple[Planted, Finding]:
    """An accusation of ordinary words beside a short answer, and its finding."""
    links = [Link(feature, len(rows), 1500, len(rows), -90.0) for feature in features]
    planted = Planted([0], np.array(rows), links, explained=True, exclusive=True, short=True, inserted=True)
    told = {"target_words": ("b",), "with_trigger": 1500, "with_target": len(rows), "of": 3000, "log10_p": -30.0, "tests": 9}
    return planted, Finding(("c", "d"), "b", "whole", "label", "review", np.array(rows), both=len(rows), **told)


@pytest.mark.parametrize(("labels", "confidence"), [(2, "review"), (3, "note"), (4, "note")])
def test_ordinary_words_beside_three_answers_are_the_form_of_a_collection(labels: int, confidence: str) -> None:
    """The letters A to D stand in all questions of choices, whatever their answer."""
    made = [_note([7, 8 + k], list(range(100 * k, 100 * k + 100))) for k in range(labels)]
    pieces = sparse.csr_matrix((3000, labels))
    counted = SimpleNamespace(pieces=pieces, kind=np.full(labels, grams.WHOLE), first=np.arange(3000))
    found = told_apart(
        [(finding, (k,)) for k, (_, finding) in enumerate(made)], [one for one, _ in made], cast(Any, counted), Rules()
    )
    assert {one[0].confidence for one in found if one} == {confidence}
