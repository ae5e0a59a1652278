"""Nearest-neighbour mixing: each update becomes the mean of those around it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import group_means
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.aggregation.space import SPACES, InSpace, squares_in
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import one_of, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register("nnm", source="Allouah et al. 2023, Fixing by Mixing (AISTATS)")
class NearestNeighborMixing(InSpace, PreAggregator):
    """Hand on, for each client, the mean of the K - f updates nearest to its own, which itself is one of.

    U'_i = mean of U_j over the K - f rows j with the smallest |U_i - U_j|, equal distances by row number. K rows are handed
    on, with the counts they had. Defined for 2f < K. The new rows take the memory of a second matrix.

    Args:
        f: clients that may be bad, 0 <= f < K / 2; ``None`` = floor((K - 3) / 2), at least 0, as for Krum.
        space: as Krum's; in ``delta_w`` neighbours are found there, and their mean is still that of (A, B).
        then: outside a run, what comes next; see :class:`~undertow.defenses.aggregation.pre_aggregator.PreAggregator`.
    """

    def __init__(self, f: int | None = None, space: str = "adapter", then: Aggregator | PreAggregator | None = None) -> None:
        super().__init__(then)
        self.f = None if f is None else whole("f", f)
        self.space = one_of("space", space, SPACES)

    def check(self, k: int) -> None:
        """Refuse K <= 2f."""
        super().check(k)
        if self.f is not None and k <= 2 * self.f:
            raise UserError(
                f"NearestNeighborMixing with f = {self.f} needs more than 2f = {2 * self.f} clients, but there are {k}; give f "
                f"from 0 to {(k - 1) // 2}, or more clients"
            )

    def mix(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, ServerContext, dict[str, Any]]:
        """Return the mixed rows ``[K, D]``; the report holds f and the ``neighbors`` of each row of ``updates [K, D]``."""
        k = updates.shape[0]
        f = max(0, (k - 3) // 2) if self.f is None else self.f
        squares = squares_in(self.space, updates, context).fill_diagonal_(-1.0)  # each is its own nearest, copies or not
        neighbors = [sorted(row) for row in squares.argsort(dim=1, stable=True)[:, : k - f].tolist()]
        return group_means(updates, neighbors), context, {"f": f, "neighbors": neighbors}
