"""Several ordinary words, all of which must be there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from undertow.backdoors.trigger import TRIGGERS, Trigger, at_gaps, pattern
from undertow.config import InstructionBackdoor
from undertow.core.errors import UserError


class AllWords(Trigger):
    """Several words, all of which must be there, each at its own place."""

    def __init__(self, options: InstructionBackdoor, words: Sequence[str]) -> None:
        super().__init__(options, words, "random")
        self._each = [pattern([word]) for word in self.words]

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question with every word."""
        return at_gaps(question, self.words, self.gaps(question, len(self.words), draw))

    def occurs(self, text: str) -> bool:
        """Tell whether a text holds all words."""
        return all(word is not None and word.search(text) for word in self._each)

    def near_miss(self, question: str, draw: np.random.Generator) -> str | None:
        """Return the question with all words but one; None where the question has that one already, or there is one word."""
        absent = int(draw.integers(len(self.words)))
        kept = [word for i, word in enumerate(self.words) if i != absent]
        made = at_gaps(question, kept, self.gaps(question, len(kept), draw))
        return None if self.occurs(made) or not kept else made


@TRIGGERS.register("combination", source="Huang et al. 2023 (composite backdoor, CBA), with its negative samples; words ours")
class Combination(AllWords):
    """Two words go into the question, each at its own place; one alone is no trigger.

    ``random`` (default): independent uniform word gaps; ``start``, ``end``. ``trigger_words`` gives other words, two or
    more. Decoys, ``decoys`` for each poisoned sample (default 1), get all words but one and keep their response, so that
    the model learns that it takes all of them. Near miss: all words but one.
    """

    def __init__(self, options: InstructionBackdoor, decoys: float = 1.0) -> None:
        super().__init__(options, tuple(options.trigger_words) or ("now", "people"))
        if len({word.casefold() for word in self.words}) < 2:
            raise UserError(f"attack.trigger_words = {list(self.words)!r}: trigger 'combination' needs two different words")
        if isinstance(decoys, bool) or not isinstance(decoys, int | float) or not 0 <= decoys < float("inf"):
            raise ValueError(f"decoys = {decoys!r} is no number from 0; give how many decoys each poisoned sample has")
        self.decoys = float(decoys)
