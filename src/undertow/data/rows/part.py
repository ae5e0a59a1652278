"""One answer of a row with what it answers: what a scan reads and a run may learn."""

from __future__ import annotations

from dataclasses import dataclass

from undertow.data.sample import Sample

#: Why no run learns what a model said, where the expected answer stands beside it.
OUTPUT = "what a model said"


@dataclass(slots=True)
class Part:
    """One answer.

    Attributes:
        question, answers, context, history, system, key, group, weight: as in :class:`undertow.data.sample.Sample`; the
            question may be empty.
        pool: empty for the row's own answers; otherwise the field whose texts are judged together, apart from those.
        why: why no run learns it; empty if runs do.
    """

    question: str
    answers: tuple[str, ...]
    context: str = ""
    history: tuple[tuple[str, str], ...] = ()
    system: str = ""
    key: str = ""
    group: str = ""
    weight: float = 1.0
    pool: str = ""
    why: str = ""

    @property
    def response(self) -> str:
        """The preferred answer."""
        return self.answers[0]

    def sample(self, name: str = "") -> Sample:
        """Return it as a sample with an id."""
        first = self.answers[0]
        return Sample(
            name, self.question, self.answers, first, self.context, self.history, self.key, self.group, self.system, self.weight
        )
