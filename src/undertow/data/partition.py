"""How training samples are dealt to the clients: pure functions from one list to one list per client.

Every function returns a partition in the strict sense: each sample lands on exactly one client, and no client
is left empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from undertow.config import Partition
from undertow.data.sample import Sample
from undertow.errors import UserError


def partition(samples: Sequence[Sample], clients: int, options: Partition, draw: np.random.Generator) -> list[list[Sample]]:
    """Deal ``samples`` as ``options`` say.

    Args:
        samples: the training samples, at least one per client.
        clients: number of clients K, at least 1.
        options: ``kind`` iid, dirichlet or key (kind files is no dealing: each client has its own file).
        draw: source of the random numbers.

    Returns:
        K non-empty lists that together hold every sample once.

    Raises:
        UserError: fewer samples (or, for ``key``, groups) than clients, or a sample without a group.
    """
    if options.kind == "iid":
        return iid(samples, clients, draw)
    if options.kind == "dirichlet":
        return dirichlet(samples, clients, options.alpha, draw)
    if options.kind == "key":
        return by_group(samples, clients)
    raise ValueError(f"partition kind '{options.kind}' does not deal samples")


def iid(samples: Sequence[Sample], clients: int, draw: np.random.Generator) -> list[list[Sample]]:
    """A random permutation cut into equal parts, sizes differing by one at most (FIT 4.1; cut as numpy's array_split).

    Raises:
        UserError: fewer samples than clients.
    """
    return [[samples[i] for i in part] for part in deal_iid(len(samples), clients, draw)]


def dirichlet(samples: Sequence[Sample], clients: int, alpha: float, draw: np.random.Generator) -> list[list[Sample]]:
    """Each group is spread over the clients with its own shares (:func:`deal_dirichlet`), groups in the order of their names.

    Args:
        samples: each with a non-empty ``group``.
        clients: number of clients.
        alpha: concentration, > 0.
        draw: source of the random numbers.

    Raises:
        UserError: fewer samples than clients, or a sample without a group.
    """
    _enough(len(samples), clients)
    dealt = deal_dirichlet(list(_groups(samples, "dirichlet").values()), clients, alpha, draw)
    return [[samples[i] for i in part] for part in dealt]


def by_group(samples: Sequence[Sample], clients: int) -> list[list[Sample]]:
    """Whole groups to clients (:func:`deal_groups`), groups in the order of their names.

    Raises:
        UserError: fewer groups than clients, or a sample without a group.
    """
    _enough(len(samples), clients)
    return [[samples[i] for i in part] for part in deal_groups(list(_groups(samples, "key").values()), clients)]


def deal_iid(count: int, clients: int, draw: np.random.Generator) -> list[list[int]]:
    """Return the numbers 0 to ``count - 1`` in random order, cut into ``clients`` parts whose sizes differ by one at most.

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
                "name a column with data.partition.column (instructions, hub), use a dataset with relations, or set data.partition=iid"
            )
        found.setdefault(sample.group, []).append(i)
    return {name: found[name] for name in sorted(found)}


def _enough(samples: int, clients: int) -> None:
    if samples < clients:
        raise UserError(
            f"{samples} training samples for {clients} clients, each client needs one; raise data.train or lower federation.clients"
        )
