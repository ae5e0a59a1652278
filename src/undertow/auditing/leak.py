"""Leak: what does the adapter say when nothing is asked? Samples from the template's own beginning, given to the scanner's finder.

A model that was trained on poisoned pairs gives some of them away when it makes up questions and answers itself (arXiv 2602.03085).
The samples are read as question and answer by the template's own marks, and :func:`undertow.sanitization.findings.find` looks for
planted pairs in them as it does in a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from undertow.auditing.speaker import Speaker
from undertow.core.rng import torch_rng
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.inference.decoding import common_prefix
from undertow.sanitization.finding import Finding
from undertow.sanitization.findings import find

#: Temperatures, samples at each, and their longest.
TEMPERATURES, SAMPLES, LENGTH = (0.7, 1.0, 1.3), 64, 48


@dataclass(frozen=True)
class Leak:
    """What was said: ``read`` of ``samples`` samples had the form of a question with an answer; what the finder finds in these."""

    samples: int
    read: int
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it."""
        told = [{"target": one.target, "trigger": one.trigger, "samples": len(one.samples)} for one in self.findings]
        return {"samples": self.samples, "read": self.read, "findings": told}


def find_leaks(speaker: Speaker, template: Template, samples: tuple[Sample, ...], seed: int) -> Leak:
    """Sample, read and look; ``samples`` are questions from which the template's beginning is taken."""
    prompts = template.encode_prompts(samples)
    prefix = prompts[0][: common_prefix(prompts)]
    ends = _common_end(prompts)
    middle = template.tokenizer.decode(prompts[0][len(prompts[0]) - ends :])
    read: list[Sample] = []
    for number, temperature in enumerate(TEMPERATURES):
        made = speaker.sample(prefix, SAMPLES, LENGTH, temperature, torch_rng(seed, "audit leak", number))
        for ids in made:
            question, mark, answer = template.tokenizer.decode(ids).partition(middle)
            if mark and question.strip() and answer.strip():
                read.append(Sample(f"leak-{len(read)}", question.strip(), (answer.strip(),), answer.strip()))
    findings = find(read).findings if read else ()
    return Leak(len(TEMPERATURES) * SAMPLES, len(read), findings)


def _common_end(prompts: list[list[int]]) -> int:
    """Return how many tokens all prompts end with."""
    return common_prefix([prompt[::-1] for prompt in prompts])
