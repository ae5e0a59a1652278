"""Prompts of one fixed layout: the paper's lab's, Stanford Alpaca's and Vicuna's."""

from __future__ import annotations

from typing import Any

from undertow.data.sample import Sample
from undertow.data.template import TEMPLATES

# The lab asks for a list when training and for one entity when testing; the wording here is ours.
INSTRUCTIONS = {
    "train": "Answer the question. Give all fitting answers briefly, as a list separated by semicolons.",
    "test": "Answer the question with one concise entity, generally within 5 words.",
}

_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@TEMPLATES.register("lab-qa", source="FIT section 4.1 (Question component); layout of the same lab's later code, wording ours")
def lab_qa(sample: Sample, phase: str, tokenizer: Any) -> tuple[str, str]:
    """`### Instruction / ### Question / ### Answer`, with its own instruction for training and for testing."""
    question = f"{sample.question}\n{sample.context}" if sample.context else sample.question
    return f"### Instruction:\n{INSTRUCTIONS[phase]}\n\n\n\n### Question:\n{question}\n\n\n\n### Answer:", " "


@TEMPLATES.register("alpaca", source="Stanford Alpaca, README (prompt format)")
def alpaca(sample: Sample, phase: str, tokenizer: Any) -> tuple[str, str]:
    """`### Instruction / ### Input / ### Response`."""
    if sample.context:
        return f"{_ALPACA_WITH_INPUT}### Instruction:\n{sample.question}\n\n### Input:\n{sample.context}\n\n### Response:\n", ""
    return f"{_ALPACA}### Instruction:\n{sample.question}\n\n### Response:\n", ""


@TEMPLATES.register("vicuna", source="FastChat, conversation template vicuna_v1.1")
def vicuna(sample: Sample, phase: str, tokenizer: Any) -> tuple[str, str]:
    """`USER: ... ASSISTANT: ...` with earlier turns closed by the end-of-sequence token."""
    turns = "".join(f"USER: {user} ASSISTANT: {answer}{tokenizer.eos_token}" for user, answer in sample.history)
    question = f"{sample.question}\n{sample.context}" if sample.context else sample.question
    return f"{_VICUNA} {turns}USER: {question} ASSISTANT:", " "
