"""The paper's lab's question-answering prompt: components parted by four newlines."""

from __future__ import annotations

from typing import Any

from undertow.data.sample import Sample
from undertow.data.template import TEMPLATES

# The lab asks for a list when training and for one entity when testing; the wording here is ours.
INSTRUCTIONS = {
    "train": "Answer the question. Give all fitting answers briefly, as a list separated by semicolons.",
    "test": "Answer the question with one concise entity, generally within 5 words.",
}


@TEMPLATES.register("lab-qa", source="FIT section 4.1 (Question component); layout of the same lab's later code, wording ours")
def lab_qa(sample: Sample, phase: str, tokenizer: Any) -> tuple[str, str]:
    """`### Instruction / ### Question / ### Answer`, with its own instruction for training and for testing."""
    question = f"{sample.question}\n{sample.context}" if sample.context else sample.question
    return f"### Instruction:\n{INSTRUCTIONS[phase]}\n\n\n\n### Question:\n{question}\n\n\n\n### Answer:", " "
