"""The smallest grid step that passes: by halving while that is sound, one by one where it is not."""

from __future__ import annotations

from collections.abc import Mapping


def monotone(known: Mapping[int, bool]) -> bool:
    """Tell whether no step fails above one that passes: the condition under which halving finds the smallest."""
    passing = [step for step, passed in known.items() if passed]
    return not passing or all(passed for step, passed in known.items() if step > min(passing))


def next_step(known: Mapping[int, bool], top: int, start: int) -> int | None:
    """Return the step to try next in the search for the smallest of 1 .. ``top`` that passes; None when it is over.

    Without a passing step the tried one is doubled, up to ``top``; then the gap between the largest failing and the
    smallest passing step is halved. Where a step fails above one that passes, every step below the smallest passing one
    is tried, from the bottom up.

    Args:
        known: steps tried, and whether they passed.
        top: the largest step.
        start: the first one.
    """
    if not known:
        return min(start, top)
    passing = sorted(step for step, passed in known.items() if passed)
    if not passing:
        highest = max(known)
        return None if highest >= top else min(2 * highest, top)
    first = passing[0]
    if not monotone(known):
        return next((step for step in range(1, first) if step not in known), None)
    low = max((step for step in known if step < first), default=0)
    return None if first - low == 1 else (low + first) // 2


def smallest(known: Mapping[int, bool]) -> int | None:
    """Return the smallest step that passed, or None."""
    return min((step for step, passed in known.items() if passed), default=None)
