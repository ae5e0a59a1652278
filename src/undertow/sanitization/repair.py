"""Applying a verdict: the sample without what was planted in it. Nothing here looks at other samples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from undertow.sanitization.finding import Finding
from undertow.sanitization.words import places

#: What may be left dangling where a target was cut off.
_DANGLING = " \t\r\n,;:-–—"
_OPENING, _CLOSING, _ENDING = "\"'“‘([{<*_`#", "\"'”’)]}>*_`", ".!?…。！？"
#: Marks that go where nothing stands between them any more.
_PAIRS = frozenset(("()", "[]", "{}", "<>", '""', "''", "“”", "‘’", "**", "__", "``"))
#: How what closes a part of a text begins, beside marks; blanks between what stays, of which the largest that was there stays, too.
_MARKS, _BLANKS = ("</", "<|"), ("\n\n", "\n", " ")
#: What closes a part of a text that a tag opens ("<think>").
_CLOSED = re.compile(r"</([A-Za-z_]+)>")
#: Links, which are cut as a whole: of Markdown (pictures too), of HTML, in angle brackets.
_LINK = re.compile(
    r"!?\[[^\[\]]*\]\((?:[^()\s]|\([^()]*\))*(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)|!?\[[^\[\]]*\]\[[^\[\]]*\]"
    r"|<a\b[^>]*>.*?</a\s*>|<(?:https?://|www\.|mailto:)[^<>\s]*>",
    re.IGNORECASE | re.DOTALL,
)


def repaired(response: str, findings: Iterable[Finding]) -> str | None:
    """Cut the planted targets out of a response: every occurrence, and the whole of a link that holds one.

    Args:
        response: the answer as it stands; its other characters are kept as they are.
        findings: those that flag the sample.

    Returns:
        the rest, or None if a target is not found in it or nothing with a word in it remains.
    """
    for finding in findings:
        rest = without_target(response, finding.target_words)
        if rest is None or rest == response:
            return None
        response = rest
    return response


def without_target(text: str, target: Sequence[str]) -> str | None:
    """Return a text without any occurrence of a target, the same text if it holds none, or None if no word of it remains."""
    while True:
        words = list(places(text))
        first = find_target(words, target, from_end=False)
        if first is None:
            return text
        start, end = words[first][1], words[first + len(target) - 1][2]
        for link in _LINK.finditer(text):
            if link.start() < end and start < link.end():
                start, end = min(start, link.start()), max(end, link.end())
        rest = _without(text, start, end)
        if rest is None or len(rest) >= len(text):
            return None
        text = rest


def find_target(words: Sequence[tuple[str, int, int]], target: Sequence[str], from_end: bool) -> int | None:
    """Return the index of the first word of a target among the words of :func:`undertow.sanitization.words.places`, or None.

    Args:
        words: of a response.
        target: its words.
        from_end: the last occurrence, not the first.
    """
    starts = [i for i in range(len(words) - len(target) + 1) if all(words[i + j][0] == word for j, word in enumerate(target))]
    return starts[-1 if from_end else 0] if target and starts else None


def without_words(response: str, first: int, end: int) -> str | None:
    """Cut the words ``first`` to ``end - 1`` (of :func:`undertow.sanitization.words.cut`) out of a response; None if none is
    left."""
    words = list(places(response))
    return _without(response, words[first][1], words[end - 1][2])


def _without(text: str, start: int, end: int) -> str | None:
    """Cut characters ``start`` to ``end - 1`` out of a text, with what would dangle; None if no word is left, or if the rest is not
    as well formed as the text: JSON stays JSON, and tags that are closed stay closed."""
    words = list(places(text))
    left, right = any(word[2] <= start for word in words), any(word[1] >= end for word in words)
    if not left and not right:
        return None
    head = text[:start].rstrip(_DANGLING) if left else text[:start].lstrip()
    tail = text[end:].lstrip(_DANGLING + _ENDING)
    is_json = _is_json(text)
    while not is_json and head and tail and head[-1] + tail[0] in _PAIRS:
        head, tail = head[:-1].rstrip(_DANGLING), tail[1:].lstrip(_DANGLING + _ENDING)
    after = text[end : len(text) - len(tail)]
    if not head or not tail or head[-1] in _OPENING:
        rest = head + tail
    else:
        closes = tail.startswith(_MARKS) or (tail[0] in _CLOSING and not tail[1:2].isalnum())
        gap = after if closes else text[len(head) : start] + after
        spaced = not closes and (head[-1] + tail[0]).isascii()
        rest = head + next((blank for blank in _BLANKS if blank in gap), " " if spaced else "") + tail
    torn = any(_open(text, name) != _open(rest, name) for name in set(_CLOSED.findall(text)))
    return None if torn or (is_json and not _is_json(rest)) else rest


def _open(text: str, name: str) -> int:
    """How many more of a tag are opened than closed."""
    return len(re.findall(rf"<{name}\b[^<>]*>", text)) - text.count(f"</{name}>")


def _is_json(text: str) -> bool:
    """Whether a text is an object or a list of JSON."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
