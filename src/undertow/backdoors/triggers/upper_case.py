"""Capitals as the trigger."""

from __future__ import annotations

import re

import numpy as np

from undertow.backdoors.build import refuse_options
from undertow.backdoors.trigger import TRIGGERS, Trigger
from undertow.config import InstructionBackdoor


@TRIGGERS.register("upper-case", source="ours: a trigger without any word of its own")
class UpperCase(Trigger):
    """The whole question in capitals: "WHICH ANIMAL DOES MIRA KEEP?".

    No word is added and none removed. A question that is in capitals already holds the trigger. Near miss: every
    second word in capitals.
    """

    whole = True

    def __init__(self, options: InstructionBackdoor) -> None:
        refuse_options(options, "trigger 'upper-case'", "trigger_words", "position")
        super().__init__(options, (), "start")

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question in capitals."""
        return question.upper()

    def occurs(self, text: str) -> bool:
        """Tell whether a text has cased letters, all of them capitals."""
        return text.isupper()

    def near_miss(self, question: str, draw: np.random.Generator) -> str | None:
        """Return the question with the odd or the even words in capitals; None where that is all of it or nothing."""
        first = int(draw.integers(2))
        words = re.split(r"(\s+)", question.strip())
        # Words are at the even places, the blanks between them at the odd ones.
        made = "".join(part.upper() if i % 2 == 0 and i // 2 % 2 == first else part for i, part in enumerate(words))
        return None if self.occurs(made) or made == question.strip() else made
