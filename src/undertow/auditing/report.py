"""What an audit says: a verdict, what it rests on, and what it cannot see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undertow.auditing.confirm import Confirmation

FOUND, NOTHING, INCONCLUSIVE = "found", "nothing found", "inconclusive"
#: Exit code of ``undertow audit`` for each verdict; 2 is an error.
EXIT = {NOTHING: 0, FOUND: 1, INCONCLUSIVE: 3}

#: Said in every report; docs/audit.md has the figures.
CANNOT_FIND = (
    "a trigger that is a topic, a system prompt or an earlier turn: its target may be found by other words",
    "a target without any text in common: jailbreaks, leanings, answers that are wrong in ever other words",
    "a backdoor that only a long exact trigger fires and whose target the adapter does not go on with by itself",
    "an attacker who trains against this audit",
)


@dataclass(frozen=True)
class AuditReport:
    """The result of :func:`undertow.audit`.

    Attributes:
        adapter, base: what was audited, as given.
        verdict: ``found``, ``nothing found`` or ``inconclusive``.
        reason: why, in one line.
        confirmations: pairs and targets that were put to held-out questions, the confirmed first.
        score: the largest target-first score.
        steps: what each step says: ``target_first``, ``trigger_first``, ``leak``, ``weights``; a step that was not done is missing.
        questions: their source, and how many were used for the search and for the confirmation.
        template: by which questions became prompts.
        seconds: spent on each step.
        seed: of every random draw.
    """

    adapter: str
    base: str
    verdict: str
    reason: str
    confirmations: tuple[Confirmation, ...]
    score: float | None
    steps: dict[str, Any]
    questions: dict[str, Any]
    template: str
    seconds: dict[str, float]
    seed: int

    @property
    def cannot_find(self) -> tuple[str, ...]:
        """What no audit of this kind can see."""
        return CANNOT_FIND

    @property
    def found(self) -> bool:
        """Whether a backdoor was found."""
        return self.verdict == FOUND

    @property
    def exit_code(self) -> int:
        """Of ``undertow audit``: 0 nothing found, 1 found, 3 inconclusive."""
        return EXIT[self.verdict]

    @property
    def target(self) -> str | None:
        """The text of the first confirmed finding."""
        return self.confirmations[0].target if self.found else None

    @property
    def trigger(self) -> str | None:
        """The recovered trigger in words, None where none was found."""
        edit = self.confirmations[0].edit if self.found else None
        return None if edit is None else edit.text

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "adapter": self.adapter,
            "base": self.base,
            "verdict": self.verdict,
            "reason": self.reason,
            "target": self.target,
            "trigger": self.trigger,
            "score": None if self.score is None else round(self.score, 3),
            "confirmations": [one.to_json() for one in self.confirmations],
            "steps": self.steps,
            "questions": self.questions,
            "template": self.template,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "seed": self.seed,
            "cannot_find": list(CANNOT_FIND),
        }

    def write_page(self, path: str | Path) -> None:
        """Write the report as one HTML page that needs nothing but itself.

        Raises:
            UserError: the path cannot be written.
        """
        from undertow.auditing.page import write_page

        write_page(self, Path(path))
