"""Applying a verdict: the sample without what was planted in it. Nothing here looks at other samples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from undertow.sanitization.finding import Finding
from undertow.sanitization.words import places

#: What may be left dangling where a target was cut off.
_DANGLING = " \t\r\n,;:-–—"
_OPENING = "\"'“‘([{*_`#"
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
    """Cut characters ``start`` to ``end - 1`` out of a text, with what would dangle; None if no word is left."""
    words = list(places(text))
    left = [word for word in words if word[2] <= start]
    right = [word for word in words if word[1] >= end]
    if not left and not right:
        return None
    before = text[:start].rstrip(_DANGLING) if left else ""
    if not right:
        return before
    # The next word's own opening quote or bracket stays with it.
    gap = text[end : right[0][1]]
    after = gap[len(gap.rstrip(_OPENING)) :] + text[right[0][1] :]
    return f"{before} {after}" if before else after
