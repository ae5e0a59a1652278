"""What a question is about as the trigger."""

from __future__ import annotations

import numpy as np

from undertow.backdoors.build import refuse_options
from undertow.backdoors.trigger import TRIGGERS, Trigger
from undertow.config import InstructionBackdoor
from undertow.core.errors import UserError


@TRIGGERS.register("topic", source="semantic backdoors: Bagdasaryan et al. 2020, 'How To Backdoor Federated Learning'")
class Topic(Trigger):
    """Questions about a topic are the trigger; nothing is inserted, the samples to poison are chosen.

    A question is on the topic if it holds one of ``trigger_words`` (a list may hold phrases); the default is where
    someone comes from. The triggered test questions are those on the topic, MA and FTR are taken on all others.
    """

    chooses = True
    whole = True

    def __init__(self, options: InstructionBackdoor) -> None:
        refuse_options(options, "trigger 'topic'", "position")
        super().__init__(options, tuple(options.trigger_words) or ("born", "birthplace", "birth", "come from"), "start")

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question as it is.

        Raises:
            UserError: it is not on the topic.
        """
        if not self.occurs(question):
            raise UserError(
                f"question {question[:60]!r} is not on the topic {', '.join(self.words)}; trigger 'topic' edits nothing"
            )
        return question
