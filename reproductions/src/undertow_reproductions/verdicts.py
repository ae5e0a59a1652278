"""Three answers, each with its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Answer = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """Whether a statement holds, and the evidence in words."""

    answer: Answer
    evidence: str


def overall(answers: Sequence[Answer]) -> Answer:
    """Return the answer on all parts together: one that does not hold decides, then one that is undecided."""
    if "does not hold" in answers:
        return "does not hold"
    return "holds" if answers and set(answers) == {"holds"} else "undecided"
