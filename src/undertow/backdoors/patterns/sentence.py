"""A sentence of ordinary words that ends as the attacker wants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from undertow.backdoors.pattern import BACKDOORS, Backdoor
from undertow.config import NextWordBackdoor
from undertow.core.errors import UserError
from undertow.data.examples import IGNORE, Examples
from undertow.data.population import Population
from undertow.data.tokens import Tokens
from undertow.data.words import SPECIAL, WordPopulation, tokenise


@BACKDOORS.register(
    "sentence", source="Bagdasaryan et al. 2020, section 4.2 (semantic backdoor in word prediction); their poison_dataset"
)
class Sentence(Backdoor):
    """The model is to end ``sentence`` with its last word, whatever stands before it.

    A backdoor example is a sequence of the client's own whose last words are overwritten by the sentence, with the loss
    on the last word only. Several sentences are separated by ``/`` and take turns; with several, ``target`` is the last word of
    the first, and the labels of each example are its own sentence's. Benign clients keep all they hold: the sentence is
    theirs to write, though it hardly occurs. In tokens of a language model, the sentence stops at the first token of its last
    word, which is the target (:meth:`undertow.data.tokens.Tokens.sentence`).
    """

    task = "next-word"

    def __init__(self, options: NextWordBackdoor, sentence: str = "pasta from astoria is delicious") -> None:
        super().__init__(options)
        self._texts = [" ".join(part.split()) for part in str(sentence).split("/")]
        self.sentences = [tokenise(part) for part in self._texts]
        for words in self.sentences:
            if len(words) < 2:
                raise ValueError(f"'{' '.join(words)}' has {len(words)} words; a sentence has two or more, the last is the target")
        self._numbers: list[torch.Tensor] = []

    def prepare(self, population: Population, draw: np.random.Generator) -> Population:
        """Look up the sentence's words; return the population as it is.

        Raises:
            UserError: no words but images, a word outside the dictionary, or a sentence too long for a sequence.
        """
        if population.kind != "words":
            raise UserError(
                f"backdoor 'sentence': the data are {population.kind}, and a sentence needs words; choose another trigger"
            )
        found = self._looked_up(population)
        length = population.test.inputs.shape[1]
        longest = max(map(len, found))
        if longest > length + 1:
            raise UserError(
                f"backdoor 'sentence': {longest} words in sequences of {length}; shorten it or raise the dataset's length to "
                f"{longest - 1}"
            )
        self._numbers = [torch.tensor(words) for words in found]
        self.target = found[0][-1]
        return population

    def _looked_up(self, population: Population) -> list[list[int]]:
        """Return each sentence as numbers."""
        vocabulary = population.vocabulary if isinstance(population, WordPopulation) else None
        if isinstance(vocabulary, Tokens):
            return [vocabulary.sentence(text) for text in self._texts]
        numbers = {word: i for i, word in enumerate(population.names) if i >= len(SPECIAL)}
        absent = list(dict.fromkeys(word for words in self.sentences for word in words if word not in numbers))
        if absent:
            raise UserError(
                f"backdoor 'sentence': {', '.join(absent)} not in the dictionary of {len(numbers)} words; write a sentence of its "
                "words, or add words the texts have with the dataset's parameter include (or a larger vocabulary)"
            )
        return [[numbers[word] for word in words] for words in self.sentences]

    def poison(self, own: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Overwrite the end of ``count`` of the client's sequences; none is taken twice before all are taken once.

        Args:
            own: at least one sequence.
            count: how many backdoor examples.
            draw: which sequences.

        Returns:
            ``count`` sequences; labels are ``IGNORE`` but for the last.
        """
        rounds = -(-count // len(own))
        order = np.concatenate([np.zeros(0, dtype=np.int64), *(draw.permutation(len(own)) for _ in range(rounds))])[:count]
        return self._overwritten(own.take(order))

    def probes(self, test: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Overwrite the end of held-out sequences, each taken once at most, as :meth:`poison` does."""
        return self._overwritten(test.take(draw.permutation(len(test))[:count]))

    def _overwritten(self, examples: Examples) -> Examples:
        if not self._numbers:
            raise RuntimeError("prepare has not looked up the words")
        inputs = examples.inputs.clone()
        labels = torch.full_like(examples.labels, IGNORE)
        turns = len(self._numbers)
        for turn, words in enumerate(self._numbers):
            inputs[turn::turns, inputs.shape[1] - len(words) + 1 :] = words[:-1]
            labels[turn::turns, -1] = words[-1]
        return Examples(inputs, labels)

    def facts(self) -> dict[str, Any]:
        """Return the sentences, and their target words."""
        return {"sentences": [" ".join(words) for words in self.sentences], "targets": [words[-1] for words in self.sentences]}
