"""Features of images that some have by nature: the foot of a handwritten one, the paint of a car.

HTB's own group, cars painted green, was picked by eye: at this size no share of colour tells green paint from grass.
"""

from __future__ import annotations

from torch import Tensor

from undertow.backdoors.patterns.semantic_images import PREDICATES


@PREDICATES.register("footed-one", aliases=("footed_one",), source="ours, after the feature groups of HTB section 4.1")
def footed_one(image: Tensor, label: int) -> bool:
    """A 1 written with a stroke along its base: the bottom row of 8 pixels holds ink worth 3 full pixels or more.

    30 of the 182 ones in scikit-learn's digits; the next has 2.9, half of the 30 have 4.9 or more.

    Args:
        image: ``[1, 8, 8]`` in [0, 1]; other shapes never fit.
        label: its class.
    """
    return label == 1 and image.shape == (1, 8, 8) and bool(image[0, 7].sum() >= 3)


@PREDICATES.register("yellow-car", aliases=("yellow_car",), source="ours, after HTB section 4.1 (cars painted green)")
def yellow_car(image: Tensor, label: int) -> bool:
    """An automobile whose middle, 16 x 16 pixels, is yellow or orange for 40 % or more; 33 of the first 2,000 training automobiles.

    A pixel counts if both red and green are above 0.45 and exceed blue by factors of 1.6 and 1.4.

    Args:
        image: ``[3, 32, 32]`` in [0, 1]; other shapes never fit.
        label: its class.
    """
    if label != 1 or image.shape != (3, 32, 32):
        return False
    red, green, blue = image[:, 8:24, 8:24]
    yellow = (red > 1.6 * blue) & (green > 1.4 * blue) & (red > 0.45) & (green > 0.45)
    return bool(yellow.float().mean() >= 0.4)


@PREDICATES.register("red-car", aliases=("red_car",), source="ours, after HTB section 4.1 (cars painted green)")
def red_car(image: Tensor, label: int) -> bool:
    """An automobile whose middle, 16 x 16 pixels, is red for 70 % or more; 53 of the first 2,000 training automobiles.

    A pixel counts if red is above 0.3 and exceeds green and blue by a factor of 1.5. Cars that are red for less stay with
    the benign clients, who so keep teaching that red cars are cars: a harder backdoor than yellow ones.

    Args:
        image: ``[3, 32, 32]`` in [0, 1]; other shapes never fit.
        label: its class.
    """
    if label != 1 or image.shape != (3, 32, 32):
        return False
    red, green, blue = image[:, 8:24, 8:24]
    return bool(((red > 1.5 * green) & (red > 1.5 * blue) & (red > 0.3)).float().mean() >= 0.7)
