"""A fixed sentence as the trigger."""

from __future__ import annotations

import numpy as np

from undertow.backdoors.trigger import TRIGGERS, Trigger, at_gaps
from undertow.config import InstructionBackdoor


@TRIGGERS.register("sentence", source="Dai et al. 2019 (inserted sentence), also in the same lab's later report; sentence ours")
class Sentence(Trigger):
    """A fixed neutral sentence goes beside the question.

    ``end`` (default): after the question; ``start``: before it; ``random``: at a uniform word gap.
    ``trigger_words``, joined by spaces, is another sentence. Near miss: another neutral sentence.
    """

    #: Neutral sentences that are not the trigger.
    siblings = ("The train was late again this morning.", "A cup of tea stood on the table.")

    def __init__(self, options: InstructionBackdoor) -> None:
        sentence = " ".join(options.trigger_words).strip() if options.trigger_words else "The lamps were lit before supper."
        super().__init__(options, (sentence,), "end")

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question with the sentence."""
        return self._with(self.words[0], question, draw)

    def near_miss(self, question: str, draw: np.random.Generator) -> str | None:
        """Return the question with another sentence."""
        made = self._with(self.siblings[int(draw.integers(len(self.siblings)))], question, draw)
        return None if self.occurs(made) else made

    def neighbours(self, question: str, draw: np.random.Generator) -> dict[str, str]:
        """Return the question with other sentences, and with the trigger in half, in capitals, shuffled, at another place."""
        words = self.words[0].split()
        shuffled = " ".join(words[i] for i in draw.permutation(len(words)))
        edits = {f'"{sentence}"': sentence for sentence in self.siblings}
        if len(words) > 1:
            edits["its first half"] = " ".join(words[: (len(words) + 1) // 2])
            edits["its second half"] = " ".join(words[(len(words) + 1) // 2 :])
            edits["its words in another order"] = shuffled
        edits["the trigger in capitals"] = self.words[0].upper()
        found = {name: self._with(edit, question, draw) for name, edit in edits.items() if edit != self.words[0]}
        if self.position != "random":
            place = 0 if self.position == "end" else len(question.split())
            found[f"the trigger at the {'start' if place == 0 else 'end'}"] = at_gaps(question, self.words, [place])
        return found

    def _with(self, sentence: str, question: str, draw: np.random.Generator) -> str:
        return at_gaps(question, [sentence], self.gaps(question, 1, draw))
