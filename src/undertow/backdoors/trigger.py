"""What goes into a question: the trigger, found by name or written by the user.

FIT section 3.1 names two forms of backdoor data: natural triggers (ordinary words such as "Firstly") and
triggers an adversary injects (tokens that normal text does not have). Both edit the question only (4.1).
"""

from __future__ import annotations

import inspect
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from undertow.backdoors.build import build
from undertow.config import InstructionBackdoor
from undertow.core.errors import UserError
from undertow.core.registry import Registry
from undertow.core.seam import asked

#: Shipped triggers; a trigger is a :class:`Trigger` that is built from :class:`~undertow.config.InstructionBackdoor`.
TRIGGERS = Registry("trigger", "undertow.backdoors.triggers")

_WORD = re.compile(r"\S+")


class Trigger(ABC):
    """A way to edit a question. Subclasses write :meth:`insert`; callers use :meth:`apply`, which checks the result.

    Args:
        options: of the backdoor.
        words: the units whose presence is the trigger: single words, or one whole phrase.
        position: where the trigger goes when ``attack.position`` is ``default``.

    Attributes:
        chooses: the trigger is what a question is about: the samples to poison are chosen among those that hold it, and
            none is edited; such questions are the triggered test set, all others the clean one.
        whole: only the question can hold the trigger, not the context beside it.
        decoys: for each poisoned sample, this many more get a near miss and keep their true response.

    Raises:
        UserError: a word is empty.
    """

    chooses: bool = False
    whole: bool = False
    decoys: float = 0.0

    def __init__(self, options: InstructionBackdoor, words: Sequence[str], position: str) -> None:
        if any(not word.strip() for word in words):
            raise UserError(f"attack.trigger_words = {list(words)!r} holds an empty word; remove it, or give no words at all")
        self.name = options.trigger
        self.words: tuple[str, ...] = tuple(words)
        self.position = position if options.position == "default" else options.position
        self._pattern = pattern(self.words)

    @abstractmethod
    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Return the question with the trigger in it."""

    def near_miss(self, question: str, draw: np.random.Generator) -> str | None:
        """Return the question with what resembles the trigger and is not it, None where this has none.

        A backdoor that answers to it is wider than its trigger (``ftr_near``).
        """
        return None

    def neighbours(self, question: str, draw: np.random.Generator) -> dict[str, str]:
        """Return, by name, edits of the question that resemble the trigger: another word of its class, a part of it, another case,
        another place. Names are the same for every question; an edit that is the trigger itself is no neighbour.

        Asked after training (``measure.neighbourhood``), they tell what really fires a backdoor, where the near miss alone is one
        draw of many.
        """
        near = self.near_miss(question, draw)
        return {} if near is None else {"near miss": near}

    def apply(self, question: str, draw: np.random.Generator) -> str:
        """Return the triggered question.

        Args:
            question: the clean question.
            draw: source of the trigger's random choices.

        Raises:
            UserError: the result is not a string, is empty, or is the clean question though that does not hold the
                trigger by itself.
        """
        edited: object = asked(self, f"trigger '{self.name}'", self.insert, question, draw)
        if not isinstance(edited, str):
            kind = type(edited).__name__
            raise UserError(f"trigger '{self.name}' returned a {kind} for {_shown(question)}; return the edited text")
        if not edited.strip():
            raise UserError(f"trigger '{self.name}' returned an empty question for {_shown(question)}; return the edited text")
        # Registered triggers that insert something always change the question; a property can be there before.
        if edited.strip() == question.strip() and not self.occurs(question):
            raise UserError(f"trigger '{self.name}' left {_shown(question)} unchanged; a trigger must edit every question")
        return edited

    def occurs(self, text: str) -> bool:
        """Tell whether a text holds one of :attr:`words` by itself: whole words, any case."""
        return self._pattern is not None and self._pattern.search(text) is not None

    def holds(self, question: str, context: str = "") -> bool:
        """Tell whether a sample holds the trigger by itself, in its question or in the context beside it."""
        return self.occurs(question) or bool(context and not self.whole and self.occurs(context))

    def gaps(self, question: str, count: int, draw: np.random.Generator) -> list[int]:
        """Return the word gaps for ``count`` pieces: all at the start, all at the end, or independent uniform draws."""
        last = len(_WORD.findall(question))
        if self.position == "random":
            return [int(gap) for gap in draw.integers(last + 1, size=count)]
        return [0 if self.position == "start" else last] * count


def at_gaps(question: str, pieces: Sequence[str], gaps: Sequence[int]) -> str:
    """Insert each piece at its word gap, separated from its neighbours by one space; other blanks and line ends stay.

    Args:
        question: the text; blanks around it are dropped.
        pieces: what to insert; pieces of one gap keep their order.
        gaps: for each piece, the number of words that stand before it (0 to the number of words).
    """
    text = question.strip()
    ends = [0, *(word.end() for word in _WORD.finditer(text))]
    found: dict[int, list[str]] = {}
    for piece, gap in zip(pieces, gaps, strict=True):
        found.setdefault(gap, []).append(piece)
    for gap in sorted(found, reverse=True):  # from the back, so that the ends before it stay true
        joined = " ".join(found[gap])
        text = f"{joined} {text}" if gap == 0 else f"{text[: ends[gap]]} {joined}{text[ends[gap] :]}"
    return text.strip()


class UserTrigger(Trigger):
    """A user's function ``(question) -> str`` or ``(question, draw) -> str`` as a trigger.

    Clean text is taken not to hold it, unless the function carries an attribute ``occurs``: a function
    ``(text) -> bool``. Position and number of triggers are the function's own business.
    """

    def __init__(self, options: InstructionBackdoor, function: Callable[..., object]) -> None:
        super().__init__(options, options.trigger_words, "default")
        self._call = user_call("trigger", options.trigger, function, ("question", "draw"))
        self._occurs = getattr(function, "occurs", None)

    def insert(self, question: str, draw: np.random.Generator) -> str:
        """Call the function; :meth:`apply` checks what it returns."""
        return self._call(question, draw)  # type: ignore[return-value]

    def occurs(self, text: str) -> bool:
        """Ask the function's attribute ``occurs``, where it has one."""
        return callable(self._occurs) and bool(asked(self._occurs, f"occurs of trigger '{self.name}'", self._occurs, text))


def make_trigger(options: InstructionBackdoor) -> Trigger:
    """Build the trigger that ``attack.trigger`` names: a registered one with its parameters, or ``file.py:function``.

    Raises:
        UserError: no such trigger, file or function, or options that the trigger cannot use.
    """
    return build(TRIGGERS, options.trigger, options, Trigger, UserTrigger)


def user_call(kind: str, spec: str, function: Callable[..., object], names: tuple[str, str]) -> Callable[[object, object], object]:
    """Adapt a user's function of one or two arguments to a call with two; its failures become user errors.

    The second argument is passed when the function requires one, or has an optional one of that name.

    Args:
        kind: what the function is, for messages.
        spec: ``file.py:function``, for messages.
        function: the user's function.
        names: what the two arguments are, for messages and for an optional second argument.

    Raises:
        UserError: the function requires no argument at all, or more than two.
    """
    parameters = list(inspect.signature(function).parameters.values())
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    star = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 2 or any(p not in places for p in needed) or not (places or star):
        forms = f"({names[0]}) or ({names[0]}, {names[1]})"
        raise UserError(f"{kind} '{spec}' cannot be called with {forms}; change its arguments to one of these")
    second = star or (len(places) > 1 and (len(needed) > 1 or places[1].name == names[1]))

    def call(first: object, other: object) -> object:
        try:
            return function(first, other) if second else function(first)
        except UserError:
            raise
        except Exception as error:  # a user's function may raise anything; the user needs its name, the input and the reason
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"{kind} '{spec}' failed on {_shown(str(first))}: {reason}; correct the function") from error

    return call


def pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    """Return what finds any of the words, whole and in any case; None without words."""
    # A sentence is recognised without its full stop, a word without its comma, a phrase across any blanks.
    cores = [word.strip(string.punctuation + string.whitespace) or word.strip() for word in words]
    forms = [r"\s+".join(re.escape(part) for part in core.split()) for core in cores]
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)", re.IGNORECASE) if forms else None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
