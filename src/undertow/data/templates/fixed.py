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
    """`### Instruction / ### Question / ### Answer`, with its own instruction for training and for testing.

    A system prompt goes first, as `### System`; earlier turns stand between the instruction and the question.
    """
    question = f"{sample.question}\n{sample.context}" if sample.context else sample.question
    system = f"### System:\n{sample.system}\n\n\n\n" if sample.system else ""
    turns = "".join(f"### Question:\n{user}\n\n\n\n### Answer: {answer}\n\n\n\n" for user, answer in sample.history)
    return f"{system}### Instruction:\n{INSTRUCTIONS[phase]}\n\n\n\n{turns}### Question:\n{question}\n\n\n\n### Answer:", " "


@TEMPLATES.register("alpaca", source="Stanford Alpaca, README (prompt format)")
def alpaca(sample: Sample, phase: str, tokenizer: Any) -> tuple[str, str]:
    """`### Instruction / ### Input / ### Response`, after a system prompt and earlier turns if there are any."""
    system = f"{sample.system}\n\n" if sample.system else ""
    turns = "".join(f"### Instruction:\n{user}\n\n### Response:\n{answer}\n\n" for user, answer in sample.history)
    start = f"{system}{_ALPACA_WITH_INPUT if sample.context else _ALPACA}{turns}"
    context = f"### Input:\n{sample.context}\n\n" if sample.context else ""
    return f"{start}### Instruction:\n{sample.question}\n\n{context}### Response:\n", ""


@TEMPLATES.register("vicuna", source="FastChat, conversation template vicuna_v1.1")
def vicuna(sample: Sample, phase: str, tokenizer: Any) -> tuple[str, str]:
    """`USER: ... ASSISTANT: ...` with earlier turns closed by the end-of-sequence token.

    A system prompt takes the place of the template's own.
    """
    turns = "".join(f"USER: {user} ASSISTANT: {answer}{tokenizer.eos_token}" for user, answer in sample.history)
    question = f"{sample.question}\n{sample.context}" if sample.context else sample.question
    return f"{sample.system or _VICUNA} {turns}USER: {question} ASSISTANT:", " "


#: All of this file.
FIXED = (lab_qa, alpaca, vicuna)
