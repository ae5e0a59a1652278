"""Sanitizing the clients' data by all defenses of a run, with the exchanges in which clients add up counts of them first."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.defenses.base import Defense, refuse_answer
from undertow.defenses.contexts import ExchangeContext, TrainingContext
from undertow.defenses.data.base import DataDefense
from undertow.defenses.seam import ask, ask_pair

Result = TypeVar("Result")


@dataclass(frozen=True)
class Counts:
    """What some clients count of their samples in one exchange of a defense, to be added to the counts of all others.

    Attributes:
        name: of the defense.
        defense: the defense.
        number: of the exchange, from 1.
        total: sum over these clients, uint32 ``[m]``.
        pooled: what came back in the exchanges before.
        samples: how many each of these clients has.
    """

    name: str
    defense: DataDefense
    number: int
    total: NDArray[np.uint32]
    pooled: tuple[NDArray[np.uint32], ...]
    samples: dict[int, int]


#: Steps that now and then need the sum of all clients' counts, as the server gives it back, and return a result.
Pooling = Generator[Counts, NDArray[np.uint32], Result]


def alone(steps: Pooling[Result]) -> Result:
    """Go through steps whose counts are those of all clients, and return their result."""
    try:
        counts = next(steps)
        while True:
            counts = steps.send(counts.defense.pool(counts.total, counts.pooled))
    except StopIteration as done:
        result: Result = done.value
        return result


def exchange(
    clients: Sequence[Sequence[Sample]], defense: DataDefense, draw: Callable[[int, int], np.random.Generator], secret: bytes
) -> list[ExchangeContext]:
    """Let the clients add up what a defense counts of their samples, and return what each has when the sums are in.

    Args:
        clients: their samples.
        defense: one that shares counts.
        draw: the random numbers of an exchange (from 1) and a client's index.
        secret: shared by the clients, and by no one else.

    Raises:
        UserError: messages that cannot be added up.
    """
    return alone(_exchanging("", clients, range(len(clients)), defense, draw, secret))


def _exchanging(
    name: str,
    clients: Sequence[Sequence[Sample]],
    here: Sequence[int],
    defense: DataDefense,
    draw: Callable[[int, int], np.random.Generator],
    secret: bytes,
) -> Pooling[list[ExchangeContext]]:
    pooled: tuple[NDArray[np.uint32], ...] = ()
    while True:
        number = len(pooled) + 1
        contexts = [ExchangeContext(k, draw(number, k), len(clients), secret, pooled) for k in here]
        total: NDArray[np.uint32] | None = None
        for context in contexts:
            message = ask(defense, "share", clients[context.client], context)
            if message is None:
                if total is not None:
                    raise UserError(f"client {context.client} shares nothing in exchange {number}, others do; all must share alike")
                return contexts
            if not isinstance(message, np.ndarray):
                raise refuse_answer(defense, "share", message, "a numpy array of uint32, or None")
            if message.dtype != np.uint32 or (total is not None and message.shape != total.shape):
                raise UserError(
                    f"client {context.client} shares {message.dtype} of {message.shape} in exchange {number}; share uint32 "
                    "arrays of one length"
                )
            total = message.copy() if total is None else total + message
        if total is None:
            return contexts
        pooled = (*pooled, (yield Counts(name, defense, number, total, pooled, {k: len(clients[k]) for k in here})))


def sanitizing(
    clients: list[list[Sample]],
    defenses: Sequence[tuple[str, Defense]],
    draw: Callable[[str, int, int], np.random.Generator],
    context: Callable[[str, int, ExchangeContext | None], TrainingContext],
    here: Sequence[int] | None = None,
    secret: bytes | None = None,
) -> Pooling[tuple[list[list[Sample]], list[dict[str, Any]], list[list[Sample | None]]]]:
    """Return the clients' samples as they train on them, the reports, and of each original sample what is left.

    Args:
        clients: their samples.
        defenses: by name, in the order of the config.
        draw: the random numbers of a purpose, an exchange and a client's index.
        context: of what names a defense's random draws, a client's index and its exchanges.
        here: the clients that this party holds; None = all. The others' samples are left as they are.
        secret: of the clients, 32 bytes; None = at random.
    """
    left: list[list[Sample | None]] = [list(samples) for samples in clients]
    here = range(len(clients)) if here is None else here
    reports = []
    for name, defense in defenses:
        if not isinstance(defense, DataDefense):
            continue
        purpose = defense.purpose or name
        now = [[sample for sample in client if sample is not None] for client in left]
        exchanges: dict[int, ExchangeContext] = {}
        if defense.shares:
            own = draw(f"secret of the clients for {purpose}", 0, 0).bytes(32) if secret is None else secret

            def share(number: int, k: int, purpose: str = purpose) -> np.random.Generator:
                return draw(f"share {purpose}", number, k)

            contexts = yield from _exchanging(name, now, here, defense, share, own)
            exchanges = {one.client: one for one in contexts}
        for k in here:
            samples = now[k]
            wanted = "one verdict a sample: true, false or a sample in its place"
            verdicts, report = ask_pair(defense, "sanitize", wanted, samples, context(purpose, k, exchanges.get(k)))
            if not isinstance(verdicts, Sequence):
                raise refuse_answer(defense, "sanitize", verdicts, f"({wanted}, report)")
            if len(verdicts) != len(samples):
                raise UserError(
                    f"defense '{name}' gives {len(verdicts)} verdicts for the {len(samples)} samples of client {k}; return one a "
                    "sample: true, false or a sample in its place"
                )
            found = iter(
                [one if isinstance(one, Sample) else sample if one else None for sample, one in zip(samples, verdicts, strict=True)]
            )
            left[k] = [None if sample is None else next(found) for sample in left[k]]
            kept = sum(sample is not None for sample in left[k])
            reports.append({"name": name, "client": k, "samples": len(samples), "kept": kept, **report})
    return [[sample for sample in client if sample is not None] for client in left], reports, left
