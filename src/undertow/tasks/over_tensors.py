"""What classification and next-word prediction share: a small network, clients with tensors, a backdoor over them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save
from torch import Tensor

from undertow.backdoors.pattern import Backdoor
from undertow.backdoors.placement import unpoisoned
from undertow.config import ClassificationData, ClassificationModel, Measure, NextWordData, NextWordModel, Synthetic
from undertow.core.errors import UserError
from undertow.core.files import write_bytes, write_json
from undertow.core.observer import Observer
from undertow.core.registry import call
from undertow.core.rng import rng
from undertow.data.examples import IGNORE, Examples
from undertow.data.population import POPULATIONS, Population
from undertow.defenses import composition
from undertow.defenses.base import Defense, NeedsModel
from undertow.defenses.contexts import NetSetting
from undertow.defenses.server.base import ServerDefense
from undertow.metrics.intervals import Rate
from undertow.models.bounds import BOUNDS, Bounds, bounded, save_bounds
from undertow.models.causal_lm import choose_device
from undertow.models.net import Net, load_state, make_net
from undertow.tasks.contract import Task, TrainingPlan
from undertow.tasks.families import Families, Part
from undertow.tasks.participation import participants
from undertow.tasks.poisoned_examples import Poisoned, TensorThreat, ground_truth, poison_clients
from undertow.tasks.server_data import server_data
from undertow.tasks.server_side import ServerSide
from undertow.training import stacked
from undertow.training.clients import ClientUpdates, Items

#: Inputs whose logits are held at a time while measuring.
_ROWS = 64


@dataclass
class OverTensors(Task):
    """Base of the tasks over tensors; a subclass says how its inputs read.

    Attributes:
        kind: name of the task in a config.
        model: what the clients train.
        plan: how they do.
        population: who holds what, without what the pattern keeps from benign clients.
        families: the network, or those that are dealt to the clients in turn.
        pattern: makes poison and probes.
        poison: of each poisoned client.
        drawn: who was to hold poison.
        probes: triggered test inputs.
        device: where the networks train.
        defenses: by name.
        side: the server's own training and fusion; None where it has no synthetic data.
        given: activation bounds of a finished run that is measured again.
    """

    kind: ClassVar[str]

    model: ClassificationModel | NextWordModel
    plan: TrainingPlan
    population: Population
    families: Families
    pattern: Backdoor
    poison: Mapping[int, Poisoned]
    drawn: Sequence[int]
    probes: Examples
    device: torch.device
    defenses: Sequence[tuple[str, Defense]]
    side: ServerSide | None
    given: Bounds | None = None

    def __post_init__(self) -> None:
        self.seed, self.training = self.plan.seed, self.plan.training
        self.layout, self.sizes, self.poisoned = self.families.layout, self.population.sizes, sorted(self.poison)
        one = len(self.families) == 1
        self.trained = self.net.trained if one else self.layout.size
        self.network = self._known() if one else None
        samples = sum(len(own.places) for own in self.poison.values())
        written = {} if self.side is None else self.side.data.counts
        self.poison_counts = {"clients": len(self.poison), "samples": samples, "total": sum(self._held()), **written}

    @classmethod
    def build(
        cls,
        data: ClassificationData | NextWordData,
        model: ClassificationModel | NextWordModel,
        plan: TrainingPlan,
        threat: TensorThreat,
        measuring: Measure,
        synthetic: Synthetic | None,
        defenses: Sequence[tuple[str, Defense]],
        observer: Observer,
        folder: Path | None = None,
    ) -> Self:
        """Load the population, keep from benign clients what the pattern needs, poison the others, and make the network.

        Args:
            data: who holds what.
            model: what the clients train.
            plan: how they do.
            threat: what is planted.
            measuring: what is measured.
            synthetic: data that a generator writes for the server; None where they are not needed.
            defenses: by name.
            observer: is told what happens.
            folder: of the run, where synthetic data are kept.

        Raises:
            UserError: anything the user can fix.
        """
        cls._check(measuring, defenses)
        seed = plan.seed
        observer.phase(f"loading data {data.name}")
        whole = call(POPULATIONS, data.name, "data.name", data, seed, plan.federation.clients)
        assert isinstance(whole, Population)
        left = threat.pattern.prepare(whole, rng(seed, "backdoor"))
        drawn, poison = poison_clients(left, threat, seed)
        for told in () if threat.of_server else unpoisoned(threat.options, drawn, len(poison), left.sizes):
            observer.warn(told)
        probes = threat.pattern.probes(left.test, data.test, rng(seed, "probes"))
        families = _families(model, seed, left, defenses, threat)
        if "delta_w" in measuring.bsnr.spaces and not families.layout.pairs(families.initial()):
            raise UserError(
                f"measure.bsnr.spaces has delta_w, which needs LoRA factors, and model.name = {model.name} has none; "
                "set measure.bsnr.spaces=adapter"
            )
        device = choose_device(model.device)
        for net in families.nets:
            net.module.to(device)
        side = None
        if synthetic is not None:
            written = server_data(synthetic, seed, left, threat, folder, observer)
            if written is not None:
                side = ServerSide(synthetic, plan, networks_of(model), families, written, device, len(left.sizes), left.augment)
        task = cls(model, plan, left, families, threat.pattern, poison, drawn, probes, device, defenses, side)
        for part in families.parts(participants(plan.federation.participation, seed, 1, task.sizes)):
            composition.check_defenses(defenses, len(part.rows), part.layout)
        return task

    @classmethod
    def _check(cls, measuring: Measure, defenses: Sequence[tuple[str, Defense]]) -> None:
        """Refuse what works on questions and answers alone."""
        for name, defense in defenses:
            if isinstance(defense, NeedsModel) and not defense.over_tensors:
                raise UserError(f"defense {name} works on questions and answers, which task={cls.kind} has none of; leave it out")
        if measuring.bsnr.counterfactuals:
            raise UserError(f"measure.bsnr.counterfactuals = true is for task=instruction, not {cls.kind}; leave it out")

    @abstractmethod
    def shown(self, example: Tensor, place: int) -> str:
        """Return a line that shows one input ``[...]`` up to the output ``place`` to a reader."""

    @property
    def net(self) -> Net:
        """The network, where all clients have the same."""
        (net,) = self.families.nets
        return net

    def _known(self) -> NetSetting:
        """Return what the server knows, where all clients have one network."""
        data, names = None if self.side is None else self.side.data.defending, list(self.population.names)
        return NetSetting(self.seed, self.plan.federation.rounds, self.net, self.training, data, names)

    def parts(self, clients: Sequence[int]) -> list[Part] | None:
        """Return the families of the clients of a round."""
        return None if len(self.families) == 1 else self.families.parts(clients)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.population.test.inputs.shape[1:])

    def initial(self) -> Tensor:
        """Return the state before round 1.

        It is the network's own random values, or the final state of the run ``model.start``; trained on the server's synthetic
        data, where there are any.
        """
        return self._first

    @cached_property
    def _first(self) -> Tensor:
        start = self.model.start
        state = self.families.initial() if start is None else load_state(Path(start), self.layout, f"model.start = {start}")
        return state if self.side is None else self.side.pretrain(state)

    def trusted(self, state: Tensor, t: int) -> Tensor | None:
        """Return the update ``[D]`` of the server's own training on its synthetic data, as a client would train."""
        return None if self.side is None else self.side.update(state, self.side.data.defending, self.training, t)

    def train(self, state: Tensor, chosen: Sequence[int], t: int, acting: Collection[int]) -> ClientUpdates:
        """Let the chosen clients train the whole network ``[D]``, those in ``acting`` on their poisoned examples."""
        data = [self.poison[k].examples if k in acting and k in self.poison else self.population.client(k) for k in chosen]
        updates, losses = torch.zeros(len(chosen), self.layout.size), [0.0] * len(chosen)
        for part in self.families.parts(chosen):
            jobs = [stacked.ExampleJob(chosen[row], data[row]) for row in part.rows]
            net, start = self.families.nets[self.families.of(chosen[part.rows[0]])], state[part.columns].to(self.device)
            trained = stacked.train(net, self.training, start, jobs, self.seed, t, augment=self.population.augment)
            if len(self.families) == 1:
                updates = trained.updates
            else:
                updates[torch.tensor(part.rows)[:, None], torch.arange(part.columns.start, part.columns.stop)] = trained.updates
            for row, loss in zip(part.rows, trained.losses, strict=True):
                losses[row] = loss
        return ClientUpdates(list(chosen), updates, [len(own) for own in data], losses)

    def fuse(self, state: Tensor, delta: Tensor, sent: ClientUpdates, t: int) -> tuple[Tensor, dict[str, Any] | None]:
        """Return the new global state ``[D]``: the aggregate, or what the server's fusion makes of it."""
        return (state + delta, None) if self.side is None else self.side.fuse(state, delta, sent, t)

    def items(self, clients: Sequence[int]) -> Examples:
        """Return the examples of malicious clients, poison included."""
        return Examples.join([self.poison[k].examples for k in clients])

    def backdoor(self, clients: Sequence[int]) -> Examples:
        """Return the poisoned ones of :meth:`items`."""
        return Examples.join([self.poison[k].examples.take(self.poison[k].places) for k in clients])

    def losses(self, stack: Tensor, block: Sequence[Items]) -> Tensor:
        """Return each row's mean cross-entropy ``[K]`` on its own examples."""
        return stacked.losses(self.net, stack, [items for items in block if isinstance(items, Examples)])

    def measure(self, state: Tensor | None, t: int, n: int, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a line for each scored output: the class or word that the network finds most likely."""
        flat = (self.initial() if state is None else state).to(self.device)
        bounds = None if state is None else self.bounds
        lines = []
        for i, (net, own) in enumerate(zip(self.families.nets, self.families.columns, strict=True)):
            with nullcontext() if bounds is None else bounded(net.module, bounds):
                for kind, examples in (("clean", self.population.test), ("triggered", self.probes)):
                    scored = self._scored(net, flat[own], kind, examples, n, t)
                    if len(self.families) > 1:
                        name = networks_of(self.model)[i]
                        scored = [{**line, "id": f"{line['id']}-{i}", "network": name} for line in scored]
                    lines += scored
        return lines

    @property
    def bounds(self) -> Bounds | None:
        """Activation bounds that belong to the present global model, of the first defense that has any."""
        if self.given is not None:
            return self.given
        return composition.bounds(self.defenses)

    def _scored(self, net: Net, state: Tensor, kind: str, examples: Examples, n: int, t: int) -> list[dict[str, Any]]:
        labels = examples.labels if examples.labels.dim() > 1 else examples.labels[:, None]
        places = (labels != IGNORE).nonzero()[: n or None]
        used = sorted(set(places[:, 0].tolist()))
        if not used:
            return []
        names, lines = self.population.names, []
        # A language model may have more outputs than its tokenizer has tokens. Only the likeliest are kept of a block of logits.
        blocks = examples.inputs[used].split(_ROWS)
        likeliest = torch.cat([net.logits(state, block)[..., : len(names)].argmax(-1).cpu() for block in blocks])
        found = likeliest.view(len(used), -1)
        row = {example: i for i, example in enumerate(used)}
        for example, place in places.tolist():
            answer, output = int(labels[example, place]), int(found[row[example], place])
            lines.append(
                {
                    "round": t,
                    "kind": kind,
                    "id": f"{kind}-{example}-{place}",
                    "question": self.shown(examples.inputs[example], place),
                    "answers": [names[answer]],
                    "output": names[output],
                    "exact": output == answer,
                    # each triggered input has its own target, where a backdoor has several
                    "target": output == answer if kind == "triggered" else output in self.targets,
                }
            )
        return lines

    @property
    def targets(self) -> set[int]:
        """What the backdoor wants: the labels of the triggered inputs."""
        return {*self.probes.labels.unique().tolist(), self.pattern.target} - {IGNORE}

    def rates(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return MA = clean outputs that are right / clean outputs; ASR = triggered outputs that are the target / triggered
        outputs; FTR = clean outputs that are a target and should be none / clean outputs that should be none.
        """
        wanted = {self.population.names[target] for target in self.targets}
        clean = [line for line in lines if line["kind"] == "clean"]
        others = [line for line in clean if wanted.isdisjoint(line["answers"])]
        asked = [line for line in lines if line["kind"] == "triggered"]
        ma = Rate(sum(line["exact"] for line in clean), len(clean)).as_dict()
        return {
            "ma": ma,
            "asr": Rate(sum(line["target"] for line in asked), len(asked)).as_dict(),
            "asr_suffix": None,
            "ftr": Rate(sum(line["target"] for line in others), len(others)).as_dict(),
            "ftr_near": None,
            "scorings": {"exact": ma},
        }

    def ground_truth(self) -> Iterator[dict[str, Any]]:
        """Return what was replaced at each poisoned client."""
        return ground_truth(self.poison, self.population.names, self.shown)

    def describe(self) -> dict[str, Any]:
        """Return what the data are made of."""
        names, target = self.population.names, self.pattern.target
        counts = [len(self.poison[k].places) if k in self.poison else 0 for k in range(len(self.sizes))]
        return {
            **self.population.report,
            "clients": self._held(),
            "poisoned_clients": list(self.poisoned),
            "poisoned": counts,
            "target": names[target],
            "backdoor": self.pattern.facts(),
            "network": {
                "name": ", ".join(networks_of(self.model)),
                "parameters": sum(net.trained for net in self.families.nets),
                "outputs": len(names),
            },
            **({} if self.side is None else {"synthetic": self.side.data.report}),
        }

    def _held(self) -> list[int]:
        """Return how many examples each client has in a round in which it attacks."""
        return [len(self.poison[k].examples) if k in self.poison else size for k, size in enumerate(self.sizes)]

    def save(self, folder: Path, state: Tensor) -> None:
        """Write each network's tensors by name, and its activation bounds if any (safetensors), and what it is (JSON)."""
        networks = networks_of(self.model)
        for i, (name, net, own) in enumerate(zip(networks, self.families.nets, self.families.columns, strict=True)):
            place = folder / ("model" if len(networks) == 1 else f"model-{i}")
            place.mkdir(exist_ok=True)
            tensors = {key: tensor.contiguous() for key, tensor in net.layout.unflatten(state[own].cpu()).items()}
            write_bytes(place / "model.safetensors", save(tensors))
            if self.bounds is not None:
                save_bounds(place / BOUNDS, self.bounds)
            about = {"task": self.kind, "network": name, "inputs": list(self.inputs), "outputs": list(self.population.names)}
            ids = {} if self.population.ids is None else {"ids": self.population.ids}
            write_json(place / "model.json", {**about, **ids})


def networks_of(model: ClassificationModel | NextWordModel) -> list[str]:
    """Return the names of the networks, those dealt to clients in turn or the one that all have."""
    several = model.networks if isinstance(model, ClassificationModel) else []
    return several or [model.name]


def _families(
    model: ClassificationModel | NextWordModel,
    seed: int,
    population: Population,
    defenses: Sequence[tuple[str, Defense]],
    threat: TensorThreat,
) -> Families:
    """Make the networks.

    Raises:
        UserError: no such network, or several where something works on one.
    """
    networks = networks_of(model)
    if isinstance(model, ClassificationModel) and model.networks:
        lone = [f"defense {name} guards" for name, defense in defenses if isinstance(defense, ServerDefense)]
        lone += [f"attack.kind = {threat.options.kind} replaces"] if threat.attack is not None and threat.attack.malicious else []
        lone += [f"model.start = {model.start} holds"] if model.start else []
        if lone:
            raise UserError(f"{lone[0]} one network, and model.networks has {len(networks)}; leave one of the two out")
    shape, outputs = tuple(population.test.inputs.shape[1:]), len(population.names)
    return Families([make_net(name, shape, outputs, seed, population.ids) for name in networks])
