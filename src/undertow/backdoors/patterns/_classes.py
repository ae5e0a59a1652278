"""What the backdoors of classification share: the attacker's class and the numbers they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.backdoors.build import refuse_options
from undertow.backdoors.pattern import Backdoor
from undertow.config import ClassificationBackdoor
from undertow.core.errors import UserError, nearest
from undertow.data.examples import Examples
from undertow.data.population import Population


class ImageBackdoor(Backdoor):
    """A backdoor that makes a network see one class."""

    task = "classification"

    def __init__(self, options: ClassificationBackdoor, name: str) -> None:
        """Refuse the options that shape text."""
        refuse_options(options, f"backdoor '{name}'", "trigger_words", "position")
        super().__init__(options)

    def relabelled(self, inputs: torch.Tensor) -> Examples:
        """Return the inputs, all labelled with the attacker's class."""
        return Examples(inputs, torch.full((len(inputs),), self.target, dtype=torch.int64))


def refuse_kind(population: Population, kind: str, name: str) -> None:
    """Refuse data of another kind than a backdoor is made for.

    Raises:
        UserError: the population's inputs are not ``kind``.
    """
    if population.kind != kind:
        raise UserError(
            f"attack.trigger = {name} is a backdoor of {kind}, and the data are {population.kind}; choose another trigger"
        )


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
        f"attack.trigger: no class target={target}{nearest(str(target), names)}; choose one of {', '.join(names)}, or a number "
        "from 0"
    )


def turns(labels: Tensor, target: int, count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Return ``count`` rows whose label is not ``target``, all once before any a second time; any rows if there are no others.

    Raises:
        ValueError: rows are asked for and there is none.
    """
    usable = np.flatnonzero((labels != target).numpy())
    usable = usable if len(usable) else np.arange(len(labels))
    if count and not len(usable):
        raise ValueError("no example to poison")
    orders = [draw.permutation(usable) for _ in range(-(-count // max(len(usable), 1)))]
    return np.concatenate([np.zeros(0, dtype=np.int64), *orders])[:count]


def number(name: str, value: Any, low: float, high: float) -> float:
    """Return ``value`` as a float.

    Raises:
        ValueError: it is no number from ``low`` to ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} = {value}: a number from {low:g} to {high:g}")
    return float(value)
