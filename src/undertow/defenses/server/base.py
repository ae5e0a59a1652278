"""Defenses on the server's new state: after aggregation the server prunes, tunes or bounds the global model before it is sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from undertow.defenses.base import Defense
from undertow.defenses.contexts import ServerContext

if TYPE_CHECKING:
    from undertow.models.bounds import Bounds


class ServerDefense(Defense, ABC):
    """Base of the defenses on the server's new state: a subclass writes :meth:`guard`.

    One that needs the model itself derives from :class:`~undertow.defenses.base.NeedsModel` too.
    """

    kind = "server"

    @abstractmethod
    def guard(self, adapter: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the global adapter ``[D]`` to send out, and a report. Runs after aggregation."""

    def bounds(self) -> Bounds | None:
        """Return the activation bounds that belong to the model that :meth:`guard` saw last; None without.

        A task over tensors applies them wherever it measures the model, and saves them beside it.
        """
        return None
