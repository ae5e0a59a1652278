"""Clients of a task over tensors that hold poison: which examples are replaced, and the ground truth of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from undertow.attacks.contract import Attack
from undertow.backdoors.pattern import Backdoor
from undertow.backdoors.placement import drawn_clients, others, quotas
from undertow.config import Attack as Options
from undertow.core.rng import rng
from undertow.data.examples import IGNORE, Examples
from undertow.data.population import Population


@dataclass(frozen=True)
class TensorThreat:
    """What an attacker plants in a task over tensors.

    Attributes:
        options: how much, at how many clients, and when.
        attack: what attacking clients do; None without.
        pattern: makes poison and probes.
    """

    options: Options
    attack: Attack | None
    pattern: Backdoor

    @property
    def of_server(self) -> bool:
        """Whether the poison is in the server's synthetic data and in no client's."""
        return self.attack is not None and self.attack.of_server


@dataclass(frozen=True)
class Poisoned:
    """A poisoned client's data: before, with some examples replaced, and which."""

    before: Examples
    examples: Examples
    places: NDArray[np.int64]


def replaced(own: Examples, places: NDArray[np.int64], made: Examples) -> Examples:
    """Return examples with those at ``places`` replaced; the arguments stay as they are."""
    inputs, labels = own.inputs.clone(), own.labels.clone()
    inputs[places], labels[places] = made.inputs, made.labels
    return Examples(inputs, labels)


def poison_clients(population: Population, threat: TensorThreat, seed: int) -> tuple[Sequence[int], dict[int, Poisoned]]:
    """Poison clients as in instruction tuning: round(rho * K) are drawn, and each replaces int(PR * n_k) of its n_k examples, or
    its part of ``poison_count``.

    Args:
        population: prepared by the pattern.
        threat: what to plant; where its poison is in the server's synthetic data, no client holds any.
        seed: of the run.

    Returns:
        who was drawn, and the data of those that hold poison.
    """
    options = threat.options
    drawn = () if threat.of_server else drawn_clients(options, seed, len(population.sizes))
    poisoned = {}
    counts = quotas(options, [population.sizes[k] + options.extra_samples for k in drawn])
    for k, count in zip(drawn, counts, strict=True):
        own = Examples.join([population.client(k), *_extra(population, options, seed, k)])
        places = rng(seed, "poisoned samples", client=k).permutation(len(own))[:count]
        if count:
            made = threat.pattern.poison(own.take(places), count, rng(seed, "poison", client=k))
            poisoned[k] = Poisoned(own, replaced(own, places, made), places)
    return drawn, poisoned


def _extra(population: Population, options: Options, seed: int, client: int) -> list[Examples]:
    """Return what a poisoned client holds of others' examples."""
    found: dict[int, list[int]] = {}
    for k, i in others(options.extra_samples, seed, client, population.sizes) if options.extra_samples else ():
        found.setdefault(k, []).append(i)
    return [population.client(k).take(places) for k, places in found.items()]


def ground_truth(
    poisoned: Mapping[int, Poisoned], names: Sequence[str], shown: Callable[[Tensor, int], str]
) -> Iterator[dict[str, Any]]:
    """Yield a record of each replaced example; ``shown`` turns an input up to an output's place into a line for a reader."""
    for k, own in sorted(poisoned.items()):
        for i in sorted(own.places.tolist()):
            (old, place), (new, end) = _last(own.before.labels[i]), _last(own.examples.labels[i])
            yield {
                "client": k,
                "index": i,
                "id": f"{k}-{i}",
                "question": shown(own.before.inputs[i], place),
                "poisoned_question": shown(own.examples.inputs[i], end),
                "response": names[old] if old != IGNORE else "",
                "poisoned_response": names[new],
            }


def _last(labels: Tensor) -> tuple[int, int]:
    """Return the last label that counts, and its place."""
    flat = labels.reshape(-1)
    places = (flat != IGNORE).nonzero().flatten().tolist()
    return (int(flat[places[-1]]), places[-1]) if places else (IGNORE, len(flat) - 1)
