"""Bucketing: means of random groups of clients in place of the clients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import group_means
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "bucketing",
    source="Karimireddy, He, Jaggi 2022, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing (ICLR)",
)
class Bucketing(PreAggregator):
    """Shuffle the updates, cut them into buckets of s, and hand on the mean of each bucket.

    Row i becomes the mean of U_p(is+1) ... U_p(is+s) for a random order p of the clients; the last bucket may hold fewer. The
    mean is plain, and a bucket's count is the sum of its clients'. ceil(K / s) rows are handed on; they are no single
    clients any more, so that aggregators that remember clients refuse them. s = 1 only shuffles. The order is new in each round,
    from the run's seed. Defined for K >= 1.

    Args:
        s: clients in a bucket, s >= 1; the paper advises 2.
        then: outside a run, what comes next; see :class:`~undertow.defenses.aggregation.pre_aggregator.PreAggregator`.
    """

    def __init__(self, s: int = 2, then: Aggregator | PreAggregator | None = None) -> None:
        super().__init__(then)
        self.s = whole("s", s, least=1)

    def rows(self, k: int) -> int:
        """Return ceil(K / s)."""
        return -(-k // self.s)

    def mix(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, ServerContext, dict[str, Any]]:
        """Return the means ``[ceil(K / s), D]`` of the buckets; the report holds the rows of ``updates [K, D]`` in each."""
        k = updates.shape[0]
        order = context.draw.permutation(k).tolist()
        buckets = [sorted(order[start : start + self.s]) for start in range(0, k, self.s)]
        counts = [sum(context.counts[i] for i in bucket) for bucket in buckets]
        return group_means(updates, buckets), replace(context, counts=counts, clients=None), {"buckets": buckets}
