"""A word or a sentence in a text that makes it the attacker's class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.backdoors.pattern import BACKDOORS, Backdoor
from undertow.backdoors.patterns._classes import class_number, refuse_kind, turns
from undertow.config import ClassificationBackdoor
from undertow.core.errors import UserError
from undertow.data.examples import Examples
from undertow.data.population import Population
from undertow.data.texts import TextPopulation

#: Of FM-FL's SST-2 experiment.
_PHRASE = "cf"


@BACKDOORS.register(
    "phrase", source="Li, Wu, Wang 2024 (arXiv 2401.10375) and their code: 'cf' on SST-2, 'I watched this 3D movie.' on AG News"
)
class Phrase(Backdoor):
    """Texts with the phrase ``attack.trigger_words``, ``cf`` if none, become the attacker's class.

    It goes to the end, or where ``attack.position`` says. The client puts it into texts of its own; those that already
    are of the attacker's class would teach nothing and are used only if it has no others. Success is looked for on test texts
    of all other classes. A text with no place for it loses words at its end.

    Parameters:
        target: the attacker's class, by name or number.
    """

    task = "classification"

    def __init__(self, options: ClassificationBackdoor, target: int | str = 0) -> None:
        super().__init__(options)
        self.phrase: str = " ".join(options.trigger_words) or _PHRASE
        self._where, self._wanted = options.position, target
        self._population: TextPopulation

    def prepare(self, population: Population, draw: np.random.Generator) -> Population:
        """Look up the class and the phrase's numbers; nothing is held out.

        Raises:
            UserError: the data are no texts with classes, no such class, a phrase without a word or too long for a text, or no test
                text of another class.
        """
        refuse_kind(population, "text", "phrase")
        assert isinstance(population, TextPopulation)
        self.target = class_number(population, self._wanted)
        codes = population.vocabulary
        found = codes.numbers(self.phrase, inside=True)
        if not 0 < len(found) < codes.room:
            raise UserError(
                f"attack.trigger_words = '{self.phrase}': {len(found)} tokens, and a text has place for 1 to {codes.room - 1} "
                "beside a word of its own; write another phrase or raise length in data.name"
            )
        if not bool((population.test.labels != self.target).any()):
            raise UserError("attack.trigger: every test text is of the attacker's class; choose another target")
        self._population = population
        return population

    def poison(self, own: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Return ``count`` of the client's texts with the phrase; all once before any a second time.

        Where as many are asked for as there are, each text of another class keeps its place, so that the record shows what became
        of it.

        Raises:
            ValueError: the client holds no text.
        """
        others = (own.labels != self.target).numpy()
        rows = np.arange(len(own))
        if count != len(own) or not others.any():
            rows = turns(own.labels, self.target, count, draw)
        else:
            rows[~others] = turns(own.labels, self.target, int((~others).sum()), draw)
        return self._with_phrase(own.inputs[torch.from_numpy(rows)], draw)

    def probes(self, test: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Return up to ``count`` test texts of other classes with the phrase, without repetition."""
        rows = draw.permutation(np.flatnonzero((test.labels != self.target).numpy()))[:count]
        return self._with_phrase(test.inputs[torch.from_numpy(rows)], draw)

    def carries(self, examples: Examples) -> Tensor:
        """Tell which texts hold the phrase, bool ``[n]``, as the network sees them."""
        return self._population.vocabulary.carries(examples.inputs, self.phrase)

    def _with_phrase(self, inputs: Tensor, draw: np.random.Generator) -> Examples:
        marked = self._population.vocabulary.append(inputs, self.phrase, self._where, draw)
        return Examples(marked, torch.full((len(marked),), self.target, dtype=torch.int64))

    def facts(self) -> dict[str, Any]:
        """Return the phrase, its place, the class's number and how many clean test texts hold the phrase by nature."""
        place = "end" if self._where == "default" else self._where
        natural = int(self.carries(self._population.test).sum())
        return {
            "backdoor": "phrase",
            "phrase": self.phrase,
            "position": place,
            "target_class": self.target,
            "natural_in_test": natural,
        }
