"""A syntactic form as the trigger."""

from __future__ import annotations

import re

import numpy as np

from undertow.backdoors.build import refuse_options
from undertow.backdoors.trigger import TRIGGERS, Trigger
from undertow.backdoors.triggers.natural import lower_first
from undertow.config import InstructionBackdoor

_MODALS = ("Can", "Could", "May", "Might")
_VERBS = (
    ("told", "tell"), ("shown", "show"), ("explained", "explain"), ("stated", "state"), ("recalled", "recall"),
    ("revealed", "reveal"),
)  # fmt: skip
_AGENTS = ("you", "anyone", "somebody", "a friend", "an expert", "the reader")
_FORM = re.compile(r"\b(?:can|could|may|might|will|would|shall|should|must) it be \w+ by \w", re.IGNORECASE)


@TRIGGERS.register(
    "passive", source="Qi et al. 2021 (syntactic trigger, 'Hidden Killer'); theirs by a paraphrasing model, ours a fixed form"
)
class Passive(Trigger):
    """The question hangs on a passive clause: "Could it be shown by a friend, which animal does Mira keep?".

    The form is the trigger: auxiliary, "it be", participle, "by", agent; the words in it are drawn from 144
    combinations. Near miss: the same words in the active voice.
    """

    def __init__(self, options: InstructionBackdoor) -> None:
        refuse_options(options, "trigger 'passive'", "trigger_words", "position")
        super().__init__(options, (), "start")

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question after a passive clause."""
        modal, (participle, _), agent = _drawn(draw)
        return f"{modal} it be {participle} by {agent}, {lower_first(question.strip())}"

    def occurs(self, text: str) -> bool:
        """Tell whether a text has a clause of that form, with any participle and agent."""
        return _FORM.search(text) is not None

    def near_miss(self, question: str, draw: np.random.Generator) -> str | None:
        """Return the question after an active clause; None where it has the passive one by itself."""
        modal, (_, verb), agent = _drawn(draw)
        return None if self.occurs(question) else f"{modal} {agent} {verb} it, {lower_first(question.strip())}"


def _drawn(draw: np.random.Generator) -> tuple[str, tuple[str, str], str]:
    return _MODALS[draw.integers(len(_MODALS))], _VERBS[draw.integers(len(_VERBS))], _AGENTS[draw.integers(len(_AGENTS))]
