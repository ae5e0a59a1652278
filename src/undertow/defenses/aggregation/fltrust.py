"""FLTrust: clients weigh as much as they agree with an update the server trained itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import combination, lengths, products
from undertow.defenses.aggregation.space import SPACES, InSpace, gram
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import one_of, whole
from undertow.defenses.registry import DEFENSES


@DEFENSES.register(
    "fltrust", source="Cao et al. 2021, FLTrust: Byzantine-robust FL via Trust Bootstrapping (NDSS), arXiv 2012.13995"
)
class FLTrust(InSpace, Aggregator):
    """Rescale each update to the length of a trusted one and average by the positive part of the cosine with it.

    With the trusted update u: t_i = max(0, cos(U_i, u)); delta = sum_i t_i (|u| / |U_i|) U_i / sum_i t_i. Where no client agrees
    with u, delta = 0 and the model stays, which the paper leaves open. A zero update has t = 0. Defined for K >= 1.

    The paper's server trains u on about 100 clean samples of its own. Called alone, the aggregator gets u as ``trusted=``. A run
    has no such data, so that ``client`` must name a client that the server trusts: its update is u, and it is not averaged. If its
    data is poisoned, so is u.

    Args:
        client: number of the trusted client, from 0; ``None`` = u is given. It must take part in every round.
        space: as Krum's: where cosines and lengths are taken; delta is the same weighted sum of (A, B).
    """

    def __init__(self, client: int | None = None, space: str = "adapter") -> None:
        self.client = None if client is None else whole("client", client)
        self.space = one_of("space", space, SPACES)

    @property
    def needs_trusted(self) -> bool:
        """Whether u must be given."""
        return self.client is None

    def check(self, k: int) -> None:
        """Refuse K < 2 where one of them is the trusted client."""
        super().check(k)
        if self.client is not None and k < 2:
            raise UserError(
                f"FLTrust with client = {self.client} needs another client to average, but there is {k}; use more clients"
            )

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``; the report holds the ``trust`` t of each row of ``updates [K, D]``, None for the trusted
        client's.

        Raises:
            UserError: no trusted update, or the trusted client took no part.
        """
        root, own = self._root(updates, context)
        if self.space == "adapter":
            inner, far, length = products(updates, root), lengths(updates), float(lengths(root[None])[0])
        else:
            whole_gram = gram(torch.cat([updates, root[None].to(updates.device)]), context)
            far = whole_gram.diagonal().clamp(min=0).sqrt()
            inner, far, length = whole_gram[:-1, -1], far[:-1], float(far[-1])
        usable = (far > 0) & (length > 0)
        safe = torch.where(usable, far, 1.0)
        trust = torch.where(usable, inner / safe / (length or 1.0), 0.0).clamp(min=0.0, max=1.0)
        if own is not None:
            trust[own] = 0.0
        total = float(trust.sum())
        weights = trust * length / safe / total if total > 0 else torch.zeros_like(trust)
        told: list[float | None] = [float(value) for value in trust]
        if own is not None:
            told[own] = None
        return combination(updates, weights), {"trust": told, "kept_model": total == 0}

    def _root(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, int | None]:
        if self.client is None:
            if context.trusted is None:
                raise UserError(
                    "FLTrust needs an update from trusted data; give trusted=[D], or client = a client whose data you trust"
                )
            return context.trusted.to(updates.device), None
        if context.clients is None or self.client not in context.clients:
            raise UserError(
                f"FLTrust trusts client {self.client}, but it has no row in round {context.round}; set federation.participation=1 "
                "and do not put bucketing before it"
            )
        own = list(context.clients).index(self.client)
        return updates[own], own
