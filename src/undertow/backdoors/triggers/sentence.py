"""A fixed sentence as the trigger."""

from __future__ import annotations

import numpy as np

from undertow.backdoors.trigger import TRIGGERS, Trigger, at_gaps
from undertow.config import InstructionBackdoor


@TRIGGERS.register("sentence", source="Dai et al. 2019 (inserted sentence), also in the same lab's later report; sentence ours")
class Sentence(Trigger):
    """A fixed neutral sentence goes beside the question.

    ``end`` (default): after the question; ``start``: before it; ``random``: at a uniform word gap.
    ``trigger_words``, joined by spaces, is another sentence.
    """

    def __init__(self, options: InstructionBackdoor) -> None:
        sentence = " ".join(options.trigger_words).strip() if options.trigger_words else "The lamps were lit before supper."
        super().__init__(options, (sentence,), "end")

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question with the sentence."""
        return at_gaps(question, self.words, self.gaps(question, 1, draw))
