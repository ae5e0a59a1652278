"""What the backdoors of image classification share: the attacker's class and the numbers they are given."""

from __future__ import annotations

from typing import Any

import torch

from undertow.config import Attack
from undertow.data.examples import Examples
from undertow.data.population import Population
from undertow.errors import UserError, nearest
from undertow.poisoning.backdoor import Backdoor
from undertow.poisoning.build import refuse_options


class ImageBackdoor(Backdoor):
    """A backdoor that makes a network see one class."""

    task = "classification"

    def __init__(self, attack: Attack, name: str) -> None:
        """Refuse the options that shape text."""
        refuse_options(attack, f"backdoor '{name}'", "trigger_words", "num_triggers", "position", "target", "target_text")
        super().__init__(attack)

    def relabelled(self, inputs: torch.Tensor) -> Examples:
        """Return the inputs, all labelled with the attacker's class."""
        return Examples(inputs, torch.full((len(inputs),), self.target, dtype=torch.int64))


def class_number(population: Population, target: int | str) -> int:
    """Return the number of the class that ``target`` names, by name or by number.

    Raises:
        UserError: there is no such class.
    """
    names = [str(name) for name in population.names]
    if str(target) in names:
        return names.index(str(target))
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(names):
        return target
    raise UserError(
        f"attack.trigger: no class target={target}{nearest(str(target), names)}; choose one of {', '.join(names)}, or a number from 0"
    )


def number(name: str, value: Any, low: float, high: float) -> float:
    """Return ``value`` as a float.

    Raises:
        ValueError: it is no number from ``low`` to ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} = {value}: a number from {low:g} to {high:g}")
    return float(value)
