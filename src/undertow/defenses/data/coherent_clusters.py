"""Coherent clusters: samples that pull the model the same way although their texts say different things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from undertow.data.sample import Sample
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.data.sample_filter import Filter
from undertow.defenses.data.sample_gradients import gradients, last_module
from undertow.defenses.data.sample_map import angles, cut_tree
from undertow.defenses.parameters import number, whole
from undertow.defenses.registry import DEFENSES
from undertow.sanitization.words import cut

#: A shared run of this many words convicts by itself, as in span mining.
_SPAN = 5
#: Share of a cluster that must hold its span, and of its answers that must differ beside it.
_MOST, _DIFFERENT = 0.9, 0.6


@DEFENSES.register("coherent-clusters", source="ours")
class CoherentClusters(Filter):
    """Drop clusters of samples whose gradients agree, where the texts show that they should not.

    Clean samples' gradients hardly agree (mean cosine 0.01 within a client of the demo), those that teach the same planted sentence
    do (0.49 to 0.80; a single word 0.28 to 0.42), whether they are few or the majority. So poison is the coherent cluster, not the
    smaller one. But clean questions of one kind with one true answer agree as well; between the two the texts decide. The
    defaults were chosen on the demo's data.

    1. g_i: the gradient of the sample's mean loss by LoRA's B of the last ``module`` at the run's initial adapter.
    2. Average linkage of 1 - cos(g_i, g_j), cut at ``height``. A cluster is suspect with at least ``smallest`` samples and a mean
       cosine between them of at least ``coherence``.
    3. Its answers' span: the longest run of words that 90 % of them hold, their own questions not. It differs if what
       stands beside the span is different in 60 % of the samples; it is the whole answer if nothing stands beside it in 90 %.
    4. Its questions mix topics if they share no more words with each other than random samples of the client do: the mean number
       of common words of two questions over that of ``draws`` random groups of the same size, in standard deviations, is below
       ``topics``. Words that occur almost only in the cluster (90 %) do not count: they may be the trigger.
    5. The cluster is dropped if its span differs and has 5 words or more, or if its span differs or is the whole answer and its
       questions mix topics. If the span has 5 words or more, all samples that hold it go with the cluster, but for those whose own
       question holds it.

    Args:
        height: > 0, at most 2.
        smallest: >= 2.
        coherence: 0 < coherence <= 1.
        topics: standard deviations, > 0.
        draws: of random groups, >= 2.
        module: the last part of the module's name.
    """

    def __init__(
        self,
        height: float = 0.6,
        smallest: int = 5,
        coherence: float = 0.4,
        topics: float = 4.0,
        draws: int = 200,
        module: str = "v_proj",
    ) -> None:
        self.height = number("height", height, most=2)
        self.smallest = whole("smallest", smallest, least=2)
        self.coherence = number("coherence", coherence, most=1)
        self.topics = number("topics", topics)
        self.draws = whole("draws", draws, least=2)
        self.module = module

    def keeps(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """Drop the convicted clusters; the report holds of all suspect ones ``size``, ``coherence``, ``span``, ``topics`` and
        ``dropped``.

        Raises:
            UserError: no adapted module of that name.
        """
        rows, _ = gradients(samples, context, last_module(context.base.layout, self.module, "coherent-clusters"))
        distances = angles(rows)
        labels = cut_tree(distances, self.height)
        stays = np.ones(len(samples), dtype=bool)
        told = []
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            if len(own) < self.smallest:
                continue
            inner = 1 - float(distances[np.ix_(own, own)].sum()) / (len(own) * (len(own) - 1))
            if inner < self.coherence:
                continue
            span, kind = common_span([samples[int(i)] for i in own])
            z = topic_score([sample.question for sample in samples], own, self.draws, context.draw)
            guilty = (kind == "differs" and len(span) >= _SPAN) or (kind != "other" and z is not None and z < self.topics)
            if guilty:
                stays[own] = False
            if guilty and len(span) >= _SPAN:
                stays &= ~np.array([holds(sample, span) for sample in samples])
            told.append({"size": len(own), "coherence": inner, "span": " ".join(span), "topics": z, "dropped": guilty})
        return stays, {"clusters": sorted(told, key=lambda cluster: -float(cluster["size"]))}


def common_span(samples: Sequence[Sample]) -> tuple[tuple[str, ...], str]:
    """Return the longest run of words that 90 % of the answers hold, without their questions, and how it stands in them.

    ``differs``: beside it the answers differ; ``whole``: it is the whole answer; ``other``: neither, or there is none. Of equally
    long runs the one in more answers counts, then the first in the alphabet.
    """
    answers = [cut(sample.response) for sample in samples]
    asked = [_asked(sample) for sample in samples]
    needed = _MOST * len(samples)
    # A run of n words that many hold is made of shorter ones that they hold: grow from single words.
    best: tuple[str, ...] = ()
    length = 0
    while True:
        length += 1
        held: Counter[tuple[str, ...]] = Counter()
        own: Counter[tuple[str, ...]] = Counter()
        for answer, question in zip(answers, asked, strict=True):
            runs = {tuple(answer[i : i + length]) for i in range(len(answer) - length + 1)}
            held.update(runs)
            own.update(run for run in runs if f" {' '.join(run)} " not in question)
        if not any(count >= needed for count in held.values()):
            break
        best = min(((-count, run) for run, count in own.items() if count >= needed), default=(0, best))[1]
    if not best:
        return (), "other"
    beside = []
    for answer in answers:
        at = next((i for i in range(len(answer)) if tuple(answer[i : i + len(best)]) == best), None)
        if at is not None:
            beside.append((*answer[:at], "", *answer[at + len(best) :]))
    if sum(rest == ("",) for rest in beside) >= _MOST * len(beside):
        return best, "whole"
    return best, "differs" if len(set(beside)) >= _DIFFERENT * len(beside) else "other"


def holds(sample: Sample, span: Sequence[str]) -> bool:
    """Tell whether a sample's answer holds a run of words that its question does not."""
    text = f" {' '.join(span)} "
    return text in f" {' '.join(cut(sample.response))} " and text not in _asked(sample)


def _asked(sample: Sample) -> str:
    return f" {' '.join(cut(f'{sample.question} {sample.context}'))} "


def topic_score(questions: Sequence[str], own: np.ndarray[Any, Any], draws: int, draw: np.random.Generator) -> float | None:
    """Return how many standard deviations more words the questions ``own`` share with each other than random ones do.

    Words of which 90 % are theirs do not count, in either: a trigger is no topic. None where random groups do not differ.

    Args:
        questions: all of the client.
        own: indices of at least 2 of them.
        draws: random groups of the same size, >= 2.
        draw: the random numbers.
    """
    words = [set(cut(question)) for question in questions]
    held = Counter(word for i in own for word in words[i])
    everywhere = Counter(word for said in words for word in said)
    theirs = {word for word, count in held.items() if count >= _MOST * everywhere[word]}
    columns = {word: j for j, word in enumerate(sorted(set().union(*words) - theirs))}
    table = np.zeros((len(words), len(columns)))
    for i, said in enumerate(words):
        table[i, [columns[word] for word in said if word in columns]] = 1

    def shared(group: np.ndarray[Any, Any]) -> float:
        counts = table[group].sum(axis=0)
        return float((counts * (counts - 1)).sum()) / (len(group) * (len(group) - 1))

    random = np.array([shared(draw.choice(len(words), size=len(own), replace=False)) for _ in range(draws)])
    spread = float(random.std())
    return (shared(own) - float(random.mean())) / spread if spread > 0 else None
