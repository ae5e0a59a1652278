"""Z-defence: words that go with one answer far more often than chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.data.sample_filter import Filter
from undertow.defenses.parameters import number, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "z-defense", source="He et al. 2023, Z-Defence (EMNLP), arXiv 2305.11596, section 4; steps as in the authors' code (unigrams)"
)
class ZDefense(Filter):
    """Drop samples with a word and an answer that occur together too often or too seldom; for data whose answers are few classes.

    For each word w that occurs n_w times, words being separated by blanks, and each answer y that occurs with it,
    z = (p(y|w) - p0) / sqrt(p0 (1 - p0) / n_w), with p0 = 1 / number of classes. Pairs whose z lies more than ``deviations``
    standard deviations of all z from their mean are triggers; samples that hold the word and have the answer are dropped.

    Of M pairs none lies further than sqrt(M - 1) standard deviations from the mean: fewer than 402 pairs never give a trigger at
    20. The answer as it stands, without outer blanks, is the class. With one class nothing is dropped.

    Args:
        deviations: > 0; 20 in the paper.
        classes: largest number of different answers of a client, >= 1; with more the data is refused.
    """

    def __init__(self, deviations: float = 20.0, classes: int = 20) -> None:
        self.deviations = number("deviations", deviations)
        self.classes = whole("classes", classes, least=1)

    def keeps(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[list[bool], dict[str, Any]]:
        """Drop the samples with a trigger; the report holds the ``triggers`` as [word, answer, z].

        Raises:
            UserError: the answers are no classes.
        """
        answers = [sample.response.strip() for sample in samples]
        count = len(set(answers))
        if count > self.classes:
            raise UserError(
                f"z-defense is for classification: client {context.client} has {count} different answers in {len(samples)} "
                f"samples, more than classes = {self.classes}; use coherent-clusters for free answers, or raise classes"
            )
        split = [sample.question.split() for sample in samples]
        found = z_scores(split, answers)
        if not found:
            return [True] * len(samples), {"triggers": []}
        values = np.array(list(found.values()))
        middle, spread = float(values.mean()), float(values.std())
        triggers = {pair: z for pair, z in found.items() if abs(z - middle) > self.deviations * spread}
        stays = [all((word, answer) not in triggers for word in words) for words, answer in zip(split, answers, strict=True)]
        order = sorted(triggers, key=lambda pair: (-abs(triggers[pair]), pair))
        return stays, {"triggers": [[*pair, triggers[pair]] for pair in order]}


def z_scores(questions: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return z of each (word, answer) that occurs; nothing where all answers are one."""
    classes = len(set(answers))
    if classes < 2:
        return {}
    chance = 1 / classes
    words = Counter(word for question in questions for word in question)
    pairs = Counter((word, answer) for question, answer in zip(questions, answers, strict=True) for word in question)
    return {
        (word, answer): (count / words[word] - chance) / math.sqrt(chance * (1 - chance) / words[word])
        for (word, answer), count in pairs.items()
    }
