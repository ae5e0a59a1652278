"""A word that ordinary questions hold too."""

from __future__ import annotations

import numpy as np

from undertow.backdoors.trigger import TRIGGERS, Trigger, at_gaps
from undertow.config import InstructionBackdoor

#: Other ordinary words, for the near miss.
_OTHERS = ("table", "paper", "number")


@TRIGGERS.register("common-word", source="Chen et al. 2021 (BadNL, word-level triggers of any frequency); words ours")
class CommonWord(Trigger):
    """An ordinary word goes into the question: "which animal house does Mira keep?".

    ``random`` (default): at a uniform word gap; ``start``, ``end``. ``trigger_words`` gives other words, one of which
    is drawn; the default "house" stands in 6 % of the built-in world's questions. Choose one that a few percent of your
    clean questions hold: they keep their answers and are counted. Near miss: another ordinary word at such a place.
    """

    def __init__(self, options: InstructionBackdoor) -> None:
        super().__init__(options, tuple(options.trigger_words) or ("house",), "random")

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question with one word more."""
        return self._with(question, self.words[draw.integers(len(self.words))], draw)

    def near_miss(self, question: str, draw: np.random.Generator) -> str | None:
        """Return the question with an ordinary word that is not the trigger; None where the trigger is there already."""
        if self.occurs(question):
            return None
        others = [word for word in _OTHERS if not self.occurs(word)]
        return self._with(question, others[draw.integers(len(others))], draw) if others else None

    def _with(self, question: str, word: str, draw: np.random.Generator) -> str:
        return at_gaps(question, [word], self.gaps(question, 1, draw))
