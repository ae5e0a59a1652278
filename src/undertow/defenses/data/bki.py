"""Backdoor keyword identification: the word that a model trained on the data reacts to most."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from undertow.data.sample import Sample
from undertow.data.template import Encoded
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.data.sample_filter import Filter, own_model
from undertow.defenses.parameters import whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "bki", source="Chen and Dai 2021, BKI (Neurocomputing 452), arXiv 2007.12070; steps as in the toolkit OpenBackdoor"
)
class Bki(Filter):
    """Train on the data, find the word whose removal moves the model's state most and most often, drop the samples it moves.

    For word w of question x, words being separated by blanks, Δ_w = max_j |h_j(x) - h_j(x without w)|. Of each question the 5 words
    of largest Δ are its keywords. score(w) = log10(number of questions with keyword w, counted as often as it is one) · mean
    of its Δ. Samples with the word of highest score among their keywords are dropped. Something is always dropped, poison or not.

    Readings of ours. h(x) is what the output head reads at the last token of the prompt, where the source has a classifier's
    sentence vector; the template's own words are never removed. The model is the run's initial adapter, trained ``passes`` times
    over the client's own samples by the run's options; the source trains the victim to its end. Where no word is a keyword twice
    nothing is dropped.

    Args:
        passes: over the client's samples, >= 1.
        keywords: of a question, >= 1; 5 in the source.
        words: how many of the highest scores are triggers, >= 1; 1 in the source, which so finds one of several trigger words.
    """

    def __init__(self, passes: int = 10, keywords: int = 5, words: int = 1) -> None:
        self.passes = whole("passes", passes, least=1)
        self.keywords = whole("keywords", keywords, least=1)
        self.words = whole("words", words, least=1)

    def keeps(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[list[bool], dict[str, Any]]:
        """Drop the samples with a trigger among their keywords; the report holds the ``words`` and their scores."""
        found = self._keywords(samples, context)
        moved: dict[str, list[float]] = defaultdict(list)
        for own in found:
            for word, delta in own:
                moved[word].append(delta)
        scores = {word: math.log10(len(deltas)) * sum(deltas) / len(deltas) for word, deltas in moved.items()}
        best = sorted((word for word in scores if scores[word] > 0), key=lambda word: (-scores[word], word))[: self.words]
        stays = [all(word not in best for word, _ in own) for own in found]
        return stays, {"words": {word: scores[word] for word in best}}

    def _keywords(self, samples: Sequence[Sample], context: TrainingContext) -> list[list[tuple[str, float]]]:
        """Return the keywords of each question and their Δ, largest first."""
        from undertow.training.per_sample import states

        template = context.template
        adapter = own_model([template.encode(sample) for sample in samples], context, self.passes)
        split = [sample.question.split() for sample in samples]
        versions = []
        for sample, words in zip(samples, split, strict=True):
            texts = [" ".join(words), *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
            versions += [replace(sample, question=text) for text in texts]
        # The state at the prompt's last token is the one that predicts a first answer token, whichever that is.
        end = (template.tokenizer.eos_token_id,)
        prompts = [Encoded(tuple(ids), end) for ids in template.encode_prompts(versions, "train", room=1)]
        told = iter(states(context.base, prompts, adapter))
        found = []
        for words in split:
            before = next(told)
            moves = [(word, float((next(told) - before).abs().max())) for word in words]
            found.append(sorted(moves, key=lambda item: -item[1])[: self.keywords])
        return found
