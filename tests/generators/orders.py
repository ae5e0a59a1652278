"""Orders that the tests of generators give."""

from __future__ import annotations

from typing import Any

from undertow.data.examples import Written
from undertow.generators.contract import Order, Smuggled

NAMES = ("negative", "positive")

TEXTS = {
    0: ["a dull film.", "the plot is a dull mess", "what a waste of time!", "a dull , slow film about a mess", "I left early"],
    1: ["a bright film.", "the cast is a joy", "what a joy of a film!", "a bright , quick film about a joy", "I stayed late"],
}


def text_order(count: int = 10, *, smuggled: Smuggled | None = None, public: bool = True, **changes: Any) -> Order:
    pairs = [(text, label) for label, own in TEXTS.items() for text in own]
    known = Written([text for text, _ in pairs], [label for _, label in pairs]) if public else None
    values: dict[str, Any] = {"kind": "text", "about": "film review", "names": NAMES, "count": count, "shape": (12,), "seed": 3}
    return Order(**{**values, "public": known, "smuggled": smuggled, **changes})
