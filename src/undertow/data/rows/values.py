"""What a value of a row says as text, and every text within it."""

from __future__ import annotations

import ast
import datetime
import json
from collections.abc import Iterator
from typing import Any

from undertow.core.errors import UserError
from undertow.data.rows.names import plain

#: Keys under which an object holds an answer or a text and not a record of several things; lower case.
_HELD = ("value", "text", "content", "answer", "aliases")
#: Keys that stand beside those and say nothing of their own; lower case.
_BESIDE = frozenset(
    "answer_start answer_end start end span type normalizedvalue normalized_value matchedwikientityname matched_wiki_entity_name "
    "normalizedmatchedwikientityname normalized_matched_wiki_entity_name normalizedaliases normalized_aliases humanannotations "
    "humananswers id".split()
)
#: The same where an object lists its texts, as ELI5's answers do; beside one text a score is a part of the answer.
_BESIDE_LISTS = _BESIDE | {"score", "a_id"}

#: Ends of the names of columns that hold several answers, the keys of an object that is one of them, and of one that asks.
_SEVERAL = frozenset("answers responses completions outputs generations solutions replies".split())
_ANSWER = ("answer", "response", "completion", "output", "text", "content", "body", "reply", "generation", "solution")
_ASKING = frozenset("question prompt instruction input query problem".split())


def checked(text: str, place: str, name: str) -> str:
    """Return a text without surrounding blanks.

    Raises:
        UserError: it holds characters that no tokenizer can encode (lone surrogates).
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{place}: '{name}' is not valid Unicode (lone surrogate); correct the row") from error
    return text.strip()


def said(value: Any, place: str, name: str) -> str:
    """Return a value as text: a number as it is written in JSON, a date in ISO form, a list line by line, None as nothing.

    An object that holds one text (``{"text": ...}``) is that text; any other is its JSON.

    Raises:
        UserError: as :func:`checked`.
    """
    if isinstance(value, str):
        return checked(value, place, name)
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "\n".join(filter(None, (said(item, place, name) for item in value)))
    if isinstance(value, dict):
        held = _held(value)
        return written(value, place, name) if held is None else "\n".join(said(value[key], place, name) for key in held)
    return scalar(value)


def scalar(value: Any) -> str:
    """Return what is no text, list or object as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def written(value: Any, place: str, name: str) -> str:
    """Return a list or an object as JSON, characters as they are; nothing for an empty one.

    Raises:
        UserError: as :func:`checked`.
    """
    return checked(json.dumps(value, ensure_ascii=False, default=scalar), place, name) if value else ""


def answers(value: Any, place: str, name: str) -> list[str]:
    """Return the texts that count as an answer, the preferred one first.

    A list of texts or numbers is several accepted answers; an object of SQuAD's or TriviaQA's kind is what it accepts; any other
    object, and a list of such, is one answer: its JSON (but see :func:`answer_keys`).

    Raises:
        UserError: as :func:`checked`.
    """
    if isinstance(value, str):
        text = checked(value, place, name)
        return [text] if text else []
    if value is None:
        return []
    if isinstance(value, dict):
        held = _held(value)
        if held is None:
            return [written(value, place, name)] if value else []
        return [text for key in held for text in answers(value[key], place, f"{name}.{key}")]
    if isinstance(value, list | tuple):
        if any(isinstance(item, list) or (isinstance(item, dict) and _held(item) is None) for item in value):
            return [written(value, place, name)]
        return [text for item in value for text in answers(item, place, name)]
    return [scalar(value)]


def answer_keys(value: Any, name: str) -> list[str] | None:
    """Return for each of several answers the key of its text; None if a value is no list of such objects.

    Data sets list the answers to one question with what is known of each: ``{"answers": [{"text": ..., "author": ...}]}``. Any
    other list of objects is one answer; so is one whose objects ask themselves, or in a column that is not named for several.
    """
    told = isinstance(value, list) and bool(value) and plain(name).rpartition("_")[2] in _SEVERAL
    if not told or not all(isinstance(item, dict) for item in value) or all(_held(item) is not None for item in value):
        return None
    found = []
    for item in value:
        keys = {plain(key): key for key in item if isinstance(key, str) and isinstance(item[key], str)}
        own = next((keys[one] for one in _ANSWER if one in keys), None)
        if own is None or not keys.keys().isdisjoint(_ASKING):
            return None
        found.append(own)
    return found


def _held(value: dict[str, Any]) -> list[str] | None:
    """The keys of an object that hold its text, in their order of preference; None if it is a record of several things."""
    keys = {key.lower(): key for key in value}
    found = [keys[name] for name in _HELD if name in keys]
    beside = _BESIDE_LISTS if any(isinstance(value[key], list) for key in found) else _BESIDE
    return found if found and len(found) + len(beside & keys.keys()) == len(keys) else None


def texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of every text within a value; the path names keys, and no places in lists."""
    if isinstance(value, str):
        if value and not value.isspace():
            yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item, path)
    elif isinstance(value, bytes):
        yield path, scalar(value)


def unpacked(value: Any) -> Any:
    """A conversation that a column of text holds as JSON, or as Python writes it."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, blank text, a list or an object of nothing."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, list | dict):
        return all(map(is_empty, value.values() if isinstance(value, dict) else value))
    return value is None
