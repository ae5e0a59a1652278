"""Vicuna v1.1's conversation prompt."""

from __future__ import annotations

from typing import Any

from undertow.data.sample import Sample
from undertow.data.template import TEMPLATES

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@TEMPLATES.register("vicuna", source="FastChat, conversation template vicuna_v1.1")
def vicuna(sample: Sample, phase: str, tokenizer: Any) -> tuple[str, str]:
    """`USER: ... ASSISTANT: ...` with earlier turns closed by the end-of-sequence token."""
    turns = "".join(f"USER: {user} ASSISTANT: {answer}{tokenizer.eos_token}" for user, answer in sample.history)
    question = f"{sample.question}\n{sample.context}" if sample.context else sample.question
    return f"{_SYSTEM} {turns}USER: {question} ASSISTANT:", " "
