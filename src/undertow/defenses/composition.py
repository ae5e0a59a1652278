"""Several defenses on one run: the clients' weights and loss; in a round the pre-aggregators in order, then the aggregator."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from undertow.config import Federation
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.data.sample import Sample
from undertow.data.template import Encoded
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.base import UpdateDefense
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.base import Defense, NeedsModel, Stateful, restore
from undertow.defenses.contexts import DecodingContext, ExchangeContext, ServerContext, Setting, TrainingContext
from undertow.defenses.data.base import DataDefense
from undertow.defenses.decoding.base import DecodingDefense
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.server.base import ServerDefense
from undertow.models.bounds import Bounds
from undertow.models.token_loss import TokenLoss

Result = TypeVar("Result")


def check_defenses(defenses: Sequence[tuple[str, Defense]], k: int, layout: Layout) -> None:
    """Refuse, before any training, defenses that ``k`` clients a round are too few for, or that the adapter does not fit.

    Raises:
        UserError: with the name of the defense.
    """
    for name, defense in defenses:
        if not isinstance(defense, UpdateDefense):
            continue
        try:
            defense.check(k)
            defense.fits(layout)
        except UserError as error:
            raise UserError(f"defense {name}: {error}") from error
        k = defense.rows(k) if isinstance(defense, PreAggregator) else k


def check_sums(defenses: Sequence[tuple[str, Defense]], options: Federation) -> None:
    """Refuse, under secure aggregation, defenses that look at single updates.

    Raises:
        UserError: with the name of the defense.
    """
    for name, defense in defenses:
        if options.secure_aggregation and isinstance(defense, UpdateDefense) and not defense.sums:
            raise UserError(
                f"defense {name} looks at single updates, of which federation.secure_aggregation shows the server the sum alone; "
                "leave one of the two out"
            )


def begin(defenses: Sequence[tuple[str, Defense]], setting: Setting) -> None:
    """Let every defense read and check what it needs from outside.

    Raises:
        UserError: with the name of the defense.
    """
    for name, defense in defenses:
        try:
            if isinstance(defense, NeedsModel):
                defense.begin(setting)
        except UserError as error:
            raise UserError(f"defense {name}: {error}") from error


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
            message = defense.share(clients[context.client], context)
            if message is None:
                if total is not None:
                    raise UserError(f"client {context.client} shares nothing in exchange {number}, others do; all must share alike")
                return contexts
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
        secret: of the clients, 32 bytes; None = drawn.
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
            verdicts, report = defense.sanitize(samples, context(purpose, k, exchanges.get(k)))
            found = iter(
                [one if isinstance(one, Sample) else sample if one else None for sample, one in zip(samples, verdicts, strict=True)]
            )
            left[k] = [None if sample is None else next(found) for sample in left[k]]
            kept = sum(sample is not None for sample in left[k])
            reports.append({"name": name, "client": k, "samples": len(samples), "kept": kept, **report})
    return [[sample for sample in client if sample is not None] for client in left], reports, left


def sanitize(
    clients: list[list[Sample]],
    defenses: Sequence[tuple[str, Defense]],
    draw: Callable[[str, int, int], np.random.Generator],
    context: Callable[[str, int, ExchangeContext | None], TrainingContext],
) -> tuple[list[list[Sample]], list[dict[str, Any]], list[list[Sample | None]]]:
    """Go through :func:`sanitizing` with all clients in one process."""
    return alone(sanitizing(clients, defenses, draw, context))


def aggregate(
    updates: Tensor,
    defenses: Sequence[tuple[str, Defense]],
    context: ServerContext,
    fedavg: Callable[[Tensor, Sequence[int]], Tensor],
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the global change ``[D]`` and the reports of all that took part.

    Args:
        updates: ``[K, D]``.
        defenses: by name, in the order of the config.
        context: of ``updates``.
        fedavg: the mean of rows by their counts, where no rule replaces it.
    """
    reports: list[dict[str, Any]] = []
    for name, defense in defenses:
        if isinstance(defense, PreAggregator):
            updates, context, report = defense.prepare(updates, context)
            reports.append({"name": name, **report})
        if isinstance(defense, Aggregator):
            delta, report = defense.aggregate(updates, context)
            return delta, [*reports, {"name": name, **report}]
    return fedavg(updates, context.counts), reports


def bounds(defenses: Sequence[tuple[str, Defense]]) -> Bounds | None:
    """Return the activation bounds that belong to the present global model, of the first defense that has any."""
    found = (defense.bounds() for _, defense in defenses if isinstance(defense, ServerDefense))
    return next((own for own in found if own is not None), None)


def token_loss(defenses: Sequence[tuple[str, Defense]], round: int, rounds: int) -> TokenLoss | None:
    """Return the clients' loss of ``round`` (from 1) of ``rounds``, by the one defense that replaces it; None is cross-entropy."""
    for _, defense in defenses:
        if isinstance(defense, LossDefense) and defense.replaces_loss:
            return defense.token_loss(round, rounds)
    return None


def any_needs_trusted(defenses: Sequence[tuple[str, Defense]]) -> bool:
    """Tell whether a defense needs an update that the server trained on trusted data."""
    return any(isinstance(defense, UpdateDefense) and defense.needs_trusted for _, defense in defenses)


def any_weighs(defenses: Sequence[tuple[str, Defense]]) -> bool:
    """Tell whether a defense weighs the clients' tokens."""
    return any(isinstance(defense, LossDefense) and defense.weighs for _, defense in defenses)


def weigh(
    clients: Sequence[list[Encoded]], defenses: Sequence[tuple[str, Defense]], context: Callable[[str, int], TrainingContext]
) -> tuple[list[list[Encoded]], list[dict[str, Any]]]:
    """Return the clients' tokenised samples with the product of all defenses' weights, and the reports.

    Args:
        clients: their samples.
        defenses: by name, in the order of the config.
        context: of what names a defense's random draws, and a client's index.

    Raises:
        UserError: weights that do not fit the samples.
    """
    weighed, reports = [list(client) for client in clients], []
    for name, defense in defenses:
        if not (isinstance(defense, LossDefense) and defense.weighs):
            continue
        for k, rows in enumerate(weighed):
            weights, report = defense.weigh(rows, context(defense.purpose or name, k))
            weighed[k] = _times(name, rows, weights)
            reports.append({"name": name, "client": k, **report})
    return weighed, reports


def select(
    clients: Sequence[list[Encoded]],
    chosen: Sequence[int],
    adapter: Tensor,
    defenses: Sequence[tuple[str, Defense]],
    context: Callable[[str, int], TrainingContext],
) -> tuple[list[list[Encoded]], list[dict[str, Any]]]:
    """Return the samples that all clients train on in a round, those not chosen unchanged, and the reports.

    Args:
        clients: their samples.
        chosen: the participants.
        adapter: the global adapter ``[D]``.
        defenses: by name, in the order of the config; each sees what those before it left.
        context: of what names a defense's random draws, and a client's index.

    Raises:
        UserError: a selection that does not fit the samples, or leaves a client none.
    """
    found, reports = list(clients), []
    for name, defense in defenses:
        if not (isinstance(defense, LossDefense) and defense.selects):
            continue
        told = []
        for k in chosen:
            stays, report = defense.select(found[k], adapter, context(defense.purpose or name, k))
            if len(stays) != len(found[k]) or not any(stays):
                raise UserError(
                    f"defense '{name}' selects {sum(map(bool, stays))} of {len(stays)} for the {len(found[k])} samples of client "
                    f"{k}; return one truth value a sample, at least one of them true"
                )
            told.append({"client": k, "samples": len(stays), "selected": sum(map(bool, stays)), **report})
            found[k] = [row for row, stay in zip(found[k], stays, strict=True) if stay]
        reports.append({"name": name, "clients": told})
    return found, reports


def decoder(
    defenses: Sequence[tuple[str, Defense]], adapter: Tensor, context: DecodingContext, reports: list[dict[str, Any]]
) -> Callable[[list[list[int]]], list[list[int]]] | None:
    """Return what answers prompts in place of greedy generation, by the one defense that replaces it; None where none does.

    Args:
        defenses: by name.
        adapter: the global adapter ``[D]``.
        context: of the decoding.
        reports: is given the defense's report each time it answers.
    """
    for name, defense in defenses:
        if isinstance(defense, DecodingDefense):

            def answer(prompts: list[list[int]], name: str = name, defense: DecodingDefense = defense) -> list[list[int]]:
                made, report = defense.decode(prompts, adapter, context)
                reports.append({"name": name, **report})
                return made

            return answer
    return None


def _times(name: str, rows: Sequence[Encoded], weights: Sequence[Sequence[float]]) -> list[Encoded]:
    if len(weights) != len(rows):
        raise UserError(f"defense '{name}' weighs {len(weights)} samples of {len(rows)}; return one row of weights a sample")
    found = []
    for row, own in zip(rows, weights, strict=True):
        if len(own) != len(row.answer) or not all(math.isfinite(w) and w >= 0 for w in own):
            raise UserError(
                f"defense '{name}' gives the weights {list(own)[:8]} for an answer of {len(row.answer)} tokens; give one number "
                ">= 0 a token"
            )
        before = row.weights or (1.0,) * len(own)
        found.append(replace(row, weights=tuple(a * float(b) for a, b in zip(before, own, strict=True))))
    return found


def save_states(defenses: Sequence[tuple[str, Defense]]) -> dict[str, Tensor]:
    """Return what all defenses remember, under names that tell them apart."""
    states = [(f"{i}/{name}", defense.state()) for i, (name, defense) in enumerate(defenses) if isinstance(defense, Stateful)]
    return {f"{place}/{key}": value for place, state in states for key, value in state.items()}


def restore_states(defenses: Sequence[tuple[str, Defense]], states: Mapping[str, Tensor]) -> None:
    """Give each defense back what :func:`save_states` took from it.

    Raises:
        UserError: a state that is none of theirs.
    """
    left = dict(states)
    for i, (name, defense) in enumerate(defenses):
        prefix = f"{i}/{name}/"
        own = {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}
        restore(defense, own)
    if left:
        raise UserError(
            f"the checkpoint holds the state {sorted(left)[0]} of a defense that is not in this run; delete the run directory "
            "and run again"
        )
