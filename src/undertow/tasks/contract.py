"""What the method asks of a task: data dealt to clients, their training, what an attacker needs, and measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.config import Config
from undertow.core.layout import Layout
from undertow.data.examples import Examples
from undertow.data.template import Encoded
from undertow.defenses.contexts import NetSetting, Setting
from undertow.tasks.families import Part

#: Training samples in the form that a task's networks take.
Items = list[Encoded] | Examples


def some(items: Items, indices: NDArray[np.int64]) -> Items:
    """Return the samples at ``indices``, in that order."""
    return items.take(indices) if isinstance(items, Examples) else [items[int(i)] for i in indices]


@dataclass(frozen=True)
class Local:
    """What the clients of a round send.

    Attributes:
        clients: who, ascending.
        updates: ``U [K, D]``, row k = the state of ``clients[k]`` after its training minus the global one.
        counts: samples n_k each trained on, as it reports them.
        losses: mean training loss of each over its steps.
        reports: of the defenses that took part.
    """

    clients: list[int]
    updates: Tensor
    counts: list[int]
    losses: list[float]
    reports: list[dict[str, Any]] = field(default_factory=list)

    def only(self, rows: Sequence[int]) -> Local:
        """Return some of the rows."""
        pick = [list(part) for part in zip(*((self.clients[i], self.counts[i], self.losses[i]) for i in rows), strict=True)]
        return Local(pick[0], self.updates[list(rows)], pick[1], pick[2], self.reports)

    @staticmethod
    def join(parts: Sequence[Local]) -> Local:
        """Return all rows of ``parts`` in the order of the clients."""
        full = [part for part in parts if part.clients]
        if len(full) == 1:
            return full[0]
        rows = sorted((k, p, i) for p, part in enumerate(full) for i, k in enumerate(part.clients))
        return Local(
            [k for k, _, _ in rows],
            torch.stack([full[p].updates[i] for _, p, i in rows]),
            [full[p].counts[i] for _, p, i in rows],
            [full[p].losses[i] for _, p, i in rows],
            [report for part in full for report in part.reports],
        )


class Task(ABC):
    """One task with its data, poison included: fixed before round 1.

    Attributes:
        config: of the run.
    """

    config: Config

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Names the columns of state and updates."""

    @property
    @abstractmethod
    def affected(self) -> Sequence[int]:
        """Clients that hold poison (ground truth, for metrics and for the attacker they belong to)."""

    @property
    @abstractmethod
    def chosen(self) -> Sequence[int]:
        """Clients drawn to hold poison; where PR is too small for one sample, :attr:`affected` lacks some of them."""

    @property
    def extra(self) -> Mapping[str, Any]:
        """Further figures for the run's result, such as what a filter found."""
        return {}

    @property
    def trained(self) -> int:
        """How many of the first columns are parameters; what follows training moves by itself, such as running means."""
        return self.layout.size

    @property
    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """Training samples of each client, without reading them."""

    @property
    def setting(self) -> Setting | None:
        """What every party knows, where defenses can use it."""
        return None

    @property
    def network(self) -> NetSetting | None:
        """What the server knows, on a task over tensors."""
        return None

    def parts(self, clients: Sequence[int]) -> list[Part] | None:
        """Return the families of the clients of a round, None where all have one network."""
        return None

    def trusted(self, state: Tensor, t: int) -> Tensor | None:
        """Return an update ``[D]`` that the server trains itself from the global state ``[D]``; None where it has no data."""
        return None

    def fuse(self, state: Tensor, delta: Tensor, sent: Local, t: int) -> tuple[Tensor, dict[str, Any] | None]:
        """Return the new global state ``[D]`` of the old one and the aggregated change, and a report of what else was done."""
        return state + delta, None

    def forecast(self, chosen: Sequence[int], rounds: int) -> str | None:
        """Return one line on the memory and time that ``rounds`` rounds will take, None where that is not known."""
        return None

    @abstractmethod
    def initial(self) -> Tensor:
        """Return the global state before round 1, ``[D]``."""

    @abstractmethod
    def train(self, state: Tensor, chosen: Sequence[int], t: int, poisoned: Collection[int]) -> Local:
        """Let honest clients train from the global state ``[D]`` in round ``t``, those in ``poisoned`` on data that hold poison."""

    def twins(self, state: Tensor, chosen: Sequence[int], t: int) -> Tensor | None:
        """Return the updates ``[K, D]`` of the same clients from their data without poison, for BSNR; None where not asked for."""
        return None

    @abstractmethod
    def items(self, clients: Sequence[int]) -> Items:
        """Return what compromised clients hold together: their own samples, PR of them poisoned."""

    @abstractmethod
    def backdoor(self, clients: Sequence[int]) -> Items:
        """Return the poisoned ones of :meth:`items`."""

    @abstractmethod
    def losses(self, stack: Tensor, block: Sequence[Items]) -> Tensor:
        """Return the mean loss ``[K]`` of each row of ``stack [K, D]`` on its own samples, differentiable."""

    @abstractmethod
    def measure(self, state: Tensor | None, t: int, n: int, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the scored outputs after round ``t``, on the first ``n`` test samples of each kind (0 = all).

        Args:
            state: global, ``[D]``; None for the model that the run began with.
            t: the round; 0 for the start.
            n: how many.
            reports: is given what defenses report of the answering.
        """

    @abstractmethod
    def rates(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return MA, ASR, FTR and what else the task measures, of one round's scored outputs."""

    @abstractmethod
    def recall(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take the scored outputs of earlier rounds, where they make the next measurement faster."""

    @abstractmethod
    def describe(self, folder: Path) -> dict[str, Any]:
        """Write the ground truth of the poison into the run directory and return what its ``data.json`` holds."""

    @abstractmethod
    def poison_counts(self) -> dict[str, int]:
        """Return ``clients`` with poison, poisoned ``samples``, all training samples as ``total``, and ``unknown`` where others hold them."""

    @abstractmethod
    def save(self, folder: Path, state: Tensor) -> None:
        """Write the final global state ``[D]`` into the run directory in a format others read."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the clients train."""
