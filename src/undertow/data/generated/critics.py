"""Invented film critics: short reviews from one small grammar, with a verdict that follows from what they say.

A review has one to three opinions and some neutral remarks. An opinion has a strength; negation turns it around and makes it
mild ("not bad"), and an adverb makes it stronger or weaker. The class is the sign of the sum. One opinion in ten is against the
rest, and mild, so that no single word tells the class.
"""

from __future__ import annotations

from typing import Final

import numpy as np

#: Words by what they say, from -3 to 3.
ADJECTIVES: Final[dict[int, tuple[str, ...]]] = {
    3: ("brilliant", "superb", "unforgettable", "masterful", "dazzling", "magnificent", "flawless", "wonderful"),
    2: ("charming", "moving", "clever", "gripping", "witty", "elegant", "tender", "inventive", "touching", "lively"),
    1: ("decent", "pleasant", "fine", "solid", "likeable", "watchable", "neat", "good"),
    -1: ("slow", "thin", "uneven", "forgettable", "flat", "odd", "overlong", "bad"),
    -2: ("dull", "clumsy", "tedious", "shallow", "predictable", "lifeless", "messy", "bland", "annoying", "hollow"),
    -3: ("dreadful", "terrible", "unbearable", "atrocious", "disastrous", "abysmal", "awful", "horrible"),
}

#: What a part of the film does to the viewer.
EFFECTS: Final[dict[int, tuple[str, ...]]] = {
    3: ("took my breath away", "stayed with me for days", "is reason enough to buy a ticket"),
    2: ("kept me glued to the screen", "made everyone laugh", "won me over", "deserves a prize"),
    1: ("does its job", "holds up well", "has its moments"),
    -1: ("drags a little", "leaves much to be desired", "needed more work"),
    -2: ("put me to sleep", "got on my nerves", "goes nowhere", "falls apart"),
    -3: ("ruined the evening", "is an insult to the audience", "made me want my money back"),
}

ADVERBS: Final[dict[str, float]] = {"very": 1.5, "truly": 1.5, "utterly": 1.5, "rather": 1.0, "quite": 1.0, "slightly": 0.5}
NEGATIONS: Final = ("not", "never", "hardly")

PARTS: Final = tuple(
    "plot script acting ending soundtrack dialogue pacing camera cast humour lighting editing story opening villain romance score "
    "animation finale scenery narration chemistry staging heroine direction".split()
)
GENRES: Final = tuple(
    "film movie comedy thriller drama western musical sequel remake documentary cartoon romance mystery epic".split()
)
PLACES: Final = tuple("paris lisbon chicago tokyo berlin dublin cairo havana oslo venice texas alaska sicily bombay".split())
PEOPLE: Final = tuple("sister brother uncle neighbour colleague cousin teacher friend father mother aunt boss".split())
DAYS: Final = tuple("monday tuesday wednesday thursday friday saturday sunday".split())
TRADES: Final = tuple("baker sailor nurse pianist detective farmer pilot widow lawyer clown soldier painter gardener".split())
LENGTHS: Final = ("ninety minutes", "two hours", "nearly three hours", "an hour and a half")

_AGAINST = 0.1


class Critic:
    """Writes reviews.

    Args:
        draw: source of the random numbers.
    """

    def __init__(self, draw: np.random.Generator) -> None:
        self._draw = draw

    def review(self, verdict: int) -> str:
        """Return a review whose opinions sum to the sign of ``verdict``, 1 or -1."""
        while True:
            text, total = self._attempt(verdict)
            if total * verdict > 0:
                return text

    def _attempt(self, verdict: int) -> tuple[str, float]:
        text, total, before = "", 0.0, 0
        for _ in range(1 + int(self._draw.integers(3))):
            against = self._draw.random() < _AGAINST
            sign = -verdict if against else verdict
            opinion, value = self._opinion(sign, 1 if against else 1 + int(self._draw.integers(3)))
            if not text:
                text = opinion
            elif self._draw.random() < 0.5:
                text += f", {'and' if sign == before else 'but'} {opinion}"
            else:
                text += f". {opinion[0].upper()}{opinion[1:]}"
            total, before = total + value, sign
        text = f"{text[0].upper()}{text[1:]}."
        for _ in range(int(self._draw.integers(3))):
            remark = self._remark() + "."
            text = f"{text} {remark}" if self._draw.random() < 0.5 else f"{remark} {text}"
        return text, total

    def _opinion(self, sign: int, strength: int) -> tuple[str, float]:
        """Return an opinion of that sign and strength, 1 to 3, without its full stop, and what it counts."""
        part, kind = self._one(PARTS), self._draw.random()
        if kind < 0.3:
            return f"the {part} {self._one(EFFECTS[sign * strength])}", sign * strength
        if kind < 0.42:
            return f"the {part} is {self._one(NEGATIONS)} {self._one(ADJECTIVES[-sign * strength])}", sign
        value = sign * strength
        adjective = self._one(ADJECTIVES[value])
        if kind < 0.7:
            adverb = self._one(tuple(ADVERBS))
            return f"the {part} is {adverb} {adjective}", value * ADVERBS[adverb]
        if kind < 0.85:
            return f"this {self._one(GENRES)} is {adjective}", value
        return f"it is a {self._one(GENRES)} with some {adjective} {part}", value

    def _remark(self) -> str:
        """Return a sentence without its full stop that says nothing of the film's worth."""
        return self._one(
            (
                f"I saw it on a {self._one(DAYS)} with my {self._one(PEOPLE)}",
                f"It runs for {self._one(LENGTHS)}",
                f"The {self._one(GENRES)} is set in {self._one(PLACES)}",
                f"It follows a {self._one(TRADES)} from {self._one(PLACES)}",
                f"My {self._one(PEOPLE)} had read the book",
                f"There is a {self._one(TRADES)} in it",
            )
        )

    def _one(self, choices: tuple[str, ...]) -> str:
        return choices[int(self._draw.integers(len(choices)))]


def write(count: int, draw: np.random.Generator, seen: set[str]) -> tuple[list[str], list[int]]:
    """Return ``count`` reviews none of which is in ``seen``, classes 0 (negative) and 1 (positive) in turn; ``seen`` gets them."""
    critic = Critic(draw)
    texts: list[str] = []
    labels: list[int] = []
    while len(texts) < count:
        label = len(texts) % 2
        text = critic.review(2 * label - 1)
        if text not in seen:
            seen.add(text)
            texts.append(text)
            labels.append(label)
    return texts, labels
