"""What clients train on, and what they send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.data.examples import Examples
from undertow.data.template import Encoded

#: Training samples in the form that a task's networks take.
Items = list[Encoded] | Examples


def some(items: Items, indices: NDArray[np.int64]) -> Items:
    """Return the samples at ``indices``, in that order."""
    return items.take(indices) if isinstance(items, Examples) else [items[int(i)] for i in indices]


@dataclass(frozen=True)
class ClientUpdates:
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

    def only(self, rows: Sequence[int]) -> ClientUpdates:
        """Return some of the rows."""
        pick = [list(part) for part in zip(*((self.clients[i], self.counts[i], self.losses[i]) for i in rows), strict=True)]
        return ClientUpdates(pick[0], self.updates[list(rows)], pick[1], pick[2], self.reports)

    @staticmethod
    def join(parts: Sequence[ClientUpdates]) -> ClientUpdates:
        """Return all rows of ``parts`` in the order of the clients."""
        full = [part for part in parts if part.clients]
        if len(full) == 1:
            return full[0]
        rows = sorted((k, p, i) for p, part in enumerate(full) for i, k in enumerate(part.clients))
        return ClientUpdates(
            [k for k, _, _ in rows],
            torch.stack([full[p].updates[i] for _, p, i in rows]),
            [full[p].counts[i] for _, p, i in rows],
            [full[p].losses[i] for _, p, i in rows],
            [report for part in full for report in part.reports],
        )
