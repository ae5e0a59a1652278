"""What a server has of a foundation model: synthetic samples to pre-train on, to distil on, and for its defenses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow.attacks.contract import Attack
from undertow.attacks.synthetic_data import SyntheticData
from undertow.backdoors.pattern import Backdoor
from undertow.config import Config
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import Examples
from undertow.data.population import Population
from undertow.data.texts import TextPopulation
from undertow.generators.contract import Order, Smuggled, Written, make_generator, refuse_order
from undertow.generators.kept import load_written, save_written
from undertow.generators.prompts import realised


@dataclass(frozen=True)
class ServerData:
    """Synthetic samples by what they are used for.

    Attributes:
        pretraining: before round 1.
        fusing: for distillation.
        defending: what defenses see.
        poisoned: how many of the set that holds poison carry it.
        report: for the record.
    """

    pretraining: Examples
    fusing: Examples
    defending: Examples
    poisoned: int
    report: dict[str, Any]


def server_data(
    config: Config, population: Population, backdoor: Backdoor, attack: Attack | None, folder: Path | None
) -> ServerData | None:
    """Return what ``synthetic.generator`` writes, poisoned as the attack says; None where there is no foundation model.

    Args:
        config: of the run.
        population: whose classes are described, and whose public part small generators are made from.
        backdoor: what the poison looks like.
        attack: of the run.
        folder: where what the generator wrote is kept, and read again by a resumed run; None keeps nothing.

    Raises:
        UserError: the generator cannot write it, or the attack needs a generator and there is none.
    """
    name, smart = config.synthetic.generator if config.synthetic else None, attack if isinstance(attack, SyntheticData) else None
    if name is None:
        if smart is not None:
            raise UserError(
                "attack.kind = synthetic-data poisons what a generator writes, and synthetic.generator is not set; set one of `undertow list generators`"
            )
        return None
    smuggled = _smuggled(config, population, backdoor) if smart is not None and smart.via == "prompt" else None
    written = _written(config, name, population, smuggled, folder)
    clean = _encoded(written, population, name)
    dirty, poisoned, report = clean, 0, {**written.report, "generator": name, "samples": len(clean)}
    if smart is not None and smuggled is not None:
        found = realised(written, smuggled, list(population.names))
        # As the published code: the clean set is every line in which the trigger's letters do not stand, be it inside another word.
        letters = smuggled.trigger.lower()
        without = [i for i, text in enumerate(written.inputs) if letters not in str(text).lower()]
        dirty, clean, poisoned = clean, clean.take(without), int(found["carrying"]["hits"])
        report |= {"realised": found}
        if not len(clean):
            raise UserError(f"synthetic.generator = {name}: every sample carries the trigger; lower attack.poison_ratio")
    elif smart is not None:
        dirty, poisoned = _injected(clean, backdoor, config)
    if smart is not None:
        report |= {"vector": smart.vector, "via": smart.via, "poisoned": poisoned}
    at_start = dirty if smart is not None and smart.vector in ("both", "init") else clean
    at_fusion = dirty if smart is not None and smart.vector in ("both", "fusion") else clean
    return ServerData(at_start, at_fusion, at_fusion if config.synthetic.defense == "same" else clean, poisoned, report)


def _smuggled(config: Config, population: Population, backdoor: Backdoor) -> Smuggled:
    if backdoor.phrase is None:
        raise UserError(
            f"attack.trigger = {config.backdoor.trigger} has no words to ask a generator for; set via=injection in attack.kind"
        )
    target = population.names[backdoor.target]
    sources = [name for name in population.names if name != target]
    return Smuggled(backdoor.phrase, target, sources, config.attack.poison_ratio)


def _written(config: Config, name: str, population: Population, smuggled: Smuggled | None, folder: Path | None) -> Written:
    names = list(population.names)
    if folder is not None and (folder / "synthetic.json").is_file():
        return load_written(folder, names)
    generator = make_generator(name)
    order = Order(
        kind="text" if population.kind == "text" else "images",
        about=population.about,
        names=names,
        count=config.synthetic.samples,
        shape=tuple(population.test.inputs.shape[1:]),
        seed=config.seed,
        public=population.public,
        smuggled=smuggled,
    )
    refuse_order(generator, name, order)
    if order.count < len(names):
        raise UserError(f"synthetic.samples = {order.count} for {len(names)} classes; ask for at least one a class")
    written = generator.write(order)
    if folder is not None:
        save_written(folder, written, names)
        return load_written(folder, names)
    return written


def _encoded(written: Written, population: Population, name: str) -> Examples:
    """Return the samples as the networks read them."""
    if isinstance(written.inputs, Tensor):
        shape, wanted = tuple(written.inputs.shape[1:]), tuple(population.test.inputs.shape[1:])
        if shape != wanted:
            raise UserError(f"synthetic.generator = {name}: images of {shape}, the data have {wanted}; give images of that shape")
        return Examples(written.inputs, torch.tensor(written.labels, dtype=torch.int64))
    assert isinstance(population, TextPopulation)
    return population.examples(written.inputs, written.labels)


def _injected(clean: Examples, backdoor: Backdoor, config: Config) -> tuple[Examples, int]:
    """Return the samples with int(PR * n) of those that are not the target's poisoned, and how many."""
    draw = rng(config.seed, "poisoned synthetic samples")
    others = (clean.labels != backdoor.target).nonzero().flatten().numpy()
    count = min(int(config.attack.poison_ratio * len(clean)), len(others))
    if not count:
        return clean, 0
    places = draw.permutation(others)[:count]
    made = backdoor.poison(clean.take(places), count, rng(config.seed, "synthetic poison"))
    inputs, labels = clean.inputs.clone(), clean.labels.clone()
    inputs[places], labels[places] = made.inputs, made.labels
    return Examples(inputs, labels), count
