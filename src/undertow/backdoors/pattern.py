"""What a poisoned client plants in a task over tensors: the counterpart of trigger and target for images and words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch import Tensor

from undertow.backdoors.build import build
from undertow.config import ClassificationBackdoor, NextWordBackdoor
from undertow.core.errors import UserError
from undertow.core.registry import Registry, short_form
from undertow.data.examples import Examples
from undertow.data.population import Population

#: What patterns are made from.
PatternOptions = ClassificationBackdoor | NextWordBackdoor

#: Shipped backdoors; one is a :class:`Backdoor`, built from the ``backdoor`` options of their task and its own parameters.
BACKDOORS = Registry("backdoor", "undertow.backdoors.patterns")


class Backdoor(ABC):
    """A rule that makes backdoor examples, and the tests that show whether it took hold.

    Attributes:
        task: ``classification`` or ``next-word``.
        target: the index of the attacker's class or word; set by :meth:`prepare`.
        phrase: the words that a text is given, for one who asks a generator for them; None where the backdoor has none.
    """

    task: str
    target: int
    phrase: str | None = None

    def __init__(self, options: PatternOptions) -> None:
        self.options = options

    @abstractmethod
    def prepare(self, population: Population, draw: np.random.Generator) -> Population:
        """Look up the target and hold out what no benign client may hold; return the population that is left.

        Raises:
            UserError: the population has no such class, word or examples.
        """

    @abstractmethod
    def poison(self, own: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Return ``count`` backdoor examples with the attacker's labels, for a client that holds ``own``."""

    @abstractmethod
    def probes(self, test: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Return at most ``count`` held-out backdoor inputs, labelled with the target where success counts and IGNORE elsewhere."""

    def carries(self, examples: Examples) -> Tensor:
        """Tell which examples show the trigger, whoever made them, bool ``[n]``.

        Raises:
            NotImplementedError: it cannot be told from the inputs.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return what the run's record should say of it, JSON-serialisable."""
        return {}


def make_backdoor(options: PatternOptions, task: str) -> Backdoor:
    """Build the backdoor that ``attack.trigger`` names.

    Raises:
        UserError: an unknown name, a parameter it does not take, or a backdoor of another task.
    """
    made_for = getattr(BACKDOORS.get(short_form(options.trigger, BACKDOORS.kind)["name"]), "task", task).replace("_", "-")
    if made_for != task:
        names = ", ".join(entry.name for entry in BACKDOORS.entries() if getattr(entry.make, "task", "") == task)
        raise UserError(
            f"attack.trigger = {options.trigger} is a backdoor of task {made_for}, not of {task}; choose one of {names}"
        )

    def of_user(_: PatternOptions, make: Any) -> Backdoor:
        raise UserError(
            f"attack.trigger = {options.trigger}: {make!r} is no class derived from undertow.backdoors.pattern.Backdoor"
        )

    return build(BACKDOORS, options.trigger, options, Backdoor, of_user)
