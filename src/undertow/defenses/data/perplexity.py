"""Samples that the base finds too improbable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from undertow.data.sample import Sample
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.data.sample_filter import Filter, text_nll
from undertow.defenses.parameters import number, one_of
from undertow.defenses.registry import DEFENSES
from undertow.defenses.trusted import trusted_samples

#: Makes the median absolute deviation of a normal distribution its standard deviation.
_NORMAL = 1.4826


@DEFENSES.register(
    "perplexity",
    source="Jain et al. 2023, Baseline Defenses (arXiv 2309.00614), section 4.1; as a filter of training samples: ours",
)
class Perplexity(Filter):
    """Drop samples whose log-perplexity under the base exceeds a threshold.

    The log-perplexity of n tokens is -(1/n) Σ log p(token i | tokens before it). That of the question is taken of its text
    alone, without its first token; that of the answer after the whole prompt, with the token that ends it.

    The threshold is the largest log-perplexity of trusted samples, as the paper sets it on prompts without an attack, or a lower
    ``quantile`` of them. Without trusted samples (ours) it is median + ``deviations`` · 1.4826 · median absolute deviation of
    the client's own, poison included.

    Readings of ours. The paper looks at what a user asks; here it is what a client trains on. The language model is the
    frozen base.

    Args:
        of: ``question``, ``answer``, or ``both``: either too improbable.
        trusted: an instruction file with samples that hold no poison, in any form that `data.name=instructions` reads.
        quantile: of the trusted samples, 0 < quantile <= 1.
        deviations: above the median, where nothing is trusted, > 0.
    """

    def __init__(self, of: str = "both", trusted: str | None = None, quantile: float = 1.0, deviations: float = 3.0) -> None:
        self.of = one_of("of", of, ("question", "answer", "both"))
        self.trusted = trusted
        self.quantile = number("quantile", quantile, most=1)
        self.deviations = number("deviations", deviations)

    def keeps(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[list[bool], dict[str, Any]]:
        """Drop the improbable samples; the report holds the ``thresholds``, in nats."""
        own = self._scores(samples, context)
        trusted = None if self.trusted is None else self._scores(trusted_samples(self.trusted), context)
        stays = np.ones(len(samples), dtype=bool)
        thresholds = {}
        for part, scores in own.items():
            thresholds[part] = self._own(scores) if trusted is None else float(np.quantile(trusted[part], self.quantile))
            stays &= scores <= thresholds[part]
        return stays.tolist(), {"thresholds": thresholds}

    def _scores(self, samples: Sequence[Sample], context: TrainingContext) -> dict[str, np.ndarray[Any, Any]]:
        """Return the log-perplexity of each part that is looked at, by part."""
        from undertow.training.token_nll import token_nll

        found = {}
        if self.of != "answer":
            found["question"] = np.array(text_nll([sample.question for sample in samples], context))
        if self.of != "question":
            told = token_nll(context.base, [context.template.encode(sample) for sample in samples])
            found["answer"] = np.array([sum(row) / len(row) for row in told])
        return found

    def _own(self, scores: np.ndarray[Any, Any]) -> float:
        middle = float(np.median(scores))
        return middle + self.deviations * _NORMAL * float(np.median(np.abs(scores - middle)))
