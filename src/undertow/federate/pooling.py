"""The server's part of sanitization where each client's data are on its own machine: it adds what the nodes mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.core.observer import Observer
from undertow.defenses.base import Defense
from undertow.defenses.data.base import DataDefense
from undertow.federate.sums import SUMS, named, read_sums, save_sums
from undertow.flower import secure_sum
from undertow.flower.together import ask, pooled


def pool(
    grid: Grid,
    defenses: Sequence[tuple[str, Defense]],
    digest: str,
    deadline: float,
    folder: Path,
    nodes: dict[int, str],
    observer: Observer,
) -> None:
    """Let the nodes sanitize their clients' data, by the sums of their counts or by those that a run which goes on began with.

    A node that gives no sound answer cannot train, and is told as one that could not; whether enough are left, the round says.

    Args:
        grid: Flower's.
        defenses: of the run, by name.
        digest: of its config, which the nodes compare.
        deadline: seconds that an exchange waits.
        folder: of the federation; the sums are kept in it.
        nodes: name of each node, by its number at Flower.
        observer: is told what happens.

    Raises:
        UserError: fewer than three nodes, or noise is asked for and a node is missing.
    """
    sharing = [(name, own) for name, own in defenses if isinstance(own, DataDefense) and own.shares]
    if not sharing:
        return
    begun = (folder / "run" / "checkpoint").exists()
    stored = read_sums(folder / SUMS, digest) if begun else None
    if stored is not None:
        observer.phase("sanitization: the sums of before")
        orders = {number: {"step": "stored", "settings": {"defense": "", "config": digest}} for number in nodes}
        _tell(ask(grid, orders, named(stored), deadline)[2], nodes, observer)
        return
    if begun:
        raise UserError(
            f"{folder} has lost {SUMS}, so that the nodes would sanitize in another way than the rounds before; start over in "
            "another --out"
        )

    def told(node: int, reason: str) -> None:
        _tell({node: reason}, nodes, observer)

    sums: list[tuple[str, list[NDArray[np.uint32]]]] = []
    taking = sorted(nodes)
    for name, rule in sharing:
        observer.phase(f"sanitization: {len(taking)} nodes pool their counts ({name})")
        settings = {"defense": name, "config": digest}
        report, own = pooled(grid, rule, settings, taking, secure_sum.LEAST, deadline, told, nodes)
        if report["left_out"] and getattr(rule, "epsilon", None) is not None:
            raise UserError(
                f"defense {name}: with epsilon the noise is that of all nodes, and some are missing; fix that and start again"
            )
        taking = report["nodes"]
        sums.append((name, own))
        observer.phase(
            f"sanitization: {report['exchanges']} exchanges with {len(taking)} nodes, {report['bytes'] / 1e6:.1f} MB in all"
        )
    save_sums(folder / SUMS, sums, digest)


def _tell(lost: dict[int, str], nodes: dict[int, str], observer: Observer) -> None:
    for number, reason in lost.items():
        observer.warn(f"{nodes[number]} takes no part in the sanitization, and cannot train: {reason}")
