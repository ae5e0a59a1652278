"""Labelled images dealt to participants: what every image data set becomes once its files are read."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.config import Config
from undertow.data.examples import Examples
from undertow.data.partition import deal_dirichlet, deal_groups, deal_iid, fill_empty, largest_remainder
from undertow.data.population import Population
from undertow.errors import UserError
from undertow.rng import rng


@dataclass(frozen=True)
class Images:
    """Images as a source holds them, one byte a value.

    Attributes:
        pixels: uint8 ``[n, channels, height, width]``.
        labels: int64 ``[n]``, class numbers from 0.
        full: the value that stands for 1.0: 255, or 16 for the digits.
    """

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


class ImagePopulation(Population):
    """Participants that share one pool of images in memory, held as bytes and turned into numbers only when asked for.

    Attributes:
        own_test: whether the source has a test set of its own; otherwise it was split off the training images.
        augmented: whether :meth:`augment` crops and flips.
    """

    kind = "images"

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
        """``clients``: for each participant the rows of ``train`` that it holds, no row twice; other arguments as the attributes."""
        self.names = list(names)
        self.test = test.examples()
        self.report = report
        self.own_test = own_test
        self.augmented = augmented
        self._train = train
        self._clients = [list(rows) for rows in clients]

    @property
    def sizes(self) -> Sequence[int]:
        """How many images each participant holds."""
        return [len(rows) for rows in self._clients]

    def client(self, k: int) -> Examples:
        """Return the images of participant ``k``, float32 ``[n, channels, height, width]`` in [0, 1]."""
        return self._train.take(self._clients[k]).examples()

    @property
    def pool(self) -> Examples:
        """All training images in the source's order, also those that no participant drew.

        Where the source has no test set of its own, the images split off for testing are not among them.
        """
        return self._train.examples()

    def augment(self, examples: Examples, draw: np.random.Generator) -> Examples:
        """Return a batch cropped and flipped at random (:func:`crop`) if the config asks for it, otherwise as it is."""
        if not self.augmented:
            return examples
        return Examples(crop(examples.inputs, 4, True, draw), examples.labels)

    def without(self, indices: Sequence[int]) -> ImagePopulation:
        """Return the population whose participants hold none of the images ``indices`` of :meth:`pool`; pool and test stay.

        A participant that held nothing else takes one image from the largest (:func:`undertow.data.partition.fill_empty`).

        Raises:
            UserError: fewer images are left than there are participants.
        """
        gone = set(indices)
        left = [[row for row in rows if row not in gone] for rows in self._clients]
        total = sum(map(len, left))
        if total < len(left):
            raise UserError(
                f"{total} images are left for {len(left)} participants once {len(gone)} are set aside, each needs one; "
                "raise data.train or lower federation.clients"
            )
        return self._changed(clients=fill_empty(left), set_aside=self.report.get("set_aside", 0) + sum(self.sizes) - total)

    def without_test(self, places: Sequence[int]) -> ImagePopulation:
        """Return the population whose test set lacks the examples at ``places``."""
        gone = set(places)
        kept = self.test.take([place for place in range(len(self.test)) if place not in gone])
        return self._changed(test=kept, test_set_aside=self.report.get("test_set_aside", 0) + len(self.test) - len(kept))

    def _changed(self, clients: list[list[int]] | None = None, test: Examples | None = None, **facts: int) -> ImagePopulation:
        changed = copy(self)
        changed._clients = self._clients if clients is None else clients
        changed.test = self.test if test is None else test
        changed.report = {**self.report, **facts, **changed._counts()}
        return changed

    def _counts(self) -> dict[str, Any]:
        held = [self._train.labels[rows] for rows in self._clients]
        return {
            "train": sum(self.sizes),
            "test": len(self.test),
            "clients": self.sizes,
            "client_groups": [_by_class(labels, self.names) for labels in held],
            "train_classes": _by_class(np.concatenate(held), self.names),
            "test_classes": _by_class(self.test.labels.numpy(), self.names),
        }


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
    config: Config,
    source: str,
    train: Images,
    test: Images | None,
    names: Sequence[str],
    notes: dict[str, Any],
    augmented: bool = False,
) -> ImagePopulation:
    """Draw ``data.train`` and ``data.test`` images and deal the former to ``federation.clients`` participants.

    Both draws keep the shares of the classes (:func:`stratified`). A source with fewer images gives all it has, and the
    report says so. Without a test set of its own, the source is split: if both wishes together exceed its images, the test
    set has at most a quarter of them, or what training leaves over if that is more.

    The dealing is that of :mod:`undertow.data.partition` with the classes as groups. HTB rounds the sizes of the Dirichlet
    shares and hands the images out in turn until they run out; here sizes are rounded by largest remainder, so that every
    image is dealt.

    Args:
        config: ``seed``, ``data`` and ``federation.clients`` are used.
        source: name of the data set.
        train: all its training images.
        test: its own test images, or None.
        names: of the classes, in order.
        notes: what else the report should say.
        augmented: crop and flip the training batches.

    Raises:
        UserError: no training image, fewer than participants, or a way of dealing that images have not.
    """
    options, clients = config.data, config.federation.clients
    pool, tested = (train, test) if test is not None else _split(config, train)
    if not len(pool) or not len(tested):
        raise UserError(
            f"data.name={source}: {len(pool)} training and {len(tested)} test images, each side needs one; give more images"
        )
    draw = rng(config.seed, "train images")
    rows = stratified(pool.labels, min(options.train, len(pool)), draw)
    if test is not None:
        tested = test.take(stratified(test.labels, min(options.test, len(test)), rng(config.seed, "test images")))
    groups = [np.flatnonzero(pool.labels[rows] == label) for label in range(len(names))]
    groups = [group for group in groups if len(group)]
    draw, kind = rng(config.seed, "partition"), options.partition.kind
    if kind == "iid":
        dealt = deal_iid(len(rows), clients, draw)
    elif kind == "dirichlet":
        dealt = deal_dirichlet([group.tolist() for group in groups], clients, options.partition.alpha, draw)
    elif kind == "key":
        dealt = deal_groups([group.tolist() for group in groups], clients)
    else:
        raise UserError(f"data.partition={kind}: images are not read from one file a client; use iid, dirichlet or key")
    report: dict[str, Any] = {
        "dataset": source,
        **notes,
        "images": len(train) + (0 if test is None else len(test)),
        "own_test": test is not None,
        "partition": options.partition.model_dump(mode="json"),
    }
    for side, asked, given in (("train", options.train, len(rows)), ("test", options.test, len(tested))):
        if given < asked:
            report[f"{side}_fewer"] = f"data.{side}={asked} asked for, {source} has {given}"
    held = [rows[part].tolist() for part in dealt]
    population = ImagePopulation(pool, tested, names, held, report, test is not None, augmented)
    report.update(population._counts())
    return population


def stratified(labels: NDArray[np.int64], count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Draw ``count`` rows without replacement so that each class keeps its share (exact to less than one row).

    Args:
        labels: int64 ``[n]``.
        count: at most n.
        draw: source of the random numbers.

    Returns:
        Ascending row numbers, int64 ``[count]``.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if not count:
        return np.zeros(0, dtype=np.int64)
    wanted = largest_remainder(count, counts / counts.sum())
    drawn = [draw.permutation(np.flatnonzero(labels == label))[:n] for label, n in zip(classes, wanted, strict=True)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _split(config: Config, images: Images) -> tuple[Images, Images]:
    """Split the test set off; return (training pool, test set), both in the source's order."""
    n = len(images)
    count = min(config.data.test, max(n // 4, n - config.data.train))
    tested = stratified(images.labels, count, rng(config.seed, "split"))
    return images.take(np.setdiff1d(np.arange(n), tested)), images.take(tested)


def _by_class(labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}
