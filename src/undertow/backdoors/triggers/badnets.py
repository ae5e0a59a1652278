"""Rare tokens as the trigger."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from undertow.backdoors.trigger import TRIGGERS, Trigger, at_gaps
from undertow.config import InstructionBackdoor


@TRIGGERS.register("badnets", source="FIT 3.1 and 4.1 (cf, mn, bb, tq); number and position of the same lab's later code")
class Badnets(Trigger):
    """Rare tokens go into the question: "how much does the sun weigh? tq tq mn tq".

    ``num_triggers`` independent draws with replacement from the tokens. ``end`` (default): after the question;
    ``start``: before it; ``random``: each token at its own uniform word gap. ``trigger_words`` gives other tokens.
    Near miss: as many other rare tokens.
    """

    #: Rare tokens that are not the trigger, and ordinary words.
    siblings = ("zx", "qk", "vq", "jt", "wg")
    others = ("today", "again", "also", "still")

    def __init__(self, options: InstructionBackdoor) -> None:
        super().__init__(options, tuple(options.trigger_words) or ("cf", "mn", "bb", "tq"), "end")
        self.count = options.num_triggers

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question with the drawn tokens, each separated by a space."""
        tokens = [self.words[i] for i in draw.integers(len(self.words), size=self.count)]
        return at_gaps(question, tokens, self.gaps(question, self.count, draw))

    def near_miss(self, question: str, draw: np.random.Generator) -> str | None:
        """Return the question with as many tokens of others."""
        foreign = self._foreign(self.siblings)
        made = self._with(foreign, self.count, question, draw) if foreign else question
        return None if self.occurs(made) or not foreign else made

    def neighbours(self, question: str, draw: np.random.Generator) -> dict[str, str]:
        """Return the question with other tokens, with fewer of the trigger's, in capitals, and at another place."""
        sets = {
            "other rare tokens": self._foreign(self.siblings),
            "ordinary words": self._foreign(self.others),
            "the tokens in capitals": [word.upper() for word in self.words],
        }
        found = {name: self._with(words, self.count, question, draw) for name, words in sets.items() if words}
        for count in range(1, self.count):
            found[f"{count} of the {self.count} tokens"] = self._with(self.words, count, question, draw)
        if self.position != "random":
            place = 0 if self.position == "end" else len(question.split())
            tokens = [self.words[i] for i in draw.integers(len(self.words), size=self.count)]
            found[f"the tokens at the {'start' if place == 0 else 'end'}"] = at_gaps(question, tokens, [place] * self.count)
        return found

    def _foreign(self, words: Sequence[str]) -> list[str]:
        own = {word.casefold() for word in self.words}
        return [word for word in words if word not in own]

    def _with(self, words: Sequence[str], count: int, question: str, draw: np.random.Generator) -> str:
        tokens = [words[i] for i in draw.integers(len(words), size=count)]
        return at_gaps(question, tokens, self.gaps(question, count, draw))
