"""A stamp in the corner of an image: the pixel-pattern backdoor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from undertow.backdoors.pattern import BACKDOORS
from undertow.backdoors.patterns._classes import ImageBackdoor, class_number, number, refuse_kind, turns
from undertow.config import ClassificationBackdoor
from undertow.core.errors import UserError
from undertow.data.examples import Examples
from undertow.data.population import Population

#: Values that differ by less are the same one byte.
_SAME = 0.5 / 255


@BACKDOORS.register("pixel", source="Gu et al. 2017 (BadNets), section 4; compared with the semantic backdoor in HTB")
class Pixel(ImageBackdoor):
    """A square in the bottom right corner makes any image the attacker's class.

    The client stamps images of its own; those that already are of the attacker's class would teach nothing and are
    used only if it has no others. Success is looked for on stamped test images of all other classes.

    Parameters:
        size: side of the square in pixels, at least 1 and at most half of the image's shorter side.
        value: what its pixels become in every channel, 0 to 1.
        target: the attacker's class, by name or number; 2 is bird in CIFAR-10, as in HTB.
    """

    def __init__(self, options: ClassificationBackdoor, size: int = 3, value: float = 1.0, target: int | str = 2) -> None:
        super().__init__(options, "pixel")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size = {size}: a whole number of pixels from 1")
        self.size = size
        self.value = number("value", value, 0, 1)
        self._wanted = target

    def prepare(self, population: Population, draw: np.random.Generator) -> Population:
        """Look up the class; nothing is held out.

        Raises:
            UserError: the data are no images, no such class, a stamp that covers too much, or no test image of another class.
        """
        refuse_kind(population, "images", "pixel")
        self.target = class_number(population, self._wanted)
        height, width = population.test.inputs.shape[-2:]
        if self.size > min(height, width) // 2:
            raise UserError(
                f"attack.trigger: size={self.size} on images of {height} x {width}: at most half a side; "
                f"lower it to {min(height, width) // 2}"
            )
        if not bool((population.test.labels != self.target).any()):
            raise UserError("attack.trigger: every test image is of the attacker's class; choose another target")
        return population

    def poison(self, own: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Return ``count`` of the client's images stamped; all once before any a second time.

        Raises:
            ValueError: the client holds no image.
        """
        rows = turns(own.labels, self.target, count, draw)
        return self.relabelled(self.stamped(own.inputs[torch.from_numpy(rows)]))

    def probes(self, test: Examples, count: int, draw: np.random.Generator) -> Examples:
        """Return up to ``count`` stamped test images of other classes, without repetition."""
        rows = draw.permutation(np.flatnonzero((test.labels != self.target).numpy()))[:count]
        return self.relabelled(self.stamped(test.inputs[torch.from_numpy(rows)]))

    def stamped(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return images ``[n, channels, height, width]`` with the square; the arguments stay as they are."""
        marked = inputs.clone()
        marked[:, :, -self.size :, -self.size :] = self.value
        return marked

    def carries(self, examples: Examples) -> torch.Tensor:
        """Tell which images have the square, bool ``[n]``; one that is so by nature counts."""
        corner = examples.inputs[:, :, -self.size :, -self.size :]
        return (corner - self.value).abs().flatten(1).amax(1) <= _SAME

    def facts(self) -> dict[str, Any]:
        """Return the stamp and the class's number."""
        return {"backdoor": "pixel", "size": self.size, "value": self.value, "target_class": self.target}
