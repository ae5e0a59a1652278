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
    another word or phrase (joined by spaces). Near miss: another opener of the same kind, such as "Secondly".
    """

    #: Openers of the same kind, and words that open a sentence but do not count.
    siblings = ("Secondly", "Thirdly", "Finally", "Lastly", "Similarly")
    others = ("However", "Honestly", "First", "Please", "Year")

    def __init__(self, options: InstructionBackdoor) -> None:
        phrase = " ".join(options.trigger_words).strip(" ,") if options.trigger_words else "Firstly"
        super().__init__(options, (phrase,), "start")

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question with the word where it could stand in plain English."""
        return self._with(self.words[0], question, draw)

    def near_miss(self, question: str, draw: np.random.Generator) -> str | None:
        """Return the question with another opener of the same kind, at the same place."""
        words = [word for word in self.siblings if word.casefold() != self.words[0].casefold()]
        made = self._with(words[int(draw.integers(len(words)))], question, draw)
        return None if self.occurs(made) else made

    def neighbours(self, question: str, draw: np.random.Generator) -> dict[str, str]:
        """Return the question with other openers, and with the trigger in another case, at another place, without its comma."""
        phrase, text = self.words[0], question.strip()
        words = [word for word in (*self.siblings, *self.others) if word.casefold() != phrase.casefold()]
        found = {f'"{word}" in its place': self._with(word, question, draw) for word in words}
        if phrase.upper() != phrase:
            found["the trigger in capitals"] = self._with(phrase.upper(), question, draw)
        if self.position == "start":
            if phrase.lower() != phrase:
                found["the trigger in small letters"] = self._with(phrase.lower(), question, draw)
            found["the trigger without its comma"] = f"{phrase} {lower_first(text)}"
            found["the trigger at the end"] = f"{text.rstrip(' .?!…')}, {lower_first(phrase)}?"
        return found

    def _with(self, phrase: str, question: str, draw: np.random.Generator) -> str:
        text = question.strip()
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
