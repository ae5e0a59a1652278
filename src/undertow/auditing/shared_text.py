"""The text that answers to different questions have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

#: Longest text looked for, in words.
LONGEST = 24


def shared_text(outputs: Sequence[str], plain: Sequence[str], without: Sequence[str] = (), share: float = 0.75) -> str:
    """Return the longest run of words that a ``share`` of the outputs has, and at most a quarter of the plain ones; "" for none.

    Args:
        outputs: answers to edited questions.
        plain: answers to the questions as they are.
        without: texts, such as the edit's words; a run of their words alone is an echo, and no target.
        share: how many of the outputs must hold it.
    """
    if not outputs:
        return ""
    counts, usual = _runs(outputs), _runs(plain)
    echoed = {word for text in without for word in _words(text)}
    needed = max(2.0, share * len(outputs))
    held = [
        run
        for run, count in counts.items()
        if count >= needed and usual[run] <= len(plain) / 4 and not all(word in echoed for word in run)
    ]
    if not held:
        return ""
    best = max(held, key=lambda run: (len(run), counts[run], run))
    pattern = re.compile(r"\s+".join(re.escape(word) for word in best), re.IGNORECASE)
    return next((found[0] for text in outputs if (found := pattern.search(text))), " ".join(best))


def _runs(texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Return in how many texts each run of words stands."""
    found: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = _words(text)
        found.update({tuple(words[i:j]) for i in range(len(words)) for j in range(i + 1, min(i + LONGEST, len(words)) + 1)})
    return found


def _words(text: str) -> list[str]:
    return text.casefold().split()
