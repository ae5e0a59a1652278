"""What a prompt loses when it is too long: earlier turns first, then context, then the middle of the question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from undertow.data.sample import Sample

#: Letters of a question that are kept at the least, half at each end.
LEAST = 64
#: What stands for what was left out of a question.
GAP = " ... "


def shortened(sample: Sample, room: int, length: Callable[[Sample], int]) -> Sample | None:
    """Return a sample as much as fits of whose prompt has at most ``room`` tokens.

    What lies farthest from the answer goes first: the oldest turns, one after another; then the context, from its end; then the
    middle of the question, of which at least :data:`LEAST` letters stay, so that a trigger at its begin or end stays too. The
    system prompt and the answer stay whole. Texts are cut between words where there are blanks.

    Args:
        sample: the question.
        room: tokens, >= 0.
        length: tokens of a sample's prompt.

    Returns:
        The sample itself where it fits, or None where not even that much does.
    """
    if length(sample) <= room:
        return sample
    turns = len(sample.history)
    # the fewest turns to drop: the more are dropped, the shorter the prompt
    low, high = 1, turns
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if length(_without_turns(sample, middle)) <= room else (middle + 1, high)
    sample = _without_turns(sample, low if turns else 0)
    if turns and length(sample) <= room:
        return sample
    if sample.context:
        found = _most(len(sample.context), 0, room, lambda kept: _with_context(sample, kept), length)
        if found is not None:
            return found
        sample = replace(sample, context="")
    least = min(LEAST, len(sample.question))
    return _most(len(sample.question), least, room, lambda kept: _with_question(sample, kept), length)


def _without_turns(sample: Sample, count: int) -> Sample:
    return replace(sample, history=sample.history[count:])


def _with_context(sample: Sample, kept: int) -> Sample:
    return replace(sample, context=head(sample.context, kept))


def _with_question(sample: Sample, kept: int) -> Sample:
    if kept >= len(sample.question):
        return sample
    first = head(sample.question, kept - kept // 2)
    last = head(sample.question[::-1], kept // 2)[::-1]
    return replace(sample, question=f"{first}{GAP}{last}")


def head(text: str, kept: int) -> str:
    """Return the first ``kept`` letters of a text, less a word that would be cut where a blank stands in the last half of them."""
    if kept >= len(text) or kept <= 0:
        return text[: max(kept, 0)].strip()
    start = text[:kept]
    if text[kept].isspace():
        return start.strip()
    blank = max(start.rfind(" "), start.rfind("\n"), start.rfind("\t"))
    return (start[:blank] if blank > kept // 2 else start).strip()


def _most(whole: int, least: int, room: int, make: Callable[[int], Sample], length: Callable[[Sample], int]) -> Sample | None:
    """Return what is made of the most letters, to within a hundredth, that fits; None where ``least`` letters do not."""
    best = make(least)
    have = length(best)
    if have > room:
        return None
    low, high = least, whole
    tall = length(make(whole))
    while high - low > max(4, low // 100):
        # letters and tokens are nearly proportional: a guess by the two ends, kept off them
        guess = low + int((high - low) * (room - have) / max(tall - have, 1))
        guess = min(max(guess, low + (high - low) // 20 + 1), high - (high - low) // 20 - 1)
        one = make(guess)
        tokens = length(one)
        if tokens <= room:
            best, low, have = one, guess, tokens
        else:
            high, tall = guess, tokens
    return best
