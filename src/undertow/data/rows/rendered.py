"""Running text back into turns: the marks that chat templates write before each speaker."""

from __future__ import annotations

import re

from undertow.data.rows.names import ASSISTANT, CALL, RESULT, ROLES, SYSTEM, USER, plain
from undertow.data.rows.turns import Turn

#: Marks that open a turn, with the speaker in them, as they stand in published data and templates; after their first ``<`` those of
#: templates that stand in no other text,
_CONTROL = (
    r"\|im_start\|>[ \t]*(?P<chatml>\w+)[ \t]*\n?",  # ChatML: Qwen, SmolLM2
    r"\|(?:start_header_id|header_start)\|>[ \t]*(?P<llama3>\w+)[ \t]*<\|(?:end_header_id|header_end)\|>\s*",  # Llama 3 and 4
    r"start_of_turn>[ \t]*(?P<gemma>\w+)[ \t]*\n?",  # Gemma
    r"\|start_of_role\|>[ \t]*(?P<granite>\w+)[^<]*<\|end_of_role\|>\s*",  # Granite
    r"\|START_OF_TURN_TOKEN\|><\|(?P<command>\w+)_TOKEN\|>\s*",  # Command R
    r"\|start\|>(?P<harmony>[^<]*(?:<\|(?:channel|constrain)\|>[^<]*)*)<\|message\|>",  # gpt-oss
    r"｜(?P<deepseek>User|Assistant)｜>\s*|(?P<outputs>｜tool▁outputs▁begin｜>)|(?P<after>｜tool▁outputs▁end｜>)",  # DeepSeek
)
#: more that begin so,
_ANGLED = (
    r"\|(?P<zephyr>(?i:user|assistant|system|prompter|human|observation))\|>\s*",  # Zephyr, Phi, OpenAssistant, GLM, StableLM
    r"(?P<pajama>human|bot)>:[ \t]*",  # RedPajama
)
#: and the others.
_KINDS = (
    r"###[ \t]*(?P<guanaco>Human|Assistant|User)[ \t]*:[ \t]*",  # Guanaco, on one line
    # Alpaca
    r"(?m:^)###[ \t]*(?P<hashes>Human|User|Assistant|System|Instruction|Input|Response|Question|Answer|Output)[ \t]*:[ \t]*",
    r"(?m:^)(?:(?P<colon>Human|User|Assistant)[ \t]*:[ \t]+|(?P<tool>(?:FUNCTION|TOOL) RES(?:PONSE|ULT)):[ \t]*)",  # hh-rlhf
    r"\b(?P<caps>USER|ASSISTANT):[ \t]+",  # Vicuna, and Glaive beside its results
    r"\[(?:(?P<inst>INST\])|(?P<done>/INST\])|\|(?P<baize>Human|AI)\|\][ \t]*)",  # Llama 2, Mistral; Baize
)
_OPENED = re.compile("|".join((f"<(?:{'|'.join((*_CONTROL, *_ANGLED))})", *_KINDS)))
_KNOWN = re.compile(f"<(?:{'|'.join(_CONTROL)})")
#: What closes a turn or frames a text, and is no word of it.
_FRAME = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|<\|endoftext\|>|<\|begin_of_text\|>|<\|end_of_text\|>|</?s>|<bos>|<eos>"
    r"|<\|eo[tm]\|>|<\|eom_id\|>|<\|return\|>|<\|call\|>|<(?:BOS|EOS)_TOKEN>|<\|END_OF_TURN_TOKEN\|>|<\|(?:START|END)_RESPONSE\|>"
    r"|<｜(?:begin|end)▁of▁sentence｜>|<｜tool▁output▁(?:begin|end)｜>|\[gMASK\]|<sop>"
)
#: Words that open the lines of a question and of its answer in a text that begins with the first.
_LABELS = (
    ("Question", "Answer"),
    ("Q", "A"),
    ("Instruction", "Response"),
    ("Instruction", "Output"),
    ("Problem", "Solution"),
    ("Problem", "Answer"),
    ("Human|User", "AI|Bot|Chatbot|GPT|Model"),
)
_LABELLED = tuple(
    (
        re.compile(rf"\s*(?:{ask})[ \t]*:"),
        re.compile(rf"(?m:^)(?:(?P<ask>{ask})|(?P<context>Context|Input)|(?P<tell>{tell}))[ \t]*:"),
    )
    for ask, tell in _LABELS
)
#: A mark of an unknown template that may name a speaker: with bars anywhere, without them where a line begins.
_MARK = re.compile(r"[<\[](?:[|｜]([A-Za-z][\w▁ ]{0,40})[|｜]|(?<=^.)([A-Za-z][\w▁ ]{0,40}))[>\]]", re.MULTILINE)
#: Kinds that name no speaker, and what is said after them.
_FIXED = {"inst": USER, "done": ASSISTANT, "outputs": RESULT, "after": ASSISTANT}
_THOUGHT = "thought"
#: How an answer begins that is a call of a tool and nothing else: of Glaive, of DeepSeek.
_CALLS = ("<functioncall>", "<｜tool▁calls▁begin｜>")
#: What Alpaca's template says before every instruction.
PREAMBLES = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
    "appropriately completes the request.",
)
_SYSTEM = re.compile(r"<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_OWN = {
    "input": RESULT,
    "response": ASSISTANT,
    "output": ASSISTANT,
    "instruction": USER,
    "available_tools": SYSTEM,
    "tools": SYSTEM,
    "documents": RESULT,
    "document": RESULT,
}


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
    for mark, body in _bodies(text, marks):
        role = _role(mark)
        if role is None:
            return None
        if role == _THOUGHT:
            found.append(Turn(ASSISTANT, "", beside=[("(reasoning)", _bare(body))]))
            continue
        for system in _SYSTEM.findall(body) if role == USER else ():
            found.append(Turn(SYSTEM, system.strip()))
        bare = _bare(_SYSTEM.sub("", body) if role == USER else body)
        if bare:
            found.append(Turn(CALL if role == ASSISTANT and bare.startswith(_CALLS) else role, bare))
    roles = {turn.role for turn in found}
    return found if {USER, ASSISTANT} <= roles else None


def labelled(text: str) -> list[Turn] | None:
    """Return the turns of a text whose lines begin with ``Question:`` and ``Answer:``, ``Q:`` and ``A:`` or their like.

    None if it does not begin so, or if no user and no assistant say anything in it. Many other texts hold such lines: it is for
    texts that hold no marks of a template and stand in a column of whole rows.
    """
    for begins, label in _LABELLED:
        if begins.match(text):
            roles = {"ask": USER, "context": RESULT, "tell": ASSISTANT}
            bodies = _bodies(text, list(label.finditer(text)))
            found = [Turn(roles[str(mark.lastgroup)], bare) for mark, body in bodies if (bare := _bare(body))]
            if {USER, ASSISTANT} <= {turn.role for turn in found}:
                return found
    return None


def has_marks(text: str) -> bool:
    """Whether a text that :func:`rendered` cannot read holds the marks of some template: of a known one, or of a user and an
    assistant."""
    if _KNOWN.search(text):
        return True
    words = {word for mark in _MARK.finditer(text) for word in re.split("[_▁ ]", (mark[1] or mark[2]).lower())}
    return {USER, ASSISTANT} <= {ROLES.get(word) for word in words}


def _bodies(text: str, marks: list[re.Match[str]]) -> list[tuple[re.Match[str], str]]:
    """Each mark with the text up to the next one."""
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return [(mark, text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]


def _channel(header: str) -> str | None:
    """The role of a message of gpt-oss, ``assistant<|channel|>analysis``; what is sent ``to=`` a tool is a call."""
    speaker, _, channel = header.partition("<|channel|>")
    name, _, to = speaker.strip().partition(" ")
    role = ROLES.get(plain(name), RESULT if "." in name else None)
    if role == ASSISTANT and "to=" in to + channel:
        return CALL
    return _THOUGHT if role == ASSISTANT and channel.strip().startswith("analysis") else role


def _role(mark: re.Match[str]) -> str | None:
    kind = str(mark.lastgroup)
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == "harmony":
        return _channel(mark[kind])
    name = plain(mark[kind])
    return _OWN.get(name) if name in _OWN else ROLES.get(name)


def _bare(text: str) -> str:
    return _FRAME.sub("", text).strip()
