"""What classification and next-word prediction share: a small network, participants with tensors, a backdoor over them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from undertow.attacks.contract import Attack, make_attack
from undertow.backdoors.pattern import Backdoor, make_backdoor
from undertow.backdoors.placement import client_ratio, drawn_clients, others, poisoned_count
from undertow.config import Config
from undertow.core.errors import UserError
from undertow.core.files import write_bytes, write_json
from undertow.core.layout import Layout
from undertow.core.observer import Observer
from undertow.core.registry import call
from undertow.core.rng import rng
from undertow.data.examples import IGNORE, Examples
from undertow.data.population import POPULATIONS, Population
from undertow.defenses import composition
from undertow.defenses.base import Defense, NeedsModel
from undertow.defenses.contexts import NetSetting
from undertow.defenses.registry import make_defenses
from undertow.defenses.server.base import ServerDefense
from undertow.metrics.intervals import Rate
from undertow.models.bounds import BOUNDS, Bounds, bounded, save_bounds
from undertow.models.causal_lm import choose_device
from undertow.models.net import Net, load_state, make_net
from undertow.runs import records
from undertow.tasks.contract import Items, Local, Task
from undertow.tasks.families import Families, Part
from undertow.tasks.participation import participants
from undertow.tasks.server_data import ServerData, server_data
from undertow.tasks.server_side import ServerSide
from undertow.training import stacked

#: Inputs whose logits are held at a time while measuring.
_ROWS = 64


@dataclass(frozen=True)
class Poisoned:
    """A compromised participant's data: before, with some examples replaced, and which."""

    before: Examples
    examples: Examples
    places: NDArray[np.int64]


@dataclass
class OverTensors(Task):
    """Base of the tasks over tensors; a subclass says how its inputs read.

    Attributes:
        population: who holds what, without what the backdoor sets aside.
        families: the network, or those that are dealt to the participants in turn.
        backdoor_kind: makes poison and probes.
        poison: of each affected participant.
        drawn: who was to hold poison.
        probes: triggered test inputs.
        where: the networks train.
        defenses: by name.
        server: synthetic data of the server; None without.
        given: activation bounds of a finished run that is measured again.
    """

    config: Config
    population: Population
    families: Families
    backdoor_kind: Backdoor
    poison: Mapping[int, Poisoned]
    drawn: Sequence[int]
    probes: Examples
    where: torch.device
    defenses: Sequence[tuple[str, Defense]]
    server: ServerData | None
    given: Bounds | None = None

    @classmethod
    def build(
        cls,
        config: Config,
        observer: Observer,
        defenses: list[tuple[str, Defense]] | None = None,
        folder: Path | None = None,
        synthetic: bool = True,
    ) -> Self:
        """Load the population, set aside what the backdoor needs, poison the affected participants, and make the network.

        round(rho * K) participants are drawn as in instruction tuning, and each replaces int(PR * n_k) of its n_k examples. Where the
        poison is in the server's synthetic data, no participant holds any.

        Args:
            config: of the run.
            observer: is told what happens.
            defenses: of the run; None makes them.
            folder: of the run, where synthetic data are kept.
            synthetic: whether the server's synthetic data are needed.

        Raises:
            UserError: anything the user can mend.
        """
        attack = make_attack(config.attack)
        synthetic_by = None if config.synthetic is None else config.synthetic.generator
        trusted = synthetic_by is not None
        defenses = make_defenses(config.defenses, trusted) if defenses is None else defenses
        for name, defense in defenses:
            if isinstance(defense, NeedsModel) and not defense.over_tensors:
                raise UserError(
                    f"defense {name} works on questions and answers, which task={config.task.kind} has none of; leave it out"
                )
        if config.measure.bsnr.twins:
            raise UserError(f"measure.bsnr.twins = true is for task=instruction, not {config.task.kind}; leave it out")
        observer.phase(f"loading data {config.data.name}")
        population = call(POPULATIONS, config.data.name, "data.name", config)
        assert isinstance(population, Population)
        backdoor = make_backdoor(config.backdoor, config.task.kind)
        left = backdoor.prepare(population, rng(config.seed, "backdoor"))
        of_server = attack is not None and attack.of_server
        chosen = [] if of_server else drawn_clients(config.attack, config.seed, config.federation.clients)
        poison: dict[int, Poisoned] = {}
        for k in chosen:
            own = Examples.join([left.client(k), *_others(left, config, k)])
            count = poisoned_count(client_ratio(config.attack), len(own))
            places = rng(config.seed, "poisoned samples", client=k).permutation(len(own))[:count]
            if count:
                made = backdoor.poison(own.take(places), count, rng(config.seed, "poison", client=k))
                inputs, labels = own.inputs.clone(), own.labels.clone()
                inputs[places], labels[places] = made.inputs, made.labels
                poison[k] = Poisoned(own, Examples(inputs, labels), places)
        probes = backdoor.probes(left.test, config.data.test, rng(config.seed, "probes"))
        families = _families(config, left, defenses, attack)
        if "delta_w" in config.measure.bsnr.spaces and not families.layout.pairs(families.initial()):
            raise UserError(
                f"measure.bsnr.spaces has delta_w, which needs LoRA factors, and model.name = {config.model.name} has none; "
                "set measure.bsnr.spaces=adapter"
            )
        device = choose_device(config.model.device)
        for net in families.nets:
            net.module.to(device)
        if synthetic and synthetic_by is not None:
            observer.phase(f"synthetic data by {synthetic_by}")
        server = server_data(config, left, backdoor, attack, folder) if synthetic else None
        if server is not None and config.synthetic is not None and (server.report.get("short") or server.report.get("stopped")):
            reason = f": {server.report['stopped']}" if server.report.get("stopped") else ""
            observer.warn(f"the generator gave {server.report['samples']} of {config.synthetic.samples} samples{reason}")
        task = cls(config, left, families, backdoor, poison, chosen, probes, device, defenses, server)
        taking_part = participants(config, 1, task.sizes)
        for part in families.parts(taking_part):
            composition.check_defenses(defenses, len(part.rows), part.layout)
        return task

    @abstractmethod
    def shown(self, example: Tensor, place: int) -> str:
        """Return a line that shows one input ``[...]`` up to the output ``place`` to a reader."""

    @property
    def layout(self) -> Layout:
        """Of the state: the network's, or all of them one after another."""
        return self.families.layout

    @property
    def net(self) -> Net:
        """The network, where all participants have the same."""
        (net,) = self.families.nets
        return net

    @property
    def trained(self) -> int:
        """How many columns are parameters."""
        return self.net.trained if len(self.families) == 1 else self.layout.size

    @property
    def network(self) -> NetSetting | None:
        """What the server knows; None where participants have several networks."""
        if len(self.families) > 1:
            return None
        config, names = self.config, list(self.population.names)
        data = None if self.server is None else self.server.defending
        return NetSetting(config.seed, config.federation.rounds, self.net, config.training, data, names)

    def parts(self, clients: Sequence[int]) -> list[Part] | None:
        """Return the families of the clients of a round."""
        return None if len(self.families) == 1 else self.families.parts(clients)

    @property
    def affected(self) -> Sequence[int]:
        """Participants with poison."""
        return sorted(self.poison)

    @property
    def chosen(self) -> Sequence[int]:
        """Participants drawn to hold poison."""
        return self.drawn

    @property
    def sizes(self) -> Sequence[int]:
        """Examples of each participant."""
        return self.population.sizes

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.population.test.inputs.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where the network trains."""
        return self.where

    def initial(self) -> Tensor:
        """Return the state before round 1.

        It is the network's own random values, or the final state of the run ``model.start``; trained on the server's synthetic data,
        where there are any.
        """
        return self._first

    @cached_property
    def _first(self) -> Tensor:
        start = self.config.model.start
        state = self.families.initial() if start is None else load_state(Path(start), self.layout, f"model.start = {start}")
        return state if self.side is None else self.side.pretrain(state)

    @property
    def side(self) -> ServerSide | None:
        """The server's own training and fusion; None where it has no synthetic data."""
        if self.server is None:
            return None
        return ServerSide(self.config, self.families, self.server, self.where, len(self.sizes), self.population.augment)

    def trusted(self, state: Tensor, t: int) -> Tensor | None:
        """Return the update ``[D]`` of the server's own training on its synthetic data, as a client would train."""
        return None if self.side is None else self.side.update(state, self.side.data.defending, self.config.training, t)

    def train(self, state: Tensor, chosen: Sequence[int], t: int, poisoned: Collection[int]) -> Local:
        """Let the chosen participants train the whole network ``[D]``, those in ``poisoned`` on their poisoned examples."""
        data = [self.poison[k].examples if k in poisoned and k in self.poison else self.population.client(k) for k in chosen]
        updates, losses = torch.zeros(len(chosen), self.layout.size), [0.0] * len(chosen)
        for part in self.families.parts(chosen):
            jobs = [stacked.ExampleJob(chosen[row], data[row]) for row in part.rows]
            net, start = self.families.nets[self.families.of(chosen[part.rows[0]])], state[part.columns].to(self.where)
            trained = stacked.train(net, self.config.training, start, jobs, self.config.seed, t, augment=self.population.augment)
            if len(self.families) == 1:
                updates = trained.updates
            else:
                updates[torch.tensor(part.rows)[:, None], torch.arange(part.columns.start, part.columns.stop)] = trained.updates
            for row, loss in zip(part.rows, trained.losses, strict=True):
                losses[row] = loss
        return Local(list(chosen), updates, [len(own) for own in data], losses)

    def fuse(self, state: Tensor, delta: Tensor, sent: Local, t: int) -> tuple[Tensor, dict[str, Any] | None]:
        """Return the new global state ``[D]``: the aggregate, or what the server's fusion makes of it."""
        return (state + delta, None) if self.side is None else self.side.fuse(state, delta, sent, t)

    def items(self, clients: Sequence[int]) -> Examples:
        """Return the examples of compromised participants, poison included."""
        return Examples.join([self.poison[k].examples for k in clients])

    def backdoor(self, clients: Sequence[int]) -> Examples:
        """Return the poisoned ones of :meth:`items`."""
        return Examples.join([self.poison[k].examples.take(self.poison[k].places) for k in clients])

    def losses(self, stack: Tensor, block: Sequence[Items]) -> Tensor:
        """Return each row's mean cross-entropy ``[K]`` on its own examples."""
        return stacked.losses(self.net, stack, [items for items in block if isinstance(items, Examples)])

    def measure(self, state: Tensor | None, t: int, n: int, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a line for each scored output: the class or word that the network finds most likely."""
        flat = (self.initial() if state is None else state).to(self.where)
        bounds = None if state is None else self.bounds
        lines = []
        for i, (net, own) in enumerate(zip(self.families.nets, self.families.columns, strict=True)):
            with nullcontext() if bounds is None else bounded(net.module, bounds):
                for kind, examples in (("clean", self.population.test), ("triggered", self.probes)):
                    scored = self._scored(net, flat[own], kind, examples, n, t)
                    if len(self.families) > 1:
                        name = self.config.model.networks[i]
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
        return {*self.probes.labels.unique().tolist(), self.backdoor_kind.target} - {IGNORE}

    def rates(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return MA = clean outputs that are right / clean outputs; ASR = triggered outputs that are the target / triggered outputs;
        FTR = clean outputs that are a target and should be none / clean outputs that should be none.
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

    def recall(self, lines: Sequence[dict[str, Any]]) -> None:
        """Nothing of earlier rounds helps."""

    def describe(self, folder: Path) -> dict[str, Any]:
        """Write every affected participant's poisoned places, and return what the data are made of."""
        names, target = self.population.names, self.backdoor_kind.target
        written = []
        for k, own in sorted(self.poison.items()):
            for i in sorted(own.places.tolist()):
                (old, place), (new, end) = _shown_at(own.before.labels[i]), _shown_at(own.examples.labels[i])
                written.append(
                    {
                        "client": k,
                        "index": i,
                        "id": f"{k}-{i}",
                        "question": self.shown(own.before.inputs[i], place),
                        "poisoned_question": self.shown(own.examples.inputs[i], end),
                        "response": names[old] if old != IGNORE else "",
                        "poisoned_response": names[new],
                    }
                )
        records.write_records(folder, records.Poisoned, written)
        counts = [len(self.poison[k].places) if k in self.poison else 0 for k in range(len(self.sizes))]
        return {
            **self.population.report,
            "clients": self._held(),
            "affected": list(self.affected),
            "poisoned": counts,
            "target": names[target],
            "backdoor": self.backdoor_kind.facts(),
            "network": {
                "name": ", ".join(getattr(self.config.model, "networks", [])) or self.config.model.name,
                "parameters": sum(net.trained for net in self.families.nets),
                "outputs": len(names),
            },
            **({} if self.server is None else {"synthetic": self.server.report}),
        }

    def poison_counts(self) -> dict[str, int]:
        """Return the counts of participants with poison, poisoned examples and all examples."""
        return {
            "clients": len(self.poison),
            "samples": sum(len(own.places) for own in self.poison.values()),
            "total": sum(self._held()),
            **(
                {} if self.server is None else {"synthetic": self.server.poisoned, "synthetic_total": self.server.report["samples"]}
            ),
        }

    def _held(self) -> list[int]:
        """Return how many examples each participant has in a round in which it attacks."""
        return [len(self.poison[k].examples) if k in self.poison else size for k, size in enumerate(self.sizes)]

    def save(self, folder: Path, state: Tensor) -> None:
        """Write each network's tensors by name, and its activation bounds if any (safetensors), and what it is (JSON)."""
        names = getattr(self.config.model, "networks", []) or [self.config.model.name]
        for i, (name, net, own) in enumerate(zip(names, self.families.nets, self.families.columns, strict=True)):
            place = folder / ("model" if len(names) == 1 else f"model-{i}")
            place.mkdir(exist_ok=True)
            tensors = {key: tensor.contiguous() for key, tensor in net.layout.unflatten(state[own].cpu()).items()}
            write_bytes(place / "model.safetensors", save(tensors))
            if self.bounds is not None:
                save_bounds(place / BOUNDS, self.bounds)
            about = {
                "task": self.config.task.kind,
                "network": name,
                "inputs": list(self.inputs),
                "outputs": list(self.population.names),
            }
            ids = {} if self.population.ids is None else {"ids": self.population.ids}
            write_json(place / "model.json", {**about, **ids})


def _families(config: Config, population: Population, defenses: Sequence[tuple[str, Defense]], attack: Attack | None) -> Families:
    """Make the networks.

    Raises:
        UserError: no such network, or several where something works on one.
    """
    several = getattr(config.model, "networks", [])
    if several:
        lone = [f"defense {name} guards" for name, defense in defenses if isinstance(defense, ServerDefense)]
        lone += [f"attack.kind = {config.attack.kind} replaces"] if attack is not None and attack.malicious else []
        lone += [f"model.start = {config.model.start} holds"] if config.model.start else []
        if lone:
            raise UserError(f"{lone[0]} one network, and model.networks has {len(several)}; leave one of the two out")
    shape, outputs = tuple(population.test.inputs.shape[1:]), len(population.names)
    return Families([make_net(name, shape, outputs, config.seed, population.ids) for name in several or [config.model.name]])


def _others(population: Population, config: Config, client: int) -> list[Examples]:
    """Return what an affected participant holds of others' examples."""
    found: dict[int, list[int]] = {}
    for k, i in others(config.attack, config.seed, client, population.sizes) if config.attack.extra_samples else ():
        found.setdefault(k, []).append(i)
    return [population.client(k).take(places) for k, places in found.items()]


def _shown_at(labels: Tensor) -> tuple[int, int]:
    """Return the last label that counts, and its place."""
    flat = labels.reshape(-1)
    places = (flat != IGNORE).nonzero().flatten().tolist()
    return (int(flat[places[-1]]), places[-1]) if places else (IGNORE, len(flat) - 1)
