"""What a filter finds in poisoned samples, and what else it takes: the figures of one draw of clients, without any training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from undertow.backdoors.placement import Poisoning, Threat, poison
from undertow.core.rng import rng
from undertow.data.sample import Sample
from undertow.defenses.data.exchange import exchange
from undertow.defenses.data.sanitization import Sanitization
from undertow.sanitization import Rules, find


@dataclass(frozen=True)
class Counts:
    """What was found.

    Attributes:
        samples: of all clients; ``poison`` of them poisoned, of which ``hits`` were found.
        lost: clean samples that were found.
        worst: the same as a share of a client's samples, of the client that lost most.
        fewest: poisoned samples in the smallest heap that holds any, a heap being what is counted together; 0 without poison.
        support: m, the samples that a finding in that heap needs.
        seconds: of CPU, over all clients, the server's part included.
        details: counts that one way of filtering has and the other has not.
    """

    samples: int
    poison: int
    hits: int
    lost: int
    worst: float
    fewest: int
    support: int
    seconds: float
    details: dict[str, int] = field(default_factory=dict)


def deal(samples: Sequence[Sample], clients: int, size: int, seed: int) -> list[list[Sample]]:
    """Return equal parts for ``clients`` clients, of ``size`` samples or of what there is, drawn without replacement."""
    order = rng(seed, "scan benchmark").permutation(len(samples))[: size * clients]
    own = len(order) // clients
    return [[samples[i] for i in order[k * own : (k + 1) * own]] for k in range(clients)]


def pooled(clients: Sequence[Sequence[Sample]], attack: Threat, seed: int, defense: Sanitization) -> Counts:
    """Poison the clients' samples, let them sanitize these together, and compare with the ground truth.

    Found is what was dropped or repaired. ``details``: ``certain``, ``span`` and ``short`` findings, ``repaired`` poisoned samples,
    of which ``leftover`` still hold a piece of the target, and the ``bytes`` of a client's messages.

    Raises:
        UserError: a trigger that no sample could take.
    """
    done = poison(clients, attack, seed)
    truth = {(one.client, one.index): one for one in done.touched}
    began = time.process_time()
    contexts = exchange(done.clients, defense, lambda number, k: rng(seed, "noise", number, k), rng(seed, "secret").bytes(32))
    cleaned = [defense.clean(samples, context) for samples, context in zip(done.clients, contexts, strict=True)]
    seconds = time.process_time() - began
    acted: dict[tuple[int, int], Sample | None] = {}
    for k, (kept, _) in enumerate(cleaned):
        for i, (old, new) in enumerate(zip(done.clients[k], kept, strict=True)):
            if isinstance(new, Sample) or not new:
                left = new if isinstance(new, Sample) else None
                acted |= {(k, i): left} if left != old else {}
    mended = [(new, truth[place]) for place, new in acted.items() if new is not None and place in truth]
    reports: list[dict[str, Any]] = [report for _, report in cleaned]
    details = {kind: sum(report[kind] for report in reports) for kind in ("certain", "span", "short")}
    details |= {"repaired": len(mended), "leftover": sum(len(new.response) > len(one.response) for new, one in mended)}
    details["bytes"] = reports[0]["bytes"]
    return _counts(done, set(acted), [sum(map(len, done.clients))], seconds, details)


def scanned(clients: Sequence[Sequence[Sample]], attack: Threat, seed: int, *, together: bool) -> Counts:
    """Poison the clients' samples, scan them as ``undertow scan`` does, all ``together`` or each client's alone, and compare.

    Found is what was flagged, for review too. ``details``: ``lost_by_act``, clean samples dropped or repaired.

    Raises:
        UserError: a trigger that no sample could take.
    """
    done = poison(clients, attack, seed)
    places = [(k, i) for k, samples in enumerate(done.clients) for i in range(len(samples))]
    heaps = [places] if together else [[place for place in places if place[0] == k] for k in range(len(clients))]
    flagged: set[tuple[int, int]] = set()
    acted: set[tuple[int, int]] = set()
    began = time.process_time()
    for heap in heaps:
        for verdict in find(done.clients[k][i] for k, i in heap).verdicts:
            flagged.add(heap[verdict.sample])
            if verdict.act != "review":
                acted.add(heap[verdict.sample])
    seconds = time.process_time() - began
    truth = {(one.client, one.index) for one in done.touched}
    return _counts(done, flagged, [len(heap) for heap in heaps], seconds, {"lost_by_act": len(acted - truth)})


def _counts(done: Poisoning, found: set[tuple[int, int]], heaps: list[int], seconds: float, details: dict[str, int]) -> Counts:
    """Compare with the ground truth; ``heaps``: sizes, one for all clients or one a client."""
    truth = {(one.client, one.index) for one in done.touched}
    lost = [0] * len(done.clients)
    for k, _ in found - truth:
        lost[k] += 1
    held = [0] * len(heaps)
    for k, _ in truth:
        held[k if len(heaps) > 1 else 0] += 1
    fewest = min((count for count in held if count), default=0)
    return Counts(
        samples=sum(map(len, done.clients)),
        poison=len(truth),
        hits=len(found & truth),
        lost=sum(lost),
        worst=max(count / len(samples) for count, samples in zip(lost, done.clients, strict=True)),
        fewest=fewest,
        support=Rules().least(max(heaps)),
        seconds=seconds,
        details=details,
    )
