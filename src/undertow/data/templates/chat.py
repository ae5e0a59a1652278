"""The tokenizer's own chat template."""

from __future__ import annotations

from typing import Any

from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.data.template import TEMPLATES


@TEMPLATES.register("chat", source="transformers, apply_chat_template")
def chat(sample: Sample, phase: str, tokenizer: Any) -> tuple[str, str]:
    """Whatever chat format the model's tokenizer carries."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("template 'chat': this tokenizer has no chat template; choose data.template lab-qa, alpaca or vicuna")
    turns = [
        {"role": role, "content": text} for user, answer in sample.history for role, text in (("user", user), ("assistant", answer))
    ]
    question = f"{sample.question}\n{sample.context}" if sample.context else sample.question
    turns.append({"role": "user", "content": question})
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)), ""
