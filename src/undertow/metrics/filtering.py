"""What became of the clients' samples: how much of the poison a defense took out, and how much else with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from undertow.data.sample import Sample, Touched
from undertow.metrics.intervals import Rate


def filtering(
    before: Sequence[Sequence[Sample]], left: Sequence[Sequence[Sample | None]], touched: Sequence[Touched]
) -> dict[str, Any]:
    """Compare what the clients train on with the ground truth.

    Args:
        before: each client's samples as they were poisoned.
        left: what is left of each, in the same order: itself, a changed sample, or None for a dropped one.
        touched: the ground truth.

    Returns:
        ``recall`` = poisoned samples dropped or changed / poisoned samples; ``lost`` = clean samples dropped or changed / clean
        samples; ``precision`` = poisoned / all samples dropped or changed; rates with n and interval. ``changed`` counts the
        samples that stayed with another text. ``clients`` gives the same counts by client: ``samples``, ``poison``, ``caught``,
        ``lost``.
    """
    poison = {(one.client, one.index) for one in touched}
    clients = []
    changed = 0
    for k, (old, new) in enumerate(zip(before, left, strict=True)):
        acted = [i for i, (one, other) in enumerate(zip(old, new, strict=True)) if other is None or other != one]
        changed += sum(new[i] is not None for i in acted)
        caught = sum((k, i) in poison for i in acted)
        own = sum(client == k for client, _ in poison)
        clients.append({"client": k, "samples": len(old), "poison": own, "caught": caught, "lost": len(acted) - caught})
    total = {key: sum(client[key] for client in clients) for key in ("samples", "poison", "caught", "lost")}
    return {
        "recall": Rate(total["caught"], total["poison"]).as_dict(),
        "precision": Rate(total["caught"], total["caught"] + total["lost"]).as_dict(),
        "lost": Rate(total["lost"], total["samples"] - total["poison"]).as_dict(),
        "changed": changed,
        "clients": clients,
    }
