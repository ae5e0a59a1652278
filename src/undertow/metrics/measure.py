"""MA, ASR and the false-trigger rate, all from real greedy generations, every scored output kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from undertow.data.sample import Sample
from undertow.metrics.intervals import Rate
from undertow.metrics.scoring import Aim, score

#: Takes samples in test form, returns the model's answers.
Answer = Callable[[Sequence[Sample]], list[str]]

SCORING_NAMES = ("rouge-recall", "exact", "containment")


@dataclass(frozen=True)
class Probes:
    """The test questions as they are, with the trigger (docs/metrics.md, A25), and with a near miss of it where there is one.

    ``cut`` counts the triggered questions that are not among them, since the longest prompt would have cut the trigger off.
    """

    clean: Sequence[Sample]
    triggered: Sequence[Sample]
    target: Aim | str
    near: Sequence[Sample] = ()
    cut: int = 0

    def first(self, n: int) -> Probes:
        """Return the first ``n`` of each kind (all for ``n = 0``)."""
        return self if n == 0 else replace(self, clean=self.clean[:n], triggered=self.triggered[:n], near=self.near[:n])


def measure(answer: Answer, probes: Probes, round: int) -> list[dict[str, Any]]:
    """Generate and score; one line per output.

    MA and FTR come from the ``clean`` lines, ASR from the ``triggered`` ones; all kinds go through one pass.
    """
    asked = {"clean": probes.clean, "triggered": probes.triggered, "near": probes.near}
    samples = [sample for kind in asked.values() for sample in kind]
    kinds = [name for name, kind in asked.items() for _ in kind]
    return [
        {
            "round": round,
            "kind": kind,
            "id": sample.id,
            "question": sample.question,
            "answers": list(sample.answers),
            "output": output,
            **score(output, sample.answers, probes.target),
        }
        for kind, sample, output in zip(kinds, samples, answer(samples), strict=True)
    ]


def rescore(lines: Sequence[dict[str, Any]], target: Aim | str) -> list[dict[str, Any]]:
    """Score kept outputs again, without generating."""
    return [{**line, **score(line["output"], line["answers"], target)} for line in lines]


def headline(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a summary of a row shows: MA, ASR, FTR, and where they were measured ``ftr_near`` and ``held_out_loss``."""
    optional = {name: row[name] for name in ("ftr_near", "held_out_loss") if row.get(name) is not None}
    return {**{name: row[name] for name in ("ma", "asr", "ftr")}, **optional}


def rates(lines: Sequence[dict[str, Any]], scoring: str) -> dict[str, Any]:
    """Return the rates of one round's lines.

    MA = clean outputs right under ``scoring`` / clean outputs; ASR = triggered outputs that contain the target /
    triggered outputs; FTR = clean outputs that contain the target / clean outputs (FIT 4.1 and docs/metrics.md, A23 to A25);
    ``ftr_near`` = the same share of the outputs to near misses of the trigger, None where there are none. What counts
    as the target is the target's to say.
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
        "ftr_near": share("near", "target") if any(line["kind"] == "near" for line in lines) else None,
        "scorings": scorings,
    }
