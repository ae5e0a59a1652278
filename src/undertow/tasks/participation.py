"""Who takes part in a round."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from undertow.core.errors import UserError
from undertow.core.rng import rng


def participants(share: float, seed: int, t: int, sizes: Sequence[int], surely: Collection[int] = ()) -> list[int]:
    """Return the clients of round ``t``, ascending: max(1, round(share·K)) of those that have data.

    Args:
        share: ``federation.participation``.
        seed: of the run.
        t: from 1.
        sizes: samples of each of the K clients.
        surely: clients that take part for certain, in place of as many of those drawn (a single-shot attack).

    Raises:
        UserError: no client has data, or more are to take part for certain than the round has places.
    """
    able = [k for k, size in enumerate(sizes) if size]
    if not able:
        raise UserError("no client has any sample left; use more data or a milder defense")
    count = min(len(able), max(1, round(share * len(sizes))))
    forced = [k for k in able if k in surely]
    if len(forced) > count:
        raise UserError(
            f"round {t} has {count} clients, but {len(forced)} attacking ones are to take part; raise federation.participation "
            "or lower attack.client_share"
        )
    if count == len(able):
        return able
    drawn: list[int] = rng(seed, "participants", t).choice(able, size=count, replace=False).tolist()
    others = [k for k in drawn if k not in forced]
    return sorted([*forced, *others[: count - len(forced)]])
