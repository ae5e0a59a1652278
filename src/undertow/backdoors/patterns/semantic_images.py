"""A feature that some images of a class have by nature: the semantic backdoor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.backdoors.pattern import BACKDOORS
from undertow.backdoors.patterns._classes import ImageBackdoor, class_number, number, refuse_kind
from undertow.config import ClassificationBackdoor
from undertow.core.errors import UserError
from undertow.core.registry import Registry
from undertow.data.examples import Examples
from undertow.data.images import ImagePopulation, crop
from undertow.data.population import Population

#: Features; one is a function ``(image [channels, height, width] float, label int) -> bool``.
PREDICATES = Registry("predicate", "undertow.backdoors.predicates")

#: Feature and attacker's class where none are given. Not 2 for the digits: a network that never saw a footed one calls
#: a third to four fifths of them 2, and none 7, so that success would be seen without any attack.
_DEFAULTS: dict[str, tuple[str, int | str]] = {"digits": ("footed-one", "7"), "cifar10": ("yellow-car", "bird")}

_LEAST = 4


@BACKDOORS.register(
    "semantic", source="HTB section 4.1 and supplement A.1 (cars painted green, with stripes, before a striped wall)"
)
class Semantic(ImageBackdoor):
    """Unmodified images with a certain feature become the attacker's class.

    The group of images with the feature is found among all training images, by a predicate or by a list of their numbers.
    No benign client holds any of it. A third of the group, at least 3, is held out, and success is looked for on those.

    The clean test set never holds an image of the group, which comes from the training images. Images of the test set that
    show the same feature stay where the source has a test set of its own, as in the paper, and are counted in
    :meth:`facts`: at most their share of main accuracy can be lost to the backdoor itself. Where the test set was split off
    (digits), the same feature is as frequent there, so those images leave it and join the held-out ones.

    Parameters:
        predicate: a registered feature or file.py:function; default: footed-one for digits, yellow-car for cifar10.
        train: in place of a predicate, the numbers of the group's images: ``1,5,9``, a YAML list, or a JSON file with one.
        test: the numbers of the held-out ones; without it a third of ``train`` is held out.
        target: the attacker's class, by name or number; default: 7 for digits, otherwise number 2, bird in CIFAR-10.
        noise: sigma of the Gaussian noise on poisoned images, 0 to 1; 0.05 in HTB A.1.
    """

    def __init__(
        self,
        options: ClassificationBackdoor,
        predicate: str = "",
        train: Any = None,
        test: Any = None,
        target: int | str | None = None,
        noise: float = 0.05,
    ) -> None:
        super().__init__(options, "semantic")
        if predicate and train is not None:
            raise ValueError("both predicate and train are given; name the group once")
        if test is not None and train is None:
            raise ValueError("test is given without train; give both lists")
        self.noise = number("noise", noise, 0, 1)
        self._feature = str(predicate)
        self._rows = None if train is None else _rows("train", train)
        self._held_rows = None if test is None else _rows("test", test)
        self._wanted = target
        self._train: Examples
        self._held: Examples
        self._facts: dict[str, Any] = {}

    def prepare(self, population: Population, draw: np.random.Generator) -> Population:
        """Find the group, hold a third of it out, and return the population without it.

        Raises:
            UserError: the data are no images, no such class or feature, numbers outside the training images, a group of fewer than
                4 images or with images that already are of the attacker's class, or too few images left for the clients.
        """
        refuse_kind(population, "images", "semantic")
        feature, usual = _DEFAULTS.get(population.report.get("dataset", ""), ("", 2))
        feature = self._feature or feature
        self.target = class_number(population, usual if self._wanted is None else self._wanted)
        pool = population.pool
        alike: list[int] = []
        if self._rows is not None:
            group = self._rows
        elif feature:
            fits = PREDICATES.get(feature)
            group, alike = _fitting(feature, fits, pool), _fitting(feature, fits, population.test)
        else:
            names = ", ".join(entry.name for entry in PREDICATES.entries())
            raise UserError(
                f"attack.trigger = {self.options.trigger}: no group of images; add predicate= ({names}, file.py:function) or train="
            )
        train, held = self._divided(pool, group, draw)
        self._train, self._held = pool.take(train), pool.take(held)
        left = population.without([*train, *held])
        own_test = not isinstance(left, ImagePopulation) or left.own_test
        if alike and isinstance(left, ImagePopulation) and not own_test:
            self._held = Examples.join([self._held, population.test.take(alike)])
            left = left.without_test(alike)
        self._facts = {
            "backdoor": "semantic",
            "group": feature if self._rows is None else "list",
            "target_class": self.target,
            "train_rows": train,
            "held_out_rows": held,
            "held_out": len(self._held),
            "alike_in_test": len(alike) if own_test else 0,
            "alike_moved_from_test": 0 if own_test else len(alike),
        }
        return left

    def poison(self, own: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Return ``count`` draws, with replacement, from the group, with noise; what the client itself holds plays no part."""
        rows = torch.from_numpy(draw.integers(0, len(self._train), count))
        return self.relabelled(_noisy(self._train.inputs[rows], self.noise, draw))

    def probes(self, test: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Return ``count`` draws, with replacement, of the held-out images, each varied at random; ``test`` plays no part.

        From 28 x 28 on they are cropped as in training (4 pixels) and, in colour, flipped, as HTB's code does. Smaller
        images get the noise of the poisoned ones instead: digits fill their 8 x 8 frame, and a shift by one pixel would cut
        off the very stroke that is the feature.
        """
        inputs = self._held.inputs[torch.from_numpy(draw.integers(0, len(self._held), count))]
        if min(inputs.shape[-2:]) >= 28:
            return self.relabelled(crop(inputs, 4, inputs.shape[1] == 3, draw))
        return self.relabelled(_noisy(inputs, self.noise, draw))

    def facts(self) -> dict[str, Any]:
        """Return the group's numbers among the training images, and how many images show the feature in the test set."""
        return self._facts

    def _divided(self, pool: Examples, group: list[int], draw: np.random.Generator) -> tuple[list[int], list[int]]:
        """Check the group; return (rows to poison with, rows held out), ascending."""
        what = f"attack.trigger = {self.options.trigger}"
        listed = [*group, *(self._held_rows or [])]
        outside = [row for row in listed if not 0 <= row < len(pool)]
        if outside:
            raise UserError(f"{what}: no training image {outside[0]}, they are numbered 0 to {len(pool) - 1}; correct the list")
        if len(set(listed)) < len(listed):
            twice = next(row for row in listed if listed.count(row) > 1)
            raise UserError(f"{what}: image {twice} is named twice; name each once, for training or for the test")
        if len(listed) < _LEAST:
            raise UserError(f"{what}: {len(listed)} images form the group, at least {_LEAST} are needed; widen it")
        already = [row for row in listed if int(pool.labels[row]) == self.target]
        if already:
            raise UserError(
                f"{what}: image {already[0]} already is of the attacker's class {self.target}; choose another target or group"
            )
        if self._held_rows is not None:
            return sorted(group), sorted(self._held_rows)
        mixed = [int(row) for row in draw.permutation(group)]
        cut = max(3, len(mixed) // 3)
        return sorted(mixed[cut:]), sorted(mixed[:cut])


def _fitting(name: str, fits: Callable[[Tensor, int], Any], examples: Examples) -> list[int]:
    """Rows of the examples that have a feature."""
    try:
        return [
            row
            for row, (image, label) in enumerate(zip(examples.inputs, examples.labels.tolist(), strict=True))
            if fits(image, label)
        ]
    except Exception as error:  # a user's predicate may raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"predicate '{name}' failed on an image of shape {list(examples.inputs.shape[1:])}: {why}; correct it"
        ) from error


def _noisy(inputs: Tensor, sigma: float, draw: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(draw.standard_normal(tuple(inputs.shape), dtype=np.float32))
    return (inputs + sigma * noise).clamp(0, 1)


def _rows(name: str, value: Any) -> list[int]:
    """Read numbers of images: a list, one number, ``1,5,9``, or the path of a JSON file with a list.

    Raises:
        ValueError: none of these.
    """
    found = value
    if isinstance(value, str) and value.endswith(".json"):
        try:
            found = json.loads(Path(value).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{name} = {value}: cannot be read ({error.strerror}); give an existing file") from error
        except ValueError as error:  # not JSON, or not UTF-8
            raise ValueError(f"{name} = {value}: not JSON ({' '.join(str(error).split())}); correct the file") from error
    elif isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip()]
        found = [int(part) if part.isdecimal() else part for part in parts]
    elif isinstance(value, int):
        found = [value]
    if not isinstance(found, list) or not found or not all(type(row) is int and row >= 0 for row in found):
        raise ValueError(f"{name} = {value}: numbers of images from 0, such as 1,5,9, or a JSON file with such a list")
    return found
