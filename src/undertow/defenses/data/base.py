"""Defenses on the data: before round 1 each client filters or repairs its own samples, alone or by sums over all clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undertow.data.sample import Sample
from undertow.defenses.base import NeedsModel
from undertow.defenses.contexts import ExchangeContext, TrainingContext


class DataDefense(NeedsModel, ABC):
    """Base of the defenses on the data: a subclass writes :meth:`sanitize`, and :meth:`share` where clients add up counts first."""

    kind = "data"

    def share(self, samples: Sequence[Sample], context: ExchangeContext) -> NDArray[np.uint32] | None:
        """Return a client's message of the next exchange, or None when there is none left, for all clients alike.

        A message is an array of 32-bit numbers, as long for all clients. Nothing but the sum of all messages (modulo 2^32) is used,
        so that a network engine can add them up secretly. Runs before :meth:`sanitize`, on every client in every exchange.
        """
        return None

    def pool(self, total: NDArray[np.uint32], pooled: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """Return what the server sends to all clients of a sum of messages, given what it sent in the exchanges before."""
        return total

    @abstractmethod
    def sanitize(self, samples: Sequence[Sample], context: TrainingContext) -> tuple[Sequence[bool | Sample], dict[str, Any]]:
        """Return for each sample whether the client keeps it, or what it trains on in its place, and a report.

        Runs on every client once, before round 1.
        """

    @property
    def shares(self) -> bool:
        """Whether the class writes :meth:`share`, so that the clients exchange counts before it sanitizes."""
        return type(self).share is not DataDefense.share
