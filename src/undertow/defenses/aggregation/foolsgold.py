"""FoolsGold: clients whose histories look alike count less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import combination, cosine_distances
from undertow.defenses.base import Stateful
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number, one_of
from undertow.defenses.registry import DEFENSES

#: A cosine that is this close to 1 is 1: what is left is rounding.
SAME = 1e-12


@DEFENSES.register(
    "foolsgold", source="Fung, Yoon, Beschastnikh 2020, The Limitations of Federated Learning in Sybil Settings (RAID), FoolsGold"
)
class FoolsGold(Stateful, Aggregator):
    """Weigh each client down by the cosine of its accumulated updates with the most similar other client's.

    H_i = sum of client i's updates so far; c_ij = cos(H_i, H_j), m_i = max over j != i of c_ij; where m_i < m_j, c_ij is multiplied
    by m_i / m_j (pardoning); a_i = 1 - max_j c_ij, cut to [0, 1] and divided by the largest; a_i = kappa (ln(a_i / (1 - a_i)) +
    0.5), cut to [0, 1], with a_i = 1 staying 1. delta = (1 / K) sum_i a_i U_i. Clients of exactly one direction all get 0. Defined
    for K >= 2.

    The paper adds sum_i a_i U_i up without the 1 / K, as a step of SGD; ``divide`` says by what. It may compare only features that
    matter for the output; ``tensors`` names them. Benign clients of alike data are sybils to this rule.

    The object remembers: each call is the next round. :meth:`restore` with an empty state forgets. The memory, and each
    checkpoint, hold a vector for every client that ever took part.

    Args:
        kappa: confidence, > 0; 1 as in the paper.
        divide: ``clients`` by K, so that clients that all count fully are averaged; ``weights`` by sum_i a_i; ``none`` as in the
            paper.
        tensors: remember only tensors whose name holds this text, such as ``lora_B``; empty = all.
    """

    def __init__(self, kappa: float = 1.0, divide: str = "clients", tensors: str = "") -> None:
        self.kappa = number("kappa", kappa)
        self.divide = one_of("divide", divide, ("clients", "weights", "none"))
        self.tensors = tensors
        self._sums: dict[int, Tensor] = {}

    def check(self, k: int) -> None:
        """Refuse K < 2."""
        super().check(k)
        if k < 2:
            raise UserError(
                f"FoolsGold compares clients and needs at least 2, but there is {k}; use more clients or another aggregator"
            )

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``; the report holds the ``weights`` a of the rows of ``updates [K, D]``.

        Raises:
            UserError: rows that are not clients, no tensor of the name asked for, or another model than in the round before.
        """
        if context.clients is None:
            raise UserError(
                "FoolsGold remembers clients, but its rows are none, as after bucketing; leave out what comes before it"
            )
        slots = [slot for slot in context.layout.slots if self.tensors in slot.name]
        if not slots:
            raise UserError(
                f"FoolsGold with tensors = {self.tensors} finds none of that name; give a part of a name such as "
                f"{context.layout.slots[-1].name}"
            )
        seen = (
            updates
            if len(slots) == len(context.layout.slots)
            else torch.cat([updates[:, slot.start : slot.start + slot.size] for slot in slots], dim=1)
        )
        width = next((len(past) for past in self._sums.values()), seen.shape[1])
        if width != seen.shape[1]:
            raise UserError(f"FoolsGold got {seen.shape[1]} columns after {width}; use a new one for another model")
        dtype = torch.float64 if updates.dtype == torch.float64 else torch.float32
        sums = seen.to("cpu", dtype, copy=True)
        for row, client in zip(sums, context.clients, strict=True):
            if client in self._sums:
                row += self._sums[client]
        weights = self._weights(1 - cosine_distances(sums))
        # Each row on its own, so that a client that leaves does not keep the whole round in memory.
        self._sums |= {int(client): row.clone() for client, row in zip(context.clients, sums, strict=True)}
        total = {"clients": float(len(weights)), "weights": float(weights.sum()) or 1.0, "none": 1.0}[self.divide]
        return combination(updates, weights / total), {"weights": weights.tolist()}

    def _weights(self, similar: Tensor) -> Tensor:
        """Return a ``[K]`` from the cosines ``similar [K, K]``."""
        similar.fill_diagonal_(-torch.inf)
        most = similar.amax(dim=1)
        pardoned = (most[:, None] < most[None, :]) & (most[None, :] != 0)
        similar = torch.where(pardoned, similar * (most[:, None] / most[None, :]), similar).fill_diagonal_(-torch.inf)
        weights = (1 - similar.amax(dim=1)).clamp(0.0, 1.0)
        weights[weights < SAME] = 0.0
        largest = float(weights.max())
        if largest == 0:
            return weights
        weights /= largest
        return (self.kappa * (torch.log(weights / (1 - weights)) + 0.5)).clamp(0.0, 1.0)

    def state(self) -> dict[str, Tensor]:
        """Return the sums ``[N, P]`` of the N clients seen, in ascending order, and their numbers ``[N]``."""
        clients = sorted(self._sums)
        if not clients:
            return {}
        return {"clients": torch.tensor(clients), "sums": torch.stack([self._sums[client] for client in clients])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back the sums.

        Raises:
            UserError: the state is not this aggregator's.
        """
        if not state:
            self._sums = {}
            return
        clients, sums = state.get("clients"), state.get("sums")
        if (
            len(state) != 2
            or clients is None
            or sums is None
            or sums.ndim != 2
            or clients.shape != sums.shape[:1]
            or not bool(torch.isfinite(sums).all())
        ):
            raise UserError(
                f"FoolsGold cannot take back the state {', '.join(sorted(state))}; delete the run directory and run again"
            )
        self._sums = dict(zip((int(client) for client in clients), sums, strict=True))
