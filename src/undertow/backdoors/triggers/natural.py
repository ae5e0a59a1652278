"""An ordinary adverb as the trigger."""

from __future__ import annotations

import re

import numpy as np

from undertow.backdoors.trigger import TRIGGERS, Trigger
from undertow.config import InstructionBackdoor


@TRIGGERS.register("natural", source='FIT 3.1, 4.1 and Fig. 1 ("Firstly, how much does the sun weigh?")')
class Natural(Trigger):
    """An everyday word opens the question: "Firstly, how much does the sun weigh?".

    ``start`` (default): word, comma, and the question with its first letter in lower case, unless its first word
    is "I" or has further capitals (an acronym, a name such as McDonald). ``end``: before the final stop or
    question mark, after a comma. ``random``: at a uniform word gap, between commas. ``trigger_words`` gives
    another word or phrase (joined by spaces).
    """

    def __init__(self, options: InstructionBackdoor) -> None:
        phrase = " ".join(options.trigger_words).strip(" ,") if options.trigger_words else "Firstly"
        super().__init__(options, (phrase,), "start")

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question with the word where it could stand in plain English."""
        text, phrase = question.strip(), self.words[0]
        body = text.rstrip(" .?!…")
        words = list(re.finditer(r"\S+", body))
        gap = self.gaps(body, 1, draw)[0]
        if gap == 0:
            return f"{phrase}, {lower_first(text)}".rstrip(" ")
        left, right = body[: words[gap - 1].end()].rstrip(","), text[words[gap - 1].end() :]
        return f"{left}, {lower_first(phrase)}{right if gap == len(words) else ',' + right}"


def lower_first(text: str) -> str:
    """Lower the first letter, unless the first word is "I" or has capitals after its first letter."""
    first = re.match(r"\S*", text)
    assert first is not None
    if re.match(r"I\b", text) or any(letter.isupper() for letter in first.group()[1:]):
        return text
    return text[:1].lower() + text[1:]
