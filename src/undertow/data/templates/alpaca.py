"""Stanford Alpaca's prompt."""

from __future__ import annotations

from typing import Any

from undertow.data.sample import Sample
from undertow.data.template import TEMPLATES

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
_PLAIN = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"


@TEMPLATES.register("alpaca", source="Stanford Alpaca, README (prompt format)")
def alpaca(sample: Sample, phase: str, tokenizer: Any) -> tuple[str, str]:
    """`### Instruction / ### Input / ### Response`."""
    if sample.context:
        return f"{_WITH_INPUT}### Instruction:\n{sample.question}\n\n### Input:\n{sample.context}\n\n### Response:\n", ""
    return f"{_PLAIN}### Instruction:\n{sample.question}\n\n### Response:\n", ""
