"""Whether a trigger and a target are still there once a prompt is cut to the longest that is trained or asked."""

from __future__ import annotations

from dataclasses import dataclass

from undertow.backdoors.trigger import Trigger
from undertow.data.sample import Sample
from undertow.data.template import Template


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
