"""Clients with different networks: families that share a network, side by side in one state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.core.layout import Layout
from undertow.models.net import Net


@dataclass(frozen=True)
class Part:
    """One family in a round.

    Attributes:
        rows: of the round's update matrix that belong to it.
        columns: of the state.
        layout: of these columns.
    """

    rows: list[int]
    columns: slice
    layout: Layout


class Families:
    """Networks dealt to clients in turn; a state is the families' states one after another.

    Args:
        nets: at least one.

    Attributes:
        nets: as given.
        columns: of each family's state in the whole.
        layout: of the whole state; with several families a name begins with the family's number.
    """

    def __init__(self, nets: Sequence[Net]) -> None:
        self.nets = list(nets)
        ends = torch.tensor([net.layout.size for net in nets]).cumsum(0).tolist()
        self.columns = [slice(end - net.layout.size, end) for net, end in zip(nets, ends, strict=True)]
        if len(nets) == 1:
            self.layout = nets[0].layout
        else:
            named = {f"{i}.{slot.name}": slot.shape for i, net in enumerate(nets) for slot in net.layout.slots}
            self.layout = Layout.of(named)

    def __len__(self) -> int:
        return len(self.nets)

    def of(self, client: int) -> int:
        """Return the family of a client: clients take the networks in turn."""
        return client % len(self.nets)

    def initial(self) -> Tensor:
        """Return the state of the networks as they were made, ``[D]``."""
        return torch.cat([net.initial() for net in self.nets])

    def parts(self, clients: Sequence[int]) -> list[Part]:
        """Return who belongs to which family among the clients of a round; families without any are left out."""
        found = []
        for i, (net, columns) in enumerate(zip(self.nets, self.columns, strict=True)):
            rows = [row for row, k in enumerate(clients) if self.of(k) == i]
            if rows:
                found.append(Part(rows, columns, net.layout))
        return found

    def teachers(self, state: Tensor, updates: Tensor, clients: Sequence[int]) -> list[tuple[Net, Tensor]]:
        """Return every client's network and the state ``[D]`` it sent, given the global state and the updates ``[K, D]``."""
        found = []
        for k, row in zip(clients, updates, strict=True):
            own = self.columns[self.of(k)]
            found.append((self.nets[self.of(k)], (state[own] + row[own].to(state)).to(state)))
        return found
