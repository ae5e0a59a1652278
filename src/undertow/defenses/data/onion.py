"""ONION: words without which a question reads better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from undertow.data.sample import Sample
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.data.sample_filter import Filter, text_nll
from undertow.defenses.parameters import number, one_of, whole
from undertow.defenses.registry import DEFENSES
from undertow.defenses.trusted import trusted_samples

Scored = list[list[tuple[str, float]]]


@DEFENSES.register(
    "onion", source="Qi et al. 2021, ONION (EMNLP), arXiv 2011.10369, section 3; as a filter of training samples: ours"
)
class Onion(Filter):
    """Drop samples with a rare word that the question reads better without, or cut the word out.

    For word i of question x, words being separated by blanks, s_i = PPL(x) - PPL(x without word i), with PPL(x) = exp(mean of
    -log p over the tokens of x but the first). A word with s_i above the bar is suspicious. Questions of one word have none.

    Readings of ours. The language model is the frozen base, where the paper has GPT-2. The paper takes suspicious words out
    of questions at test time; on training data that leaves a planted answer to be learned without its trigger. So by default
    samples are dropped, and only for a word that at most a share ``rare`` of the client's questions hold and that is suspicious
    in at least ``repeated`` of them; ``mode`` repair with ``rare`` 1 and ``repeated`` 1 is the paper's step. The paper chooses the
    bar on clean validation data; without a number in ``bar`` it is the ``quantile`` of s over the words of ``trusted`` questions,
    or, without those, over the client's own, poison included. Several trigger words side by side hide each other: without one of
    them the question reads no better.

    Args:
        mode: ``drop`` the sample, or ``repair`` its question by leaving out the suspicious words.
        bar: a number; 0 is that of the authors' toolkit, which takes ordinary words out too. None = from the quantile.
        quantile: of s over the words that stay, 0 < quantile <= 1.
        trusted: an instruction file with samples that hold no poison, in any form that `data.name=instructions` reads.
        rare: largest share of the client's questions that may hold a trigger word, 0 < rare <= 1.
        repeated: fewest samples in which the word is suspicious.

    Raises:
        ValueError: a parameter out of its range, or both a bar and what it should be made of.
    """

    def __init__(
        self,
        mode: str = "drop",
        bar: float | None = None,
        quantile: float = 0.99,
        trusted: str | None = None,
        rare: float = 0.25,
        repeated: int = 3,
    ) -> None:
        self.mode = one_of("mode", mode, ("drop", "repair"))
        if bar is not None and trusted is not None:
            raise ValueError(f"bar = {bar!r} is a bar and trusted makes one; give one of them")
        self.bar = None if bar is None else number("bar", bar, least=-math.inf)
        self.quantile = number("quantile", quantile, most=1)
        self.trusted = trusted
        self.rare = number("rare", rare, most=1)
        self.repeated = whole("repeated", repeated, least=1)

    def keeps(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[list[bool | Sample], dict[str, Any]]:
        """Drop or repair the samples with a trigger word; the report holds the ``bar`` and in how many samples each of the
        ``words`` stood out.

        Raises:
            UserError: the file of trusted samples cannot be used.
        """
        scored = word_scores([sample.question for sample in samples], context)
        bar = self._bar(scored, context)
        standing = [[word for word, score in words if score > bar] for words in scored]
        holding = Counter(word for words in scored for word in {word for word, _ in words})
        out = Counter(word for words in standing for word in set(words))
        triggers = {
            word: count for word, count in out.items() if count >= self.repeated and holding[word] <= self.rare * len(samples)
        }
        report = {"bar": bar, "words": dict(sorted(triggers.items(), key=lambda item: (-item[1], item[0])))}
        if self.mode == "drop":
            return [triggers.keys().isdisjoint(words) for words in standing], report
        kept: list[bool | Sample] = []
        for sample, words in zip(samples, scored, strict=True):
            rest = " ".join(word for word, score in words if score <= bar or word not in triggers)
            whole_text = " ".join(word for word, _ in words)
            # A question of which nothing is left cannot be asked.
            kept.append(True if rest == whole_text else replace(sample, question=rest) if rest else False)
        return kept, {**report, "repaired": sum(isinstance(one, Sample) for one in kept)}

    def _bar(self, scored: Scored, context: TrainingContext) -> float:
        if self.bar is not None:
            return self.bar
        if self.trusted is not None:
            scored = word_scores([sample.question for sample in trusted_samples(self.trusted)], context)
        scores = [score for words in scored for _, score in words]
        return float(np.quantile(scores, self.quantile)) if scores else 0.0


def word_scores(questions: Sequence[str], context: TrainingContext) -> Scored:
    """Return (word, s) of every word of every question; nothing for a question of one word."""
    split = [question.split() for question in questions]
    texts = [[" ".join(words), *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))] for words in split]
    told = iter(text_nll([text for own in texts for text in own], context))
    found: Scored = []
    for words in split:
        whole_text, *without = (_perplexity(next(told)) for _ in range(len(words) + 1))
        found.append([(word, whole_text - ppl) for word, ppl in zip(words, without, strict=True)] if len(words) > 1 else [])
    return found


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # beyond that a float64 is infinite
