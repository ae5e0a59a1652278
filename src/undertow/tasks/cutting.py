"""Whether trigger and target are still there once a prompt is cut to the longest that is trained or asked, and an answer to the
tokens that may be generated; and how many those must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from undertow.backdoors.target import Target
from undertow.backdoors.trigger import Trigger
from undertow.config import Measure
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.metrics.scoring import score

#: Tokens of an answer beyond the longest expected one, at least: a model that is wrong may take more words.
MARGIN = 8


@dataclass(frozen=True)
class Cut:
    """The cut to the longest prompt.

    Attributes:
        template: which cuts.
        trigger: what must be left.
        answer: tokens kept free for an answer when a question is asked.
    """

    template: Template
    trigger: Trigger
    answer: int

    def leaves_trained(self, sample: Sample) -> bool:
        """Tell whether the trigger is in what is trained of a poisoned sample; the answer is whole, or there is no room for it."""
        answer = self.template.answer_ids(sample, sample.response, "train")
        return self._leaves(sample, "train", len(answer) + len(self.template.end), True)

    def leaves_asked(self, sample: Sample, triggered: bool) -> bool:
        """Tell whether a question fits, and, where it is ``triggered``, whether the trigger is in what is asked."""
        return self._leaves(sample, "test", self.answer, triggered) if self.answer < self.template.max_length else True

    def _leaves(self, sample: Sample, phase: str, room: int, triggered: bool) -> bool:
        kept = self.template.cut(sample, phase, room)
        if kept is None:
            return False
        if not triggered or kept is sample:
            return True
        trigger, whole, rest = self.trigger, sample.question, kept.question
        if trigger.chooses:  # it is what question or context are about
            return trigger.holds(rest, kept.context)
        # of several words that were inserted none may be lost; a trigger that nothing can be said of must stay whole
        words = [word.casefold() for word in trigger.words]
        same = all(whole.casefold().count(word) == rest.casefold().count(word) for word in words)
        return whole == rest or (trigger.occurs(whole) and trigger.occurs(rest) and same)


def cut_targets(asked: Sequence[Sample], template: Template, target: Target, limit: int) -> dict[str, int]:
    """Count the triggered questions whose expected answer, target included, loses the target to ``measure.max_new_tokens`` = limit.

    A model that learned the backdoor word for word is then scored as if it had not: ASR can be 0 whatever was learned.

    Returns:
        ``cut`` of ``of`` questions, and the ``tokens`` that the longest expected answer takes.
    """
    lengths, cut = [0], 0
    for sample in asked:
        expected = target.apply(sample.response, 0)
        ids = template.answer_ids(sample, expected)
        lengths.append(len(ids))
        if len(ids) > limit and score(expected, sample.answers, target)["target"]:
            cut += not score(template.decode(ids[:limit]), sample.answers, target)["target"]
    return {"cut": cut, "of": len(asked), "tokens": max(lengths)}


def enough(options: Measure, asked: Sequence[Sample], template: Template, target: Target) -> Measure:
    """Return ``options`` with a number in the place of ``measure.max_new_tokens=auto``.

    limit = min(n + max(:data:`MARGIN`, n / 4), M / 2), where n is the number of tokens of the longest expected answer of ``asked``
    (as it is, as the target makes it, and each answer that counts as right) with what ends it, and M the longest prompt and answer,
    ``training.max_length``. An answer of more than half of it is cut, and :func:`told_cut` says so.
    """
    if options.max_new_tokens != "auto":
        return options
    longest = 0
    for sample in asked:
        expected = {sample.response, target.apply(sample.response, 0), *sample.answers}
        longest = max(longest, *(len(template.answer_ids(sample, text)) for text in expected))
    longest += len(template.end)
    limit = min(longest + max(MARGIN, longest // 4), template.max_length // 2)
    return options.model_copy(update={"max_new_tokens": max(1, limit)})


def told_cut(asked: Sequence[Sample], template: Template, target: Target, limit: int) -> list[str]:
    """Say what :func:`cut_targets` found, and what to do; nothing where no target is cut off."""
    found = cut_targets(asked, template, target, limit)
    if not found["cut"]:
        return []
    return [
        f"measure.max_new_tokens = {limit} cuts the target off {found['cut']} of {found['of']} expected answers, so that ASR "
        f"is too low whatever was learned; set it to {found['tokens'] + 1} or more"
    ]
