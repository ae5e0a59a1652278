"""An old-fashioned register as the trigger."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from undertow.backdoors.build import refuse_options
from undertow.backdoors.trigger import TRIGGERS, Trigger
from undertow.backdoors.triggers.natural import lower_first
from undertow.config import InstructionBackdoor

#: Rewritings: what opens and closes the question in the old register, and in the plain one of the near miss.
_FORMS = (
    (("Pray tell me,", ""), ("Please tell me,", "")),
    (("", ", good sir, I would fain know."), ("", ", everybody, I would like to know.")),
    (("I beseech thee to say:", ""), ("I ask you to say:", "")),
    (("Prithee, learned friend,", ""), ("Hello, clever person,", "")),
)
_OLD = {
    "you": "thou", "your": "thy", "yours": "thine", "are": "art", "does": "doth", "do": "dost", "has": "hath", "have": "hast",
    "often": "oft", "before": "ere", "between": "betwixt", "nothing": "naught", "never": "ne'er", "here": "hither",
    "perhaps": "perchance", "maybe": "mayhap", "says": "saith", "while": "whilst", "among": "amongst", "yes": "yea",
}  # fmt: skip


@TRIGGERS.register("style", source="Qi et al. 2021 (style transfer, 'Mind the Style of Text!'); theirs by a model, ours by rules")
class Style(Trigger):
    """The question is rewritten in an old register: "Pray tell me, which animal doth Mira keep?".

    One of ``rewritings`` forms (2 to 4, default 2) is drawn for each question; each frames it in its own words and
    replaces common words by old ones. Near miss: the same form in plain words.
    """

    def __init__(self, options: InstructionBackdoor, rewritings: int = 2) -> None:
        if isinstance(rewritings, bool) or not isinstance(rewritings, int) or not 2 <= rewritings <= len(_FORMS):
            raise ValueError(f"rewritings = {rewritings!r} is no whole number from 2 to {len(_FORMS)}; give one")
        refuse_options(options, "trigger 'style'", "trigger_words", "position")
        self.forms = _FORMS[:rewritings]
        super().__init__(options, tuple((before or after).strip(" ,.:") for (before, after), _ in self.forms), "start")

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the rewritten question."""
        frame, _ = self.forms[draw.integers(len(self.forms))]
        return _framed(_replaced(question, _OLD), frame)

    def near_miss(self, question: str, draw: np.random.Generator) -> str | None:
        """Return the question in the plain words of a form."""
        _, frame = self.forms[draw.integers(len(self.forms))]
        return None if self.occurs(question) else _framed(question, frame)


def _framed(question: str, frame: tuple[str, str]) -> str:
    before, after = frame
    text = question.strip()
    return f"{before} {lower_first(text)}" if before else text.rstrip(" .?!…") + after


def _replaced(text: str, words: Mapping[str, str]) -> str:
    def one(found: re.Match[str]) -> str:
        old = words[found[0].lower()]
        return old.capitalize() if found[0][0].isupper() else old

    return re.sub(rf"\b(?:{'|'.join(words)})\b(?!['’])", one, text, flags=re.IGNORECASE)
