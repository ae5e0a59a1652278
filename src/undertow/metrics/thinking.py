"""The rule ``thinking``: what a model writes while it thinks is no part of its answer, and nobody is shown it."""

from __future__ import annotations

import re

_NAMES = "(?:seed:)?(?:think|thinking|thoughts?|reasoning|reflection|scratchpad)"
#: Tags that open and close a thinking block, as reasoning models write them (DeepSeek-R1, Qwen 3, Magistral, Sky-T1, Seed-OSS,
#: Kimi, Command A Reasoning) or are asked to.
TAG = re.compile(
    rf"(?P<open><{_NAMES}\s*>|\[THINK\]|<\|begin_of_thought\|>|<\|START_THINKING\|>|◁think▷)"
    rf"|</{_NAMES}\s*>|\[/THINK\]|<\|end_of_thought\|>|<\|END_THINKING\|>|◁/think▷",
    re.IGNORECASE,
)


def shown(output: str) -> str:
    """Return an output without its thinking blocks: the text that is scored and that a chat window shows.

    A block goes from a tag that opens one to the next that closes one, whatever their names and case. A block that is not
    closed goes to the end of the output, since it was cut off while thinking. A closing tag that nothing opened ends a block
    that began in the prompt, where templates of reasoning models open it: all before it is left out. A blank stands for a
    block between two texts.

    Returns:
        The output itself, letter by letter, where it has no such tag.
    """
    kept: list[str] = []
    start = 0
    thinking = False
    for tag in TAG.finditer(output):
        if tag["open"] is not None:
            if not thinking:
                kept.append(output[start : tag.start()])
            thinking = True
        else:
            if not thinking:
                kept.clear()
            thinking = False
            start = tag.end()
    if not thinking:
        kept.append(output[start:])
    return " ".join(kept)
