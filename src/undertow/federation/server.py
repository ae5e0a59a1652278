"""From clients' updates to the new global state: FedAvg, the sum over all clients, or a rule; by family where networks differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from undertow.config import Federation
from undertow.defenses import composition
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.base import Defense
from undertow.defenses.contexts import ServerContext
from undertow.defenses.seam import ask_pair, check_vector
from undertow.defenses.server.base import ServerDefense
from undertow.tasks.families import Part


def fedavg(updates: Tensor, counts: Sequence[int]) -> Tensor:
    """Return Σ_k n_k·U_k / Σ_k n_k, ``[D]`` float32, summed in float64 (McMahan et al. 2017, Algorithm 1)."""
    delta = torch.zeros(updates.shape[1], dtype=torch.float64)
    for row, count in zip(updates, counts, strict=True):
        delta += (count / sum(counts)) * row.to(torch.float64)
    return delta.to(updates.dtype)


def sum_of_all(updates: Tensor, rate: float, clients: int) -> Tensor:
    """Return (η / n)·Σ_k U_k, ``[D]``, n = all clients, whoever took part (Bagdasaryan et al. 2020, Eq. 1)."""
    return (updates.sum(dim=0, dtype=torch.float64) * (rate / clients)).to(updates.dtype)


def aggregate(
    updates: Tensor, defenses: Sequence[tuple[str, Defense]], context: ServerContext, options: Federation | None = None
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the global change ``[D]``: FedAvg, or the rule of the defense that replaces it, after what prepares the updates.

    Args:
        updates: ``[K, D]``.
        defenses: by name, in the order of the config.
        context: what the server has.
        options: where they set ``federation.global_lr`` η, (η / n)·Σ U takes the place of FedAvg, and a rule's answer, which stands
            for the mean of the K updates, is multiplied by K·η / n.
    """
    rate = options.global_lr if options else None
    if options is None or rate is None:
        return composition.aggregate(updates, defenses, context, fedavg)
    clients = options.clients
    delta, reports = composition.aggregate(updates, defenses, context, lambda rows, counts: sum_of_all(rows, rate, clients))
    by_rule = any(isinstance(defense, Aggregator) for _, defense in defenses)
    return delta * (len(updates) * rate / clients) if by_rule else delta, reports


def guard(
    adapter: Tensor, defenses: Sequence[tuple[str, Defense]], context: ServerContext, reports: list[dict[str, Any]]
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Let every defense look at the new global adapter, in order."""
    for name, defense in defenses:
        if isinstance(defense, ServerDefense):
            found, report = ask_pair(defense, "guard", "adapter [D]", adapter, context)
            check_vector(defense, "guard", found, len(adapter))
            adapter = found
            reports = [*reports, {"name": name, **report}]
    return adapter, reports


def aggregate_parts(
    updates: Tensor,
    defenses: Sequence[tuple[str, Defense]],
    context: ServerContext,
    parts: Sequence[Part] | None,
    options: Federation | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return :func:`aggregate` of each family of clients by itself, side by side; 0 for a family of which none takes part.

    Args:
        updates: ``[K, D]``; a row is 0 outside its family's columns.
        defenses: by name, in the order of the config.
        context: what the server has.
        parts: the families; None where all clients have one network.
        options: as :func:`aggregate`.
    """
    if parts is None:
        return aggregate(updates, defenses, context, options)
    delta, told = torch.zeros(updates.shape[1], dtype=updates.dtype), []
    for part in parts:
        own = replace(
            context,
            layout=part.layout,
            counts=[context.counts[row] for row in part.rows],
            adapter=context.adapter[part.columns],
            clients=None if context.clients is None else [context.clients[row] for row in part.rows],
            trusted=None if context.trusted is None else context.trusted[part.columns],
        )
        delta[part.columns], reports = aggregate(updates[part.rows][:, part.columns], defenses, own, options)
        told += reports
    return delta, told
