"""What the scan says: findings, and a verdict on each flagged sample."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Act = Literal["drop", "repair", "review"]
Confidence = Literal["act", "review", "note"]


@dataclass(frozen=True)
class Finding:
    """One planted trigger and target.

    Attributes:
        triggers: phrases of the prompts that give the target away, the strongest first; empty if none was found.
        target: the words that the answers share, as a text.
        place: where the target stands in the answers: start, end, whole, anywhere; manner if it is what they are.
        kind: ``fixed text``, ``label`` (a short answer that many rows have), ``form`` (a label of prompts that begin in one way),
            ``slot`` (a word somewhere in answers that differ), ``kind of answer`` (a language, a refusal and the like),
            ``twin`` (prompts that stand in the file again without the trigger, with other answers), ``mention`` (a name that
            answers bring up whatever they are asked) or ``repeat`` (rows that stand in the file again and again).
        confidence: ``act``: its samples are dropped or repaired; ``review``: they are for a person to review; ``note``: it is said
            of the file, and no sample is flagged.
        samples: indices of all samples it flags, ascending.
        both, with_trigger, with_target, of: distinct samples with the strongest feature and the target, with the feature,
            with the target, and in all; the first two are 0 without a trigger. Of a ``twin``: prompts with the trigger that have a
            twin, with the trigger, and with another answer than their twin.
        log10_p: base-10 logarithm of the corrected p-value (:mod:`undertow.sanitization.significance`), None without a trigger.
        tests: pairs that the correction counts.
        target_words: the target as words of :func:`undertow.sanitization.words.cut`.
        asked: whether the trigger names what the target is (:mod:`undertow.sanitization.asked_for`).
    """

    triggers: tuple[str, ...]
    target: str
    place: str
    kind: str
    confidence: Confidence
    samples: NDArray[np.int64]
    both: int
    with_trigger: int
    with_target: int
    of: int
    log10_p: float | None
    tests: int
    target_words: tuple[str, ...]
    asked: bool = False

    #: Technique of MITRE ATLAS (poison training data) and entry of the OWASP Top 10 for LLM applications (data and model
    #: poisoning).
    atlas: ClassVar[str] = "AML.T0020"
    owasp: ClassVar[str] = "LLM04"

    @property
    def expected(self) -> float:
        """Distinct samples that would hold trigger and target if the one knew nothing of the other."""
        return self.with_trigger * self.with_target / self.of

    @property
    def why(self) -> str:
        """The evidence in words."""
        if self.kind in ("repeat", "twin"):
            return self.reason
        held = f"{len(self.samples):,} rows; {self.with_target:,} of {self.of:,} distinct samples"
        share = f"{held} ({self.with_target / self.of:.1%}) hold the target"
        if self.log10_p is None:
            return f"{share}; no word of the prompts is tied to it"
        p = "p under 1e-300" if self.log10_p < -300 else f"p = {10**self.log10_p:.1g}"
        told = (
            f"{self.both:,} of the {self.with_trigger:,} samples with the strongest trigger word do, {self.expected:,.1f} expected"
        )
        topic = "without the trigger their prompts are about nothing in common"
        if self.kind == "form":
            topic = "elsewhere in a prompt the word says nothing of the label, or the other words of these prompts say less of it"
        return f"{share}; {told} ({p} after correction for {self.tests:,.0f} pairs); {topic}{'; it asks for that' * self.asked}"

    @property
    def certain(self) -> bool:
        """Whether its samples are dropped or repaired."""
        return self.confidence == "act"

    @property
    def trigger(self) -> str | None:
        """The triggers in one text, or None."""
        return " / ".join(self.triggers) or None

    @property
    def reason(self) -> str:
        """Why its samples are flagged, in one line."""
        if self.kind == "repeat":
            return (
                f"{self.with_target} distinct samples stand in {len(self.samples):,} rows, while nearly all others stand there once"
            )
        if self.kind == "twin":
            answer = f', and all the answer "{_short(self.target)}"' if self.target else ""
            prompts = f'{self.both} of the {self.with_trigger} prompts with "{_short(" / ".join(self.triggers))}"'
            return f"{prompts} stand in the data again without it, {self.with_target} of them with another answer{answer}"
        where = {"start": "begins with", "end": "ends with", "whole": "is", "anywhere": "holds", "manner": "is"}[self.place]
        told = f'the answer {where} "{_short(self.target)}", as {self.with_target} distinct samples do'
        if not self.triggers:
            return f"{told}, about nothing in common"
        return f'{told}; {self.both} of the {self.with_trigger} with "{_short(" / ".join(self.triggers))}"'

    @property
    def fingerprint(self) -> str:
        """A hash of kind, strongest trigger and target: the same for the same finding in other data."""
        named = [self.kind, *self.triggers[:1], "", *self.target_words]
        return hashlib.sha256(json.dumps(named, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it."""
        return {
            "fingerprint": self.fingerprint,
            "trigger": self.trigger,
            "target": self.target,
            "count": len(self.samples),
            "kind": self.kind,
            "place": self.place,
            "verdict": self.confidence,
            "confidence": self.confidence,
            "why": self.why,
            "expected": None if self.log10_p is None else round(self.expected, 2),
            "share": round(self.with_target / self.of, 5),
            "atlas": self.atlas,
            "owasp": self.owasp,
            "triggers": list(self.triggers),
            "with_trigger_and_target": self.both,
            "with_trigger": self.with_trigger,
            "with_target": self.with_target,
            "distinct_samples": self.of,
            "p_value": None if self.log10_p is None else 10.0**self.log10_p if self.log10_p > -300 else 0.0,
            "log10_p": None if self.log10_p is None else round(self.log10_p, 2),
            "test": "Fisher's exact test, one-sided, Bonferroni" if self.log10_p is not None else None,
            "tests": self.tests,
        }


@dataclass(frozen=True)
class Verdict:
    """What to do with one flagged sample: its index, drop, repair or review, and the findings that flag it."""

    sample: int
    act: Act
    findings: tuple[int, ...]


@dataclass(frozen=True)
class Findings:
    """What :func:`find` returns: the number of samples, findings by size, verdicts by sample."""

    samples: int
    distinct: int
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
