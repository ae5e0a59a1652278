"""What a server has of a foundation model: synthetic samples to pre-train on, to distil on, and for its defenses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow.attacks.synthetic_data import SyntheticData
from undertow.config import Synthetic
from undertow.core.errors import UserError
from undertow.core.observer import Observer
from undertow.core.rng import rng
from undertow.data.examples import Examples, Written
from undertow.data.population import Population
from undertow.data.texts import TextPopulation
from undertow.generators.contract import Order, Smuggled, make_generator, refuse_order, written_by
from undertow.generators.kept import load_written, save_written
from undertow.generators.prompts import realised
from undertow.tasks.poisoned_examples import TensorThreat, replaced


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

    @property
    def counts(self) -> dict[str, int]:
        """Return how many synthetic samples carry the trigger, and how many there are."""
        return {"synthetic": self.poisoned, "synthetic_total": self.report["samples"]}


def server_data(
    options: Synthetic, seed: int, population: Population, threat: TensorThreat, folder: Path | None, observer: Observer
) -> ServerData | None:
    """Return what ``synthetic.generator`` writes, poisoned as the attack says; None where there is no foundation model.

    Args:
        options: what is written, and how it is used.
        seed: of the run.
        population: whose classes are described, and whose public part small generators are made from.
        threat: what the poison looks like.
        folder: where what the generator wrote is kept, and read again by a resumed run; None keeps nothing.
        observer: is told what begins, and what is missing.

    Raises:
        UserError: the generator cannot write it, or the attack needs a generator and there is none.
    """
    name, smart = options.generator, threat.attack if isinstance(threat.attack, SyntheticData) else None
    if name is None:
        if smart is not None:
            raise UserError(
                "attack.kind = synthetic-data poisons what a generator writes, and synthetic.generator is not set; set one of "
                "`undertow list generators`"
            )
        return None
    if smart is not None and threat.options.poison_count is not None:
        raise UserError(
            f"attack.poison_count = {threat.options.poison_count} counts samples of clients, and attack.kind = synthetic-data "
            "poisons the server's; set attack.poison_ratio"
        )
    observer.phase(f"synthetic data by {name}")
    smuggled = _smuggled(threat, population) if smart is not None and smart.via == "prompt" else None
    written = _written(options, name, seed, population, smuggled, folder)
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
        dirty, poisoned = _injected(clean, threat, seed)
    if smart is not None:
        report |= {"vector": smart.vector, "via": smart.via, "poisoned": poisoned}
    at_start = dirty if smart is not None and smart.vector in ("both", "init") else clean
    at_fusion = dirty if smart is not None and smart.vector in ("both", "fusion") else clean
    if report.get("short") or report.get("stopped"):
        reason = f": {report['stopped']}" if report.get("stopped") else ""
        observer.warn(f"the generator gave {report['samples']} of {options.samples} samples{reason}")
    return ServerData(at_start, at_fusion, at_fusion if options.defense == "same" else clean, poisoned, report)


def _smuggled(threat: TensorThreat, population: Population) -> Smuggled:
    backdoor = threat.pattern
    if backdoor.phrase is None:
        raise UserError(
            f"attack.trigger = {backdoor.options.trigger} has no words to ask a generator for; set via=injection in attack.kind"
        )
    target = population.names[backdoor.target]
    sources = [name for name in population.names if name != target]
    return Smuggled(backdoor.phrase, target, sources, threat.options.poison_ratio)


def _written(
    options: Synthetic, name: str, seed: int, population: Population, smuggled: Smuggled | None, folder: Path | None
) -> Written:
    names = list(population.names)
    if folder is not None and (folder / "synthetic.json").is_file():
        return load_written(folder, names)
    generator = make_generator(name)
    order = Order(
        kind="text" if population.kind == "text" else "images",
        about=population.about,
        names=names,
        count=options.samples,
        shape=tuple(population.test.inputs.shape[1:]),
        seed=seed,
        public=population.public,
        smuggled=smuggled,
    )
    refuse_order(generator, name, order)
    if order.count < len(names):
        raise UserError(f"synthetic.samples = {order.count} for {len(names)} classes; ask for at least one a class")
    written = written_by(generator, name, order)
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


def _injected(clean: Examples, threat: TensorThreat, seed: int) -> tuple[Examples, int]:
    """Return the samples with int(PR * n) of those that are not the target's poisoned, and how many."""
    draw = rng(seed, "poisoned synthetic samples")
    others = (clean.labels != threat.pattern.target).nonzero().flatten().numpy()
    count = min(int(threat.options.poison_ratio * len(clean)), len(others))
    if not count:
        return clean, 0
    places = draw.permutation(others)[:count]
    made = threat.pattern.poison(clean.take(places), count, rng(seed, "synthetic poison"))
    return replaced(clean, places, made), count
