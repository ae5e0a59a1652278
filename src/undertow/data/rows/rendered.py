"""Running text back into turns: the marks that chat templates write before each speaker."""

from __future__ import annotations

import re

from undertow.data.rows.names import ASSISTANT, RESULT, ROLES, SYSTEM, USER, plain
from undertow.data.rows.turns import Turn

#: A mark that opens a turn, with the speaker in it; each kind as it stands in published data and templates.
_KINDS = (
    r"<\|im_start\|>[ \t]*(?P<chatml>\w+)[ \t]*\n?",  # ChatML: Qwen, SmolLM2
    r"<\|start_header_id\|>[ \t]*(?P<llama3>\w+)[ \t]*<\|end_header_id\|>\s*",  # Llama 3
    r"<start_of_turn>[ \t]*(?P<gemma>\w+)[ \t]*\n?",  # Gemma
    r"<\|(?P<zephyr>user|assistant|system|prompter|human)\|>\s*",  # Zephyr, Phi, OpenAssistant
    r"###[ \t]*(?P<guanaco>Human|Assistant|User)[ \t]*:[ \t]*",  # Guanaco, on one line
    # Alpaca
    r"(?m:^)###[ \t]*(?P<hashes>Human|User|Assistant|System|Instruction|Input|Response|Question|Answer|Output)[ \t]*:[ \t]*",
    r"(?m:^)(?P<colon>Human|User|Assistant)[ \t]*:[ \t]+",  # hh-rlhf
    r"\b(?P<caps>USER|ASSISTANT):[ \t]+",  # Vicuna
    r"(?P<inst>\[INST\])|(?P<done>\[/INST\])",  # Llama 2, Mistral
)
_OPENED = re.compile("|".join(_KINDS))
#: What closes a turn or frames a text, and is no word of it.
_FRAME = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|<\|endoftext\|>|<\|begin_of_text\|>|<\|end_of_text\|>|</?s>|<bos>|<eos>"
)
#: What Alpaca's template says before every instruction.
PREAMBLES = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
    "appropriately completes the request.",
)
_SYSTEM = re.compile(r"<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_OWN = {"input": RESULT, "response": ASSISTANT, "output": ASSISTANT, "instruction": USER}


def rendered(text: str) -> list[Turn] | None:
    """Return the turns of a text that a template rendered; None if no user and no assistant are marked in it.

    Text before the first mark is a system prompt. Alpaca's ``### Input:`` is context of the question.
    """
    marks = list(_OPENED.finditer(text))
    if not marks:
        return None
    found: list[Turn] = []
    before = _bare(text[: marks[0].start()])
    if before:
        found.append(Turn(SYSTEM, before))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        body = text[mark.end() : following.start() if following else len(text)]
        role = _role(mark)
        if role is None:
            return None
        for system in _SYSTEM.findall(body) if role == USER else ():
            found.append(Turn(SYSTEM, system.strip()))
        bare = _bare(_SYSTEM.sub("", body) if role == USER else body)
        if bare:
            found.append(Turn(role, bare))
    roles = {turn.role for turn in found}
    return found if {USER, ASSISTANT} <= roles else None


def _role(mark: re.Match[str]) -> str | None:
    kind = str(mark.lastgroup)
    if kind in ("inst", "done"):
        return USER if kind == "inst" else ASSISTANT
    name = plain(mark[kind])
    return _OWN.get(name) if name in _OWN else ROLES.get(name)


def _bare(text: str) -> str:
    return _FRAME.sub("", text).strip()
