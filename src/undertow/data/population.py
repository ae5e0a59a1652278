"""Who holds which examples: the clients of a task over tensors, and its test set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from undertow.core.registry import Registry
from undertow.data.examples import Examples, Written

#: Sources of populations; one is a function ``(options: undertow.config.Data, seed: int, clients: int) -> Population`` with
#: parameters of its own after these.
POPULATIONS = Registry("population", "undertow.data.populations")


class Population(ABC):
    """Clients, of whom only those asked for need be in memory.

    Attributes:
        kind: what an input is: ``images``, ``words`` (each place of a text asked for) or ``text`` (classes of texts).
        about: what an input is, for the prompt of a generator, such as ``movie review``.
        ids: of kind text: how many numbers a text can hold, 0 for padding among them, as many as the network has embeddings; else
            None.
        names: what each class or word index is called, in order; as many as the network has outputs.
        test: held-out examples, disjoint from what any client holds.
        report: counts and sources for the run's record, JSON-serialisable, ``dataset`` among them.
    """

    kind: str
    about: str = "sample"
    ids: int | None = None
    names: Sequence[str]
    test: Examples
    report: dict[str, Any]

    @property
    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """How many examples each client holds, without reading them."""

    @property
    def public(self) -> Written | None:
        """Labelled data of the source that no client holds and no test asks about; None where there are none.

        What a small generator is made from, as a foundation model is from the world's texts and images.
        """
        return None

    @abstractmethod
    def client(self, k: int) -> Examples:
        """Return what client ``k`` holds; the same for every call."""

    def augment(self, examples: Examples, draw: np.random.Generator) -> Examples:
        """Return a batch as it is trained on; random crops and flips for images where the config asks for them."""
        return examples

    def without(self, indices: Sequence[int]) -> Population:
        """Return the population whose clients hold none of the training examples ``indices`` of :meth:`pool`.

        Raises:
            NotImplementedError: the population has no pool.
        """
        raise NotImplementedError

    @property
    def pool(self) -> Examples:
        """All training examples, numbered as a source numbers them: what an attacker with the public data set could have.

        Raises:
            NotImplementedError: the population has no pool.
        """
        raise NotImplementedError
