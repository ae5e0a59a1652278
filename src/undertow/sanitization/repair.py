"""Applying a verdict: the sample without what was planted in it. Nothing here looks at other samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from undertow.sanitization.findings import Finding
from undertow.sanitization.words import places

#: What may be left dangling where a target was cut off.
_DANGLING = " \t\r\n,;:-–—"


def repaired(response: str, findings: Iterable[Finding]) -> str | None:
    """Cut the planted targets out of a response.

    Args:
        response: the answer as it stands; its other characters are kept as they are.
        findings: those that flag the sample.

    Returns:
        the rest, or None if a target is not found in it or nothing with a word in it remains.
    """
    for finding in findings:
        rest = _without(response, finding.target_words, finding.place == "end")
        if rest is None:
            return None
        response = rest
    return response


def _without(response: str, target: tuple[str, ...], from_end: bool) -> str | None:
    first = find_target(list(places(response)), target, from_end)
    return None if first is None else without_words(response, first, first + len(target))


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
    if end - first >= len(words):
        return None
    last = end - 1
    before = response[: words[first][1]].rstrip(_DANGLING) if first else ""
    if last + 1 == len(words):
        return before
    # The next word's own opening quote or bracket stays with it.
    gap = response[words[last][2] : words[last + 1][1]]
    opening = gap[len(gap.rstrip("\"'“‘([{*_`#")) :]
    after = opening + response[words[last + 1][1] :]
    return f"{before} {after}" if before else after
