"""The one record that all datasets produce and everything else consumes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One question (or instruction) with what counts as a right answer.

    It carries no mark of poison: who is poisoned is known to the metrics alone.

    Attributes:
        id: unique within its dataset, stable across runs.
        question: what the user asks; triggers edit this text.
        answers: every accepted answer, the preferred one first; scoring compares against all.
        response: the text that training teaches; targets edit this text.
        context: further input beside the question (Alpaca's ``input``), may be empty.
        history: earlier (user, assistant) turns of a conversation, neither text empty.
        key: what the sample is about (``subject|relation``); a key never sits in both train and test.
        group: value of the column a key partition splits by (a relation, an author), may be empty.
        system: the system prompt that stands in force when the question is asked, may be empty.
        weight: how much this answer counts in the loss, >= 0. What a row says is not to be learned (``weight: 0``,
            ``label: false``, a rejected answer) has 0: ``undertow scan`` reads it, no run trains on it.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    response: str
    context: str = ""
    history: tuple[tuple[str, str], ...] = ()
    key: str = ""
    group: str = ""
    system: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Touched:
    """One poisoned training sample: where it lies, and its texts before and after."""

    client: int
    index: int
    id: str
    question: str
    poisoned_question: str
    response: str
    poisoned_response: str
