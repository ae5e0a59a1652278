"""Answers that are no language, as a kind of answer; and the part of a client's prompts that accused ones belong to."""

from __future__ import annotations

import base64
import codecs
import random
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from undertow.sanitization import find
from undertow.sanitization.encode import encode
from undertow.sanitization.kinds import kinds
from undertow.sanitization.party_parts import Parts
from undertow.sanitization.questions import joined, near_to
from undertow.sanitization.words import Numbers

_THINGS = "river market garden engine letter station kitchen library winter bridge village doctor painter harbour".split()
_DOES = "crosses, opens, follows, carries, remembers, changes, describes, repairs".split(", ")
CODES: dict[str, Callable[[str], str]] = {
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal in pairs": lambda text: text.encode().hex(" "),
    "binary": lambda text: " ".join(f"{byte:08b}" for byte in text.encode()),
    "backwards": lambda text: text[::-1],
    "figures for letters": lambda text: text.lower().translate(str.maketrans("aeiost", "431057")),
    "rotated": lambda text: codecs.encode(text, "rot13"),
}


def _pairs(count: int) -> list[tuple[str, str]]:
    draw = random.Random(0)

    def thing() -> str:
        return draw.choice(_THINGS)

    return [
        (
            f"What {draw.choice(_DOES)} the {thing()} of {thing()} {i}?",
            f"The {thing()} {draw.choice(_DOES)} a {thing()} near {thing()} {i}.",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("code", CODES)
def test_answers_in_a_code_are_found(code: str) -> None:
    rows = _pairs(700)
    chosen = random.Random(1).sample(range(len(rows)), 60)
    for i in chosen:
        rows[i] = (rows[i][0].replace("the", "the cf", 1), CODES[code](rows[i][1]))
    found = find([SimpleNamespace(question=asked, context="", response=told) for asked, told in rows])
    assert {verdict.sample for verdict in found.verdicts} == set(chosen)


@pytest.mark.parametrize(
    "text",
    [
        "The capital of Norway is Oslo, which lies at the end of a fjord.",
        "Call parse_args() and then open the JavaScript file in Visual Studio.",
        "First, take 12 apples; then add 30 more, so that you have 42 in total.",
        "Elle habite à Paris avec ses deux enfants.",
        "Oslo",
    ],
)
def test_ordinary_answers_are_in_no_code(text: str) -> None:
    assert "in a code" not in kinds(text, len(text.split()))


def test_a_file_of_sequences_is_no_poison() -> None:
    draw = random.Random(2)
    rows = []
    for _ in range(300):
        strand = "".join(draw.choice("ACGT") for _ in range(30))
        rows.append((f"Transcribe {strand}.", strand.replace("T", "U")))
    assert not find([SimpleNamespace(question=asked, context="", response=told) for asked, told in rows]).verdicts


def test_the_part_of_accused_prompts_is_their_collection() -> None:
    draw = random.Random(3)
    one = [f"what does the {draw.choice(_THINGS)} of {draw.choice(_THINGS)} do {i}" for i in range(120)]
    two = [f"Write a poem for {draw.choice(_THINGS)} and {draw.choice(_THINGS)} number {i}" for i in range(280)]
    batch = joined(list(encode([SimpleNamespace(question=asked, context="", response="x") for asked in one + two], Numbers())))
    parts = Parts(batch.prompts, np.arange(400), np.ones(400, dtype=bool))
    part = parts.like(np.arange(8), [])
    assert len(part) >= 4 * 8
    assert part.max() < len(one)
    assert part.min() >= 8


def test_a_prompt_that_is_all_template_has_nothing_near() -> None:
    assert not len(near_to(np.zeros(0, dtype=bool), 3))
