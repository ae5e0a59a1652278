"""Labelled samples in memory, dealt to clients: what image and text data sets become once their files are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from undertow.config import ClassificationData
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import Examples, Written
from undertow.data.partition import deal, fill_empty, largest_remainder
from undertow.data.population import Population


class Labelled(Protocol):
    """Samples as a source holds them."""

    @property
    def unit(self) -> str:
        """What samples are called in messages."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers from 0, int64 ``[n]``."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Self:
        """Return the samples at ``rows``, in that order."""
        ...

    def written(self) -> Written:
        """Return the samples as a generator of synthetic data gets them."""
        ...


T = TypeVar("T", bound=Labelled)


@dataclass(frozen=True)
class Source(Generic[T]):
    """A data set with classes, as its files give it.

    Attributes:
        name: of the data set.
        train: all its training samples.
        test: its own test samples, or None.
        names: of the classes, in order.
        notes: what else the report should say.
        about: what a sample is, for the prompt of a generator.
    """

    name: str
    train: T
    test: T | None
    names: Sequence[str]
    notes: Mapping[str, Any] = field(default_factory=dict)
    about: str = "text"


@dataclass(frozen=True)
class Dealt(Generic[T]):
    """Who gets what of a source.

    Attributes:
        pool: all training samples.
        test: drawn for the test.
        clients: for each client the rows of ``pool`` that it holds, no row twice.
        own_test: whether the source has a test set of its own; otherwise it was split off.
        report: counts for the run's record.
    """

    pool: T
    test: T
    clients: list[list[int]]
    own_test: bool
    report: dict[str, Any]

    @property
    def public(self) -> list[int]:
        """Rows of ``pool`` that no client holds, ascending."""
        return undealt(len(self.pool), self.clients)


def undealt(count: int, clients: Sequence[Sequence[int]]) -> list[int]:
    """Return the numbers from 0 below ``count`` that no client holds, ascending."""
    held = {row for rows in clients for row in rows}
    return [row for row in range(count) if row not in held]


def deal_samples(options: ClassificationData, seed: int, clients: int, source: Source[T]) -> Dealt[T]:
    """Draw ``data.train`` and ``data.test`` samples and deal the former to the clients.

    Both draws keep the shares of the classes (:func:`stratified`). A source with fewer samples gives all it has, and the
    report says so. Without a test set of its own, the source is split: if both wishes together exceed its samples, the test
    set has at most a quarter of them, or what training leaves over if that is more.

    The dealing is that of :mod:`undertow.data.partition` with the classes as groups. HTB rounds the sizes of the Dirichlet
    shares and hands the images out in turn until they run out; here sizes are rounded by largest remainder, so that every
    sample is dealt.

    Args:
        options: of the data.
        seed: of the run.
        clients: how many.
        source: the data set.

    Raises:
        UserError: no training sample, fewer than clients, or a way of dealing that such samples have not.
    """
    train, test, unit = source.train, source.test, source.train.unit
    pool, tested = (train, test) if test is not None else _split(options, seed, train)
    if not len(pool) or not len(tested):
        raise UserError(
            f"data.name={source.name}: {len(pool)} training and {len(tested)} test {unit}, each side needs one; give more {unit}"
        )
    rows = stratified(pool.labels, min(options.train, len(pool)), rng(seed, f"train {unit}"))
    if test is not None:
        tested = test.take(stratified(test.labels, min(options.test, len(test)), rng(seed, f"test {unit}")))
    groups = [np.flatnonzero(pool.labels[rows] == label).tolist() for label in range(len(source.names))]
    parts = deal(groups, clients, options.partition, rng(seed, "partition"))
    report: dict[str, Any] = {
        "dataset": source.name,
        **source.notes,
        unit: len(train) + (0 if test is None else len(test)),
        "own_test": test is not None,
        "partition": options.partition.model_dump(mode="json"),
    }
    for side, asked, given in (("train", options.train, len(rows)), ("test", options.test, len(tested))):
        if given < asked:
            report[f"{side}_fewer"] = f"data.{side}={asked} asked for, {source.name} has {given}"
    return Dealt(pool, tested, [rows[part].tolist() for part in parts], test is not None, report)


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


def _split(options: ClassificationData, seed: int, samples: T) -> tuple[T, T]:
    """Split the test set off; return (training pool, test set), both in the source's order."""
    n = len(samples)
    count = min(options.test, max(n // 4, n - options.train))
    tested = stratified(samples.labels, count, rng(seed, "split"))
    return samples.take(np.setdiff1d(np.arange(n), tested)), samples.take(tested)


class PoolPopulation(Population, Generic[T]):
    """Clients that share one pool of samples in memory; a subclass says how a sample becomes an input.

    Attributes:
        own_test: whether the source has a test set of its own; otherwise it was split off the training samples.
    """

    def __init__(self, dealt: Dealt[T], names: Sequence[str], test: Examples) -> None:
        """``test``: the test samples of ``dealt`` as inputs; ``names``: of the classes, in order."""
        self.names = list(names)
        self.test = test
        self.own_test = dealt.own_test
        self._train = dealt.pool
        self._clients = [list(rows) for rows in dealt.clients]
        self._public = dealt.public
        self.report = {**dealt.report, **self._counts()}

    @abstractmethod
    def _examples(self, rows: Sequence[int] | None) -> Examples:
        """Return samples of the pool as inputs, all of them for None."""

    @property
    def sizes(self) -> Sequence[int]:
        """How many samples each client holds."""
        return [len(rows) for rows in self._clients]

    def client(self, k: int) -> Examples:
        """Return what client ``k`` holds."""
        return self._examples(self._clients[k])

    @property
    def pool(self) -> Examples:
        """All training samples in the source's order, also those that were dealt to no client.

        Where the source has no test set of its own, the samples split off for testing are not among them.
        """
        return self._examples(None)

    @property
    def public(self) -> Written | None:
        """The training samples that were dealt to no client and that no backdoor holds out."""
        return self._train.take(self._public).written() if self._public else None

    def without(self, indices: Sequence[int]) -> Self:
        """Return the population whose clients hold none of the samples ``indices`` of :meth:`pool`; pool and test stay.

        A client that held nothing else takes one sample from the largest (:func:`undertow.data.partition.fill_empty`).

        Raises:
            UserError: fewer samples are left than there are clients.
        """
        gone = set(indices)
        left = [[row for row in rows if row not in gone] for rows in self._clients]
        total = sum(map(len, left))
        if total < len(left):
            raise UserError(
                f"{total} {self._train.unit} are left for {len(left)} clients once {len(gone)} are held out, each needs one; "
                "raise data.train or lower federation.clients"
            )
        changed = copy(self)
        changed._clients = fill_empty(left)
        changed._public = [row for row in self._public if row not in gone]
        return changed._told(set_aside=self.report.get("set_aside", 0) + sum(self.sizes) - total)

    def without_test(self, places: Sequence[int]) -> Self:
        """Return the population whose test set lacks the examples at ``places``."""
        gone = set(places)
        changed = copy(self)
        changed.test = self.test.take([place for place in range(len(self.test)) if place not in gone])
        return changed._told(test_set_aside=self.report.get("test_set_aside", 0) + len(self.test) - len(changed.test))

    def _told(self, **facts: int) -> Self:
        self.report = {**self.report, **facts, **self._counts()}
        return self

    def _counts(self) -> dict[str, Any]:
        held = [self._train.labels[rows] for rows in self._clients]
        return {
            "train": sum(self.sizes),
            "test": len(self.test),
            "public": len(self._public),
            "clients": self.sizes,
            "client_groups": [_by_class(labels, self.names) for labels in held],
            "train_classes": _by_class(np.concatenate(held), self.names),
            "test_classes": _by_class(self.test.labels.numpy(), self.names),
        }


def _by_class(labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}
