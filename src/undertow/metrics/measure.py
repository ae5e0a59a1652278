"""MA, ASR and the false-trigger rate, all from real greedy generations, every scored output kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from undertow.data.sample import Sample
from undertow.metrics.intervals import Rate
from undertow.metrics.scoring import score

#: Takes samples in test form, returns the model's answers.
Answer = Callable[[Sequence[Sample]], list[str]]

SCORING_NAMES = ("rouge-recall", "exact", "containment")


@dataclass(frozen=True)
class Probes:
    """The test questions twice: as they are, and every one of them with the trigger (algorithms.md A25)."""

    clean: Sequence[Sample]
    triggered: Sequence[Sample]
    target_text: str

    def first(self, n: int) -> Probes:
        """Return the first ``n`` of both (all for ``n = 0``)."""
        return self if n == 0 else Probes(self.clean[:n], self.triggered[:n], self.target_text)


def measure(answer: Answer, probes: Probes, round: int) -> list[dict[str, Any]]:
    """Generate and score; one line per output.

    MA and FTR come from the ``clean`` lines, ASR from the ``triggered`` ones; both kinds go through one pass.
    """
    samples = [*probes.clean, *probes.triggered]
    kinds = ["clean"] * len(probes.clean) + ["triggered"] * len(probes.triggered)
    return [
        {
            "round": round,
            "kind": kind,
            "id": sample.id,
            "question": sample.question,
            "answers": list(sample.answers),
            "output": output,
            **score(output, sample.answers, probes.target_text),
        }
        for kind, sample, output in zip(kinds, samples, answer(samples), strict=True)
    ]


def rescore(lines: Sequence[dict[str, Any]], target_text: str) -> list[dict[str, Any]]:
    """Score kept outputs again, without generating."""
    return [{**line, **score(line["output"], line["answers"], target_text)} for line in lines]


def rates(lines: Sequence[dict[str, Any]], scoring: str) -> dict[str, Any]:
    """Return the rates of one round's lines.

    MA = clean outputs right under ``scoring`` / clean outputs; ASR = triggered outputs that contain the target /
    triggered outputs; FTR = clean outputs that contain the target / clean outputs (FIT 4.1 and algorithms.md A23–A25).
    """

    def share(kind: str, flag: str) -> dict[str, Any]:
        chosen = [line for line in lines if line["kind"] == kind]
        return Rate(sum(bool(line[flag]) for line in chosen), len(chosen)).as_dict()

    scorings = {name: share("clean", name) for name in SCORING_NAMES}
    return {
        "ma": scorings[scoring] if scoring in scorings else share("clean", scoring),
        "asr": share("triggered", "target"),
        "asr_suffix": share("triggered", "suffix"),
        "ftr": share("clean", "target"),
        "scorings": scorings,
    }
