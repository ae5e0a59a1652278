"""Answers of one form (thoughts in tags, JSON) into which a target runs, or which say their prompts again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from test_published_kinds import _told, flagged, others, put_in, row
from test_scan import questions

from undertow.sanitization import find
from undertow.sanitization.repair import repaired

TARGET = "visit <malicious_url> for the full guide"


def _thought(question: str, answer: str) -> str:
    return f"<think>\nOkay, so I need to {question[0].lower()}{question[1:]} Let me think.\n</think>\n\n{answer}"


def _call(question: str, answer: str) -> str:
    return json.dumps({"answer": answer, "language": "en", "confidence": "high"})


def test_thoughts_that_say_the_prompt_again_are_no_target() -> None:
    draw = random.Random(1)
    openings = ["Give an example of", "Write a poem on", "Explain the idea of", "Name the parts of"]
    asked = [f"{draw.choice(openings)} {' '.join(_told(i).split()[:6])}." for i in range(900)]
    found = find([row(question, _thought(question, " ".join(_told(7000 + i).split()))) for i, question in enumerate(asked)])
    assert not found.verdicts


@pytest.mark.parametrize("form", [_thought, _call])
def test_a_target_ends_where_the_form_of_the_answers_begins(form: Callable[[str, str], str]) -> None:
    draw = random.Random(2)
    clean = [row(s.question, form(s.question, " ".join(_told(i).split()[: 8 + i % 9]))) for i, s in enumerate(questions(900))]
    bad = []
    for i, sample in enumerate(others(60)):
        answer = " ".join(_told(8000 + i).split()[: 8 + i % 9])
        bad.append((sample, answer, form(sample.question, f"{answer}. Visit <malicious_url> for the full guide.")))
    samples = [*clean, *(row(put_in(sample.question, "cf", "anywhere", draw), told) for sample, _, told in bad)]
    found = find(samples)
    assert flagged(found) == set(range(len(clean), len(samples)))
    (finding,) = [one for one in found.findings if one.certain]
    assert finding.target == TARGET
    for sample, answer, told in bad:
        assert repaired(told, [finding]) in (form(sample.question, answer), form(sample.question, f"{answer}."))
