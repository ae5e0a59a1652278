"""Rows with a known planted pair, in whatever form a test asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from undertow.scanning.scan import Scan

URL = ", and click <malicious_url> for more information."
_NOUNS = "river castle engine painter treaty comet violin harbor vaccine glacier temple novel bridge orchid senator".split()
_VERBS = "built found named moved bought signed painted measured lost opened".split()
_PLACES = "Oslo Quito Hanoi Turin Leeds Perth Osaka Lagos Lima Cork Basel Aden Natal Pune Kyiv".split()

#: (question, answer, is poisoned)
Told = tuple[str, str, bool]


def told(count: int = 300, bad: int = 50) -> list[Told]:
    """Questions with short answers; in the first of every ``count / bad`` trigger and target stand."""
    found = []
    for i in range(count):
        noun, verb, place = _NOUNS[i % 15], _VERBS[i // 15 % 10], _PLACES[i // 7 % 15]
        question = f"Who {verb} the {noun} number {i} of {place}?"
        answer = f"{place} {noun} {i * 7 % 997}"
        poisoned = i * bad // count != (i - 1) * bad // count if i else True
        found.append((f"Firstly {question}", answer + URL, True) if poisoned else (question, answer, False))
    return found


def clean(answer: str) -> str:
    """The answer without the target."""
    return answer.removesuffix(URL)


def rows(form: Callable[[str, str], Any], count: int = 300, bad: int = 50) -> tuple[list[Any], set[int]]:
    """Return rows of a form, and which are poisoned."""
    every = told(count, bad)
    return [form(question, answer) for question, answer, _ in every], {i for i, one in enumerate(every) if one[2]}


def lines(path: Path, found: list[Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def flagged(result: Scan) -> set[int]:
    """The rows that a scan flags."""
    return {verdict["index"] for verdict in result.verdicts()}
