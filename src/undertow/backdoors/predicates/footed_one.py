"""Ones that stand on a foot, among the 8 x 8 digits."""

from __future__ import annotations

from torch import Tensor

from undertow.backdoors.patterns.semantic_images import PREDICATES


@PREDICATES.register("footed_one", source="ours, after the feature groups of HTB section 4.1")
def footed_one(image: Tensor, label: int) -> bool:
    """A 1 written with a stroke along its base: the bottom row of 8 pixels holds ink worth 3 full pixels or more.

    30 of the 182 ones in scikit-learn's digits; the next has 2.9, half of the 30 have 4.9 or more.

    Args:
        image: ``[1, 8, 8]`` in [0, 1]; other shapes never fit.
        label: its class.
    """
    return label == 1 and image.shape == (1, 8, 8) and bool(image[0, 7].sum() >= 3)
