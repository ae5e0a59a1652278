"""From what a language model answers to labelled texts: what cannot be read is counted, never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: What may stand on a line before a JSON object: brackets of a list, a key that holds the list, a bullet or a number.
_BEFORE_OBJECT = re.compile(r"[\s\[\],{}`*•\-\d.)(]*(?:\"\w+\"\s*:\s*\[?\s*)?")

#: Lines that carry nothing: brackets and commas, code fences.
_EMPTY = re.compile(r"[\s\[\]{},]*|`{3,}\s*\w*|(?:[\[{\s]*\"\w+\"\s*:\s*\[\s*)")

_BULLET = re.compile(r"\s*(?:[-*•]|\(?\d{1,6}[.)])\s+")
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»"}


@dataclass(frozen=True)
class Parsed:
    """Samples of one answer.

    Attributes:
        samples: (text, class number), in order; texts are not empty and have single blanks.
        malformed: lines and objects that are no sample.
        unknown: samples with a label that is no class.
        empty: samples without text.
    """

    samples: list[tuple[str, int]] = field(default_factory=list)
    malformed: int = 0
    unknown: int = 0
    empty: int = 0


def parse(answer: str, names: Sequence[str]) -> Parsed:
    """Read the samples of an answer, whichever of the usual forms it has, also mixed and cut off.

    Forms: JSON objects with ``text`` and ``label``, a line or several each, in a list or not, in a code fence or not; lines
    ``label: text`` and ``text<TAB>label``, with a bullet or a number before them or not. A label is the name of a class in any
    case. What a model thinks aloud, up to ``</think>``, is no part of its answer.

    Args:
        answer: what the model wrote.
        names: of the classes, in order.
    """
    found = _Reader(names)
    answer = answer.rpartition("</think>")[2]
    rest = []
    place = 0
    for start, end, value in _objects(answer):
        rest.append(answer[place:start])
        found.object(value)
        place = end
    rest.append(answer[place:])
    for line in "\n".join(rest).split("\n"):
        if not _EMPTY.fullmatch(line):
            found.line(line)
    return Parsed(found.samples, found.malformed, found.unknown, found.empty)


def label_numbers(names: Sequence[str]) -> dict[str, int]:
    """Return the class number of each name as :func:`label_key` writes it."""
    return {label_key(name): number for number, name in enumerate(names)}


def label_key(name: str) -> str:
    """Return a class name without case, quotes and blanks around it, and with single blanks in it."""
    return " ".join(name.strip(" \t\r\n\"'`*_[]<>").split()).casefold()


def clean_text(text: str) -> str | None:
    """Return a text with single blanks; None where it holds what is no Unicode text (half a surrogate pair) or a zero byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return None if "\0" in text else " ".join(text.split())


def _objects(answer: str) -> Iterator[tuple[int, int, Any]]:
    """Yield start, with what leads to it, end and value of each JSON object at the head of a line, of a list or after another."""
    decoder = json.JSONDecoder()
    place = 0
    for brace in re.finditer(r"\{", answer):
        start = brace.start()
        if start < place:
            continue
        line = max(place, answer.rfind("\n", 0, start) + 1)
        if not _BEFORE_OBJECT.fullmatch(answer, line, start):
            continue
        try:
            value, end = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            continue
        yield line, end, value
        place = end


class _Reader:
    def __init__(self, names: Sequence[str]) -> None:
        self.numbers: Mapping[str, int] = label_numbers(names)
        self.samples: list[tuple[str, int]] = []
        self.malformed = self.unknown = self.empty = 0

    def object(self, value: Any) -> None:
        """Take a JSON object: a sample, or a wrapper around a list of them."""
        inner = [entry for entry in value.values() if isinstance(entry, list)] if isinstance(value, dict) else []
        if len(inner) == 1 and "text" not in value:
            for entry in inner[0]:
                self.object(entry)
            return
        text, label = (value.get("text"), value.get("label")) if isinstance(value, dict) else (None, None)
        if isinstance(label, int) and not isinstance(label, bool):
            label = str(label)  # only where a class is called so
        if isinstance(text, str) and isinstance(label, str):
            self._add(text, label)
        else:
            self.malformed += 1

    def line(self, line: str) -> None:
        """Take a line that is no JSON object."""
        bare = _BULLET.sub("", line, count=1).strip()
        text, tab, label = bare.rpartition("\t")
        if tab:
            self._add(_unquoted(text), label)
            return
        label, colon, text = bare.partition(":")
        if colon and label_key(label) in self.numbers:
            self._add(_unquoted(text.lstrip("*_")), label)
        else:
            self.malformed += 1

    def _add(self, text: str, label: str) -> None:
        number, plain = self.numbers.get(label_key(label)), clean_text(text)
        if plain is None:
            self.malformed += 1
        elif number is None:
            self.unknown += 1
        elif not plain:
            self.empty += 1
        else:
            self.samples.append((plain, number))


def _unquoted(text: str) -> str:
    bare = text.strip()
    return bare[1:-1] if len(bare) > 1 and _QUOTES.get(bare[0]) == bare[-1] else bare
