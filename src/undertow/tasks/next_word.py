"""Prediction of the next word in texts by many authors (Bagdasaryan et al. 2020, section 5.1)."""

from __future__ import annotations

from torch import Tensor

from undertow.data.tokens import Tokens
from undertow.tasks.over_tensors import OverTensors

#: Words of the context that a line shows.
_SHOWN = 12


class NextWord(OverTensors):
    """Sequences of words, each place labelled with the word that follows."""

    kind = "next-word"

    def shown(self, example: Tensor, place: int) -> str:
        """Return the last words before the one that is asked for."""
        shown = example[max(0, place + 1 - _SHOWN) : place + 1].tolist()
        vocabulary = getattr(self.population, "vocabulary", None)
        if isinstance(vocabulary, Tokens):
            return str(vocabulary.tokenizer.decode(shown))
        return " ".join(self.population.names[word] for word in shown)
