"""How training samples are dealt to the clients: pure functions from one list to one list per client.

Every function returns a partition in the strict sense: each sample lands on exactly one client, and no client
is left empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from undertow.config import ClassPartition, Partition
from undertow.core.errors import UserError
from undertow.data.sample import Sample


def partition(samples: Sequence[Sample], clients: int, options: Partition, draw: np.random.Generator) -> list[list[Sample]]:
    """Deal ``samples`` as ``options`` say.

    Args:
        samples: the training samples, at least one per client; all kinds but iid need a ``group``.
        clients: number of clients K, at least 1.
        options: ``kind`` and its numbers (kind files is no dealing: each client has its own file).
        draw: source of the random numbers.

    Returns:
        K non-empty lists that together hold every sample once.

    Raises:
        UserError: fewer samples (for ``key``, groups; for ``shards``, samples a shard) than clients, or a sample without a group.
    """
    _enough(len(samples), clients)
    groups = [list(range(len(samples)))] if options.kind == "iid" else list(_groups(samples, options.kind).values())
    return [[samples[i] for i in part] for part in deal(groups, clients, options, draw)]


def deal(
    groups: Sequence[Sequence[int]], clients: int, options: Partition | ClassPartition, draw: np.random.Generator
) -> list[list[int]]:
    """Deal numbered samples as ``options`` say: what images, texts and questions share.

    Args:
        groups: the numbers 0 to n - 1, each in one group; groups in the order of their classes or names, empty ones included.
        clients: number of clients K, at least 1.
        options: ``kind`` and its numbers.
        draw: source of the random numbers.

    Returns:
        K non-empty lists that together hold every number once.

    Raises:
        UserError: as :func:`partition`.
        ValueError: kind files, which deals nothing.
    """
    filled = [group for group in groups if len(group)]
    if options.kind == "iid":
        return deal_iid(sum(map(len, filled)), clients, draw)
    if options.kind == "dirichlet":
        return deal_dirichlet(filled, clients, options.alpha, draw)
    if options.kind == "key":
        return deal_groups(filled, clients)
    if options.kind == "shards":
        return deal_shards(filled, clients, options.shards, draw)
    if options.kind == "halves":
        return deal_halves(groups, clients, options.skew, draw)
    raise ValueError(f"partition kind '{options.kind}' does not deal samples")


def shares(sizes: Sequence[int], most: int) -> list[int]:
    """Return how many rows each client keeps of its own, ``most`` in all: the same number each, or all that it has.

    What a small client leaves is for the others; of a remainder the first clients get one more. Without too many rows all stay.

    Raises:
        UserError: fewer than one for each client.
    """
    if sum(sizes) <= most:
        return list(sizes)
    if most < len(sizes):
        raise UserError(
            f"data.train={most} is less than one row for each of {len(sizes)} clients; raise it to {len(sizes)} or more"
        )
    kept = [0] * len(sizes)
    while (left := most - sum(kept)) > 0:
        open_ = [k for k, size in enumerate(sizes) if kept[k] < size]
        for place, k in enumerate(open_):
            kept[k] += min(sizes[k] - kept[k], left // len(open_) + (place < left % len(open_)))
    return kept


def deal_iid(count: int, clients: int, draw: np.random.Generator) -> list[list[int]]:
    """Return the numbers 0 to ``count - 1`` in random order, cut into ``clients`` parts whose sizes differ by one at most (FIT
    4.1).

    Raises:
        UserError: fewer samples than clients.
    """
    _enough(count, clients)
    return [[int(i) for i in part] for part in np.array_split(draw.permutation(count), clients)]


def deal_dirichlet(groups: Sequence[Sequence[int]], clients: int, alpha: float, draw: np.random.Generator) -> list[list[int]]:
    """Spread each group over the clients with its own shares p ~ Dir(alpha, ..., alpha) (Hsu et al. 2019, section 3).

    A group of n samples gives client k exactly floor(n p_k) of them, and the rest one by one to the largest
    remainders (:func:`largest_remainder`). Which samples those are is drawn at random. A client that gets nothing
    at all receives one sample from the largest client (:func:`fill_empty`).

    Args:
        groups: sample numbers, each in one group.
        clients: number of clients.
        alpha: concentration, > 0; towards 0 a group goes to one client, towards infinity it is spread evenly.
        draw: source of the random numbers.

    Returns:
        One ascending list of sample numbers per client.

    Raises:
        UserError: fewer samples than clients.
    """
    _enough(sum(map(len, groups)), clients)
    dealt: list[list[int]] = [[] for _ in range(clients)]
    for members in groups:
        counts = largest_remainder(len(members), _shares(clients, alpha, draw))
        cuts = np.cumsum(counts)[:-1]
        for client, part in zip(dealt, np.split(draw.permutation(members), cuts), strict=True):
            client.extend(int(i) for i in part)
    return [sorted(client) for client in fill_empty(dealt)]


def deal_groups(groups: Sequence[Sequence[int]], clients: int) -> list[list[int]]:
    """Give whole groups to clients: the largest group still left goes to the client with the fewest samples.

    Ties go to the group that stands first and to the client with the lowest index, so nothing is random.

    Returns:
        One ascending list of sample numbers per client.

    Raises:
        UserError: fewer groups than clients.
    """
    if len(groups) < clients:
        raise UserError(
            f"data.partition kind=key: {len(groups)} groups for {clients} clients, each client needs a whole group; "
            f"set federation.clients={len(groups)} or less, or data.partition=dirichlet"
        )
    dealt: list[list[int]] = [[] for _ in range(clients)]
    for members in sorted(groups, key=len, reverse=True):
        min(dealt, key=len).extend(members)
    return [sorted(client) for client in dealt]


def deal_shards(groups: Sequence[Sequence[int]], clients: int, shards: int, draw: np.random.Generator) -> list[list[int]]:
    """Cut the samples, sorted by group, into ``clients * shards`` equal pieces and give each client ``shards`` of them at random.

    McMahan et al. 2017, section 3 (200 pieces of 300, two a client). Within a group the order is random. Sizes of pieces differ by
    one at most. A client has samples of few groups, at most two a piece where every group is larger than a piece.

    Returns:
        One ascending list of sample numbers per client.

    Raises:
        UserError: fewer samples than pieces.
    """
    total, count = sum(map(len, groups)), clients * shards
    if total < count:
        raise UserError(
            f"data.partition kind=shards: {total} samples for {clients} x {shards} shards, each needs one; "
            "raise data.train, or lower federation.clients or data.partition.shards"
        )
    pieces = np.array_split(np.concatenate([draw.permutation(group) for group in groups]), count)
    order = draw.permutation(count)
    return [sorted(int(i) for j in order[k * shards : (k + 1) * shards] for i in pieces[j]) for k in range(clients)]


def deal_halves(groups: Sequence[Sequence[int]], clients: int, skew: float, draw: np.random.Generator) -> list[list[int]]:
    """Give the first half of the clients the share ``skew`` of the upper half of the groups and 1 - ``skew`` of the lower half.

    With two classes and 0.7 this is FM-FL's SST-2 (the code of Li, Wu, Wang 2024): 70 % of the positive and 30 % of the negative
    samples to the first half of the clients, the rest to the others. Shares are rounded to whole samples. With an odd number of
    groups the middle one counts as lower, with an odd number of clients the first half is the smaller one. Within a half the
    samples are dealt at random in equal parts. A client that gets nothing takes one sample from the largest (:func:`fill_empty`).

    Args:
        groups: sample numbers, each in one group; the upper half are those from number ceil(C / 2) on, empty ones counted.
        clients: number of clients, at least 2.
        skew: 0 to 1.
        draw: source of the random numbers.

    Returns:
        One ascending list of sample numbers per client.

    Raises:
        UserError: one client, or fewer samples than clients.
    """
    _enough(sum(map(len, groups)), clients)
    if clients < 2:
        raise UserError("data.partition kind=halves: one client has no halves; set federation.clients=2 or more")
    first: list[int] = []
    second: list[int] = []
    for i, members in enumerate(groups):
        share = skew if 2 * i >= len(groups) else 1 - skew
        count, _ = largest_remainder(len(members), np.array([share, 1 - share]))
        mixed = [int(j) for j in draw.permutation(members)]
        first += mixed[:count]
        second += mixed[count:]
    half = clients // 2
    dealt = [
        [int(j) for j in part]
        for members, k in ((first, half), (second, clients - half))
        for part in np.array_split(draw.permutation(np.array(members, dtype=np.int64)), k)
    ]
    return [sorted(client) for client in fill_empty(dealt)]


def largest_remainder(total: int, shares: np.ndarray) -> list[int]:
    """Whole numbers that sum to ``total`` and differ from ``total * shares`` by less than one each.

    Args:
        total: how many there are to give, at least 0.
        shares: [K] non-negative, summing to 1.

    Returns:
        K counts; equal remainders favour the lower index.
    """
    exact = total * np.asarray(shares, dtype=np.float64)
    counts = np.floor(exact).astype(int)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return [int(count) for count in counts]


def fill_empty(dealt: list[list[int]]) -> list[list[int]]:
    """Repair a dealing in which clients hold nothing; deterministic.

    From the lowest empty client upwards, each takes the last sample of the client that then holds the most (the
    lowest index among equals). With at least as many samples as clients this always succeeds.
    """
    filled = [list(client) for client in dealt]
    for client in filled:
        if not client:
            client.append(max(filled, key=len).pop())
    return filled


def _shares(clients: int, alpha: float, draw: np.random.Generator) -> np.ndarray:
    shares = draw.dirichlet(np.full(clients, min(alpha, 1e9)))
    if np.isfinite(shares).all() and abs(shares.sum() - 1) < 1e-6:
        return shares
    # alpha so small that every gamma draw underflows: the limit gives the whole group to one client
    only = np.zeros(clients)
    only[draw.integers(clients)] = 1.0
    return only


def _groups(samples: Sequence[Sample], kind: str) -> dict[str, list[int]]:
    """Indices of each group's samples, groups in the order of their names."""
    found: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        if not sample.group:
            raise UserError(
                f"data.partition kind={kind}: sample {sample.id} has no group to split by; "
                "name a column with data.partition.column (instructions, hub), use a dataset with relations, or set "
                "data.partition=iid"
            )
        found.setdefault(sample.group, []).append(i)
    return {name: found[name] for name in sorted(found)}


def _enough(samples: int, clients: int) -> None:
    if samples < clients:
        raise UserError(
            f"{samples} training samples for {clients} clients, each client needs one; raise data.train or lower federation.clients"
        )
