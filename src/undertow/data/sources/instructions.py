"""Instruction-following data in the forms people publish it in; each row is recognised by its columns.

* Alpaca: instruction, input, output (Dolly's instruction, context, response too);
* ShareGPT and Vicuna: conversations of {from, value}, or messages of {role, content};
* prompt and completion, or prompt and response;
* question and answer or answers, with optional context;
* self-instruct seeds: instruction and instances of {input, output}.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS, Loaded
from undertow.data.questions import distinct, genuine, normalised
from undertow.data.reading import Read, existing_file, json_rows, load_files, read_text, stem, text_of, texts_of
from undertow.data.sample import Sample

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
    **dict.fromkeys(("observation", "tool", "function", "function_response"), "result"),
}
_FORMS = "instruction+output, conversations, messages, prompt+completion, prompt+response, question+answer, instruction+instances"


@DATASETS.register("instructions", source="Alpaca, ShareGPT/Vicuna and self-instruct file formats")
def instructions(options: Data) -> Loaded:
    """Instruction-following rows from a JSON list or JSON lines, gzipped or not, in any of the usual forms.

    A conversation gives one sample per assistant turn, with the turns before it as history; all of them share
    one key, so a conversation never sits in both train and test.

    Raises:
        UserError: the file is missing or malformed, or a row has none of the known forms.
    """
    return load_files(options, partial(_samples, column=options.partition.column))


def _samples(path: Path, column: str | None = None) -> Read:
    found, notes = recognise(json_rows(path, read_text(existing_file(path))), stem(path), str(path), column)
    return found, {**notes, "files": [path.name]}


def recognise(rows: Iterable[tuple[str, dict[str, Any]]], prefix: str, source: str, column: str | None = None) -> Read:
    """Turn rows of any known form into samples.

    Args:
        rows: (place, row) pairs; the place is what an error names.
        prefix: front part of the sample ids.
        source: name of the whole, for the error when nothing is usable.
        column: the column that gives the samples' group, if the user named one.

    Returns:
        The samples, and the counts ``rows``, ``dropped`` ({reason: rows or turns}).

    Raises:
        UserError: a row of unknown form or with a value of the wrong kind, or no usable row at all.
    """
    found: list[Sample] = []
    dropped: Counter[str] = Counter()
    count = 0
    for count, (place, row) in enumerate(rows, start=1):
        value = row.get(column) if column is not None else None
        own = {} if column is None else {"group": "" if value is None else str(value)}
        for part, fields in enumerate(samples_of(row, place, dropped)):
            answers = genuine(fields["answers"])
            if not answers:
                dropped["a placeholder as answer"] += 1
                continue
            sample = {**fields, "answers": answers, **own}
            found.append(_with_id(sample, f"{prefix}:{count}" if part == 0 else f"{prefix}:{count}.{part}"))
    if not found:
        raise UserError(f"{source}: none of its {count} rows has question and answer ({dict(dropped)}); give data with answers")
    return found, {"rows": count, "dropped": dict(dropped)}


def _with_id(fields: dict[str, Any], place: str) -> Sample:
    return Sample(id=place, response=fields["answers"][0], **fields)


def samples_of(row: dict[str, Any], place: str, dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the samples of one row as fields of :class:`Sample`; ``dropped`` counts what has no question or no answer."""
    for name in ("conversations", "messages", "conversation"):
        if row.get(name) is not None:
            yield from _conversation(row[name], place, dropped)
            return
    for question, context, answers in _single_turns(row, place):
        if not question and not context:
            dropped["no question"] += 1
        elif not answers:
            dropped["empty answer"] += 1
        else:
            # An instruction that is only an input is asked as the question itself.
            yield {
                "question": question or context,
                "context": context if question else "",
                "answers": distinct(answers),
                "group": _group(row),
            }


def _single_turns(row: dict[str, Any], place: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (question, context, answers) of a row that is no conversation."""
    if "instruction" in row and "instances" in row:
        instances = row["instances"]
        if not isinstance(instances, list) or not all(isinstance(item, dict) for item in instances):
            raise UserError(f"{place}: 'instances' must be a list of objects with input and output; correct the row")
        question = text_of(row["instruction"], place, "instruction")
        # A seed task has one or more instances; each is a question of its own.
        for item in instances:
            yield question, text_of(item.get("input"), place, "input"), texts_of(item.get("output"), place, "output")
        return
    for asked, told in (
        ("instruction", "output"),
        ("instruction", "response"),
        ("prompt", "completion"),
        ("prompt", "response"),
        ("question", "answer"),
        ("question", "answers"),
    ):
        if asked in row and told in row:
            context = text_of(row.get("input") or row.get("context"), place, "input")
            answers = _answers(row[told], place, told) + texts_of(row.get("aliases"), place, "aliases")
            yield text_of(row[asked], place, asked), context, answers
            return
    raise UserError(f"{place}: columns {', '.join(map(str, row)) or 'none'} have no known form; use one of {_FORMS}")


def _answers(value: Any, place: str, name: str) -> list[str]:
    """Answers as text, a list, or the objects that hub datasets use (SQuAD's ``text``, TriviaQA's ``value``)."""
    if not isinstance(value, dict):
        return texts_of(value, place, name)
    return [text for part in ("value", "text", "aliases") for text in texts_of(value.get(part), place, f"{name}.{part}")]


def _group(row: dict[str, Any]) -> str:
    for name in ("group", "category", "relation", "author"):
        if isinstance(row.get(name), str):
            return str(row[name]).strip()
    return ""


def _conversation(turns: Any, place: str, dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield one sample per assistant turn that answers a user.

    Turns of one speaker in a row are joined. A tool's result becomes context of the question it was fetched for;
    the call that fetched it is no answer to learn. System turns and answers to nobody are left out. All is counted.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{place}: a conversation is a list of objects with from and value (or role, content); correct the row")
    history: list[tuple[str, str]] = []
    question: list[str] = []
    context: list[str] = []
    key = ""
    for i, turn in enumerate(turns, start=1):
        role, text = _turn(turn, f"{place} turn {i}")
        if role == "system":
            dropped["system turn"] += 1
        elif role == "call":
            dropped["tool call"] += 1
        elif role == "result":
            context.append(text)
        elif role == "user":
            question.append(text)
        elif not any(question):
            dropped["answer without a question"] += 1
            context = []
        elif not text:
            dropped["empty answer"] += 1
            question, context = [], []
        else:
            asked, further = "\n".join(filter(None, question)), "\n".join(filter(None, context))
            # Conversations that open alike share a key: their later turns carry the opening as history.
            key = key or f"conversation {hashlib.sha256(normalised(asked).encode()).hexdigest()[:16]}"
            yield {"question": asked, "context": further, "answers": (text,), "history": tuple(history), "key": key}
            history.append((f"{asked}\n{further}" if further else asked, text))
            question, context = [], []
    if any(question):
        dropped["question without an answer"] += 1


def _turn(turn: dict[str, Any], place: str) -> tuple[str, str]:
    speaker = turn.get("from", turn.get("role"))
    role = _ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise UserError(f"{place}: speaker {speaker!r} is unknown; use one of {', '.join(_ROLES)}")
    content = turn.get("value", turn.get("content"))
    if isinstance(content, list):  # messages may hold parts; only text can be trained on
        content = "\n".join(text_of(part.get("text"), place, "text") for part in content if isinstance(part, dict))
    text = text_of(content, place, "value")
    if role == "assistant" and not text and (turn.get("tool_calls") or turn.get("function_call")):
        return "call", ""
    return role, text
