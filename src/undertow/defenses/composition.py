"""Several defenses on one run: the clients' weights and loss; in a round the pre-aggregators in order, then the aggregator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from undertow.config import Federation
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.data.template import Encoded
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.base import UpdateDefense
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.base import Defense, NeedsModel, Stateful, refuse_answer, restore
from undertow.defenses.contexts import DecodingContext, ServerContext, Setting, TrainingContext
from undertow.defenses.decoding.base import DecodingDefense
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.seam import ask, ask_pair, check_tokens
from undertow.defenses.server.base import ServerDefense
from undertow.models.bounds import Bounds
from undertow.models.token_loss import TokenLoss


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
                ask(defense, "begin", setting)
        except UserError as error:
            raise UserError(f"defense {name}: {error}") from error


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
        fedavg: the mean of rows by their counts, where no aggregator replaces it.
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
            found = ask(defense, "token_loss", round, rounds)
            if found is not None and not isinstance(found, TokenLoss):
                raise refuse_answer(defense, "token_loss", found, "an undertow.models.token_loss.TokenLoss, or None")
            return found
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
            wanted = "weights: of each sample a number >= 0 for each answer token"
            weights, report = ask_pair(defense, "weigh", wanted, rows, context(defense.purpose or name, k))
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
        chosen: the clients of the round.
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
            wanted = "one truth value a sample"
            stays, report = ask_pair(defense, "select", wanted, found[k], adapter, context(defense.purpose or name, k))
            if not _is_list(stays):
                raise refuse_answer(defense, "select", stays, wanted)
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
                made: list[list[int]]
                made, report = ask_pair(defense, "decode", "a list of token ids for each prompt", prompts, adapter, context)
                check_tokens(defense, "decode", made, prompts, context.setting.base.vocabulary)
                reports.append({"name": name, **report})
                return made

            return answer
    return None


def _is_list(found: object) -> bool:
    return isinstance(found, Sequence) or getattr(found, "ndim", 0) == 1


def _times(name: str, rows: Sequence[Encoded], weights: Sequence[Sequence[float]]) -> list[Encoded]:
    if not isinstance(weights, Sequence) or not all(hasattr(own, "__len__") for own in weights):
        raise UserError(f"defense '{name}' weighs with a {type(weights).__name__}; return a list of one row of weights a sample")
    if len(weights) != len(rows):
        raise UserError(f"defense '{name}' weighs {len(weights)} samples of {len(rows)}; return one row of weights a sample")
    found = []
    for row, own in zip(rows, weights, strict=True):
        if len(own) != len(row.answer) or not all(_is_weight(w) for w in own):
            raise UserError(
                f"defense '{name}' gives the weights {list(own)[:8]} for an answer of {len(row.answer)} tokens; give one number "
                ">= 0 a token"
            )
        before = row.weights or (1.0,) * len(own)
        found.append(replace(row, weights=tuple(a * float(b) for a, b in zip(before, own, strict=True))))
    return found


def _is_weight(value: Any) -> bool:
    try:
        return math.isfinite(value) and float(value) >= 0
    except (TypeError, ValueError):
        return False


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
