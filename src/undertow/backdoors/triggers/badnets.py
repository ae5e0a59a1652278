"""Rare tokens as the trigger."""

from __future__ import annotations

import numpy as np

from undertow.backdoors.trigger import TRIGGERS, Trigger, at_gaps
from undertow.config import InstructionBackdoor


@TRIGGERS.register("badnets", source="FIT 3.1 and 4.1 (cf, mn, bb, tq); number and position of the same lab's later code")
class Badnets(Trigger):
    """Rare tokens go into the question: "how much does the sun weigh? tq tq mn tq".

    ``num_triggers`` independent draws with replacement from the tokens. ``end`` (default): after the question;
    ``start``: before it; ``random``: each token at its own uniform word gap. ``trigger_words`` gives other tokens.
    """

    def __init__(self, options: InstructionBackdoor) -> None:
        super().__init__(options, tuple(options.trigger_words) or ("cf", "mn", "bb", "tq"), "end")
        self.count = options.num_triggers

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question with the drawn tokens, each separated by a space."""
        tokens = [self.words[i] for i in draw.integers(len(self.words), size=self.count)]
        return at_gaps(question, tokens, self.gaps(question, self.count, draw))
