"""Labelled images dealt to clients: what every image data set becomes once its files are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.config import ClassificationData
from undertow.data.examples import Examples, Written
from undertow.data.pool import Dealt, PoolPopulation, Source, deal_samples


@dataclass(frozen=True)
class Images:
    """Images as a source holds them, one byte a value.

    Attributes:
        pixels: uint8 ``[n, channels, height, width]``.
        labels: int64 ``[n]``, class numbers from 0.
        full: the value that stands for 1.0: 255, or 16 for the digits.
    """

    unit: ClassVar[str] = "images"

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    full: int = 255

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8:
            raise ValueError(f"images are uint8 [n, channels, height, width], got {self.pixels.dtype} {self.pixels.shape}")
        if self.labels.shape != (len(self.pixels),):
            raise ValueError(f"{len(self.pixels)} images with labels {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Images:
        """Return the images at ``rows``, in that order."""
        places = np.asarray(rows, dtype=np.int64)
        return Images(self.pixels[places], self.labels[places], self.full)

    def examples(self) -> Examples:
        """Return float32 inputs in [0, 1] and int64 labels."""
        return Examples(torch.from_numpy(self.pixels).to(torch.float32).div_(self.full), torch.from_numpy(self.labels.copy()))

    def written(self) -> Written:
        """Return the images as a generator gets them, float32 in [0, 1]."""
        return Written(self.examples().inputs, self.labels.tolist())


class ImagePopulation(PoolPopulation[Images]):
    """Clients that share one pool of images in memory, held as bytes and turned into numbers only when asked for.

    Attributes:
        augmented: whether :meth:`augment` crops and flips.
    """

    kind = "images"
    about = "image"

    def __init__(
        self,
        train: Images,
        test: Images,
        names: Sequence[str],
        clients: Sequence[Sequence[int]],
        report: dict[str, Any],
        own_test: bool = True,
        augmented: bool = False,
    ) -> None:
        """``clients``: for each client the rows of ``train`` that it holds, no row twice; other arguments as the attributes."""
        dealt = Dealt(train, test, [list(rows) for rows in clients], own_test, report)
        super().__init__(dealt, names, test.examples())
        self.augmented = augmented

    def _examples(self, rows: Sequence[int] | None) -> Examples:
        return (self._train if rows is None else self._train.take(rows)).examples()

    def augment(self, examples: Examples, draw: np.random.Generator) -> Examples:
        """Return a batch cropped and flipped at random (:func:`crop`) if the config asks for it, otherwise as it is."""
        if not self.augmented:
            return examples
        return Examples(crop(examples.inputs, 4, True, draw), examples.labels)


def crop(images: Tensor, padding: int, flip: bool, draw: np.random.Generator) -> Tensor:
    """Shift each image at random within ``padding`` zeros on every side, and mirror half of them if ``flip``.

    With 4 and True this is the usual training augmentation of CIFAR-10 (He et al. 2016, section 4.2).

    Args:
        images: ``[n, channels, height, width]``.
        padding: at least 0; shifts are uniform over -padding ... padding in each direction.
        flip: mirror left and right with probability 1/2.
        draw: source of the random numbers.

    Returns:
        New images of the same shape.
    """
    n, channels, height, width = images.shape
    down = torch.from_numpy(draw.integers(0, 2 * padding + 1, n))
    right = torch.from_numpy(draw.integers(0, 2 * padding + 1, n))
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    if flip:
        mirrored = torch.from_numpy(draw.random(n) < 0.5)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    which, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


def deal_images(
    options: ClassificationData, seed: int, clients: int, source: Source[Images], augmented: bool = False
) -> ImagePopulation:
    """Draw ``data.train`` and ``data.test`` images and deal the former to the clients (:func:`undertow.data.pool.deal_samples`).

    Args:
        options: of the data.
        seed: of the run.
        clients: how many.
        source: the data set.
        augmented: crop and flip the training batches.

    Raises:
        UserError: no training image, fewer than clients, or a way of dealing that images have not.
    """
    dealt = deal_samples(options, seed, clients, source)
    return ImagePopulation(dealt.pool, dealt.test, source.names, dealt.clients, dealt.report, dealt.own_test, augmented)
