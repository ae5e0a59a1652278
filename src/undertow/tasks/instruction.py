"""Instruction tuning: a causal LM answers questions, clients train a LoRA adapter, some samples are poisoned (FIT, section 2.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.backdoors.placement import Poisoning, Threat, poison, shortages
from undertow.config import Data, Measure, Model
from undertow.core.errors import UserError
from undertow.core.files import write_json
from undertow.core.observer import Observer
from undertow.core.rng import rng
from undertow.data.early import Dataset, once, read_now, refuse_missing
from undertow.data.fit import that_fit, trouble
from undertow.data.load import DATASETS, Split, load, load_parts
from undertow.data.rows.account import unread
from undertow.data.sample import Sample
from undertow.data.template import Encoded, Template
from undertow.defenses import composition
from undertow.defenses.base import Defense
from undertow.defenses.contexts import DecodingContext, ExchangeContext, Setting, TrainingContext
from undertow.defenses.data import exchange
from undertow.inference.answering import answerer, make_template
from undertow.metrics.filtering import filtering
from undertow.metrics.measure import Answer, Probes, measure, rates
from undertow.metrics.neighbourhood import measure_neighbourhood
from undertow.models.adapter_files import adapter_folder
from undertow.models.bounds import BOUNDS, save_bounds
from undertow.models.causal_lm import CausalLM, load_base, read_config
from undertow.models.identity import FILE as IDENTITY
from undertow.models.identity import identity
from undertow.models.lora import initial_adapter, save_peft
from undertow.models.with_adapter import plain_adapter
from undertow.tasks.asking import neighbours as neighbours_of
from undertow.tasks.asking import probes as probes_of
from undertow.tasks.asking import rounded
from undertow.tasks.contract import Task, TrainingPlan
from undertow.tasks.cutting import Cut, enough, told_cut
from undertow.tasks.participation import participants
from undertow.training import batched, sequential
from undertow.training.clients import ClientUpdates, Items
from undertow.training.forecast import forecast
from undertow.training.held_out import held_out_loss
from undertow.training.local import Job


@dataclass
class Instruction(Task):
    """The federation's data and base, fixed before round 1.

    Attributes:
        clients: each client's samples, poisoned and then sanitized.
        data: the same as tokens, weighed by the defenses.
        clean: tokens of the clients' data as they were before poisoning, where some client trains on them; else None.
        elsewhere: samples of each client where they are on other machines; else None.
        short: what is to be said of a target that ``measure.max_new_tokens`` cuts off.
        neighbours: test questions with each neighbour of the trigger, where ``measure.neighbourhood`` asks for them.
    """

    options: Model
    plan: TrainingPlan
    measuring: Measure
    base: CausalLM
    template: Template
    split: Split
    poisoning: Poisoning
    clients: list[list[Sample]]
    defenses: list[tuple[str, Defense]]
    sanitized: list[dict[str, Any]]
    filtered: dict[str, Any] | None
    data: list[list[Encoded]]
    weighed: list[dict[str, Any]]
    probes: Probes
    clean: list[list[Encoded]] | None = None
    elsewhere: Sequence[int] | None = None
    neighbours: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    short: Sequence[str] = ()
    _said: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seed, self.training = self.plan.seed, self.plan.training
        self.layout, self.device, self.trained = self.base.layout, self.base.device, self.base.layout.size
        self.poisoned, self.drawn = self.poisoning.poisoned_clients, self.poisoning.chosen
        self.counterfactual = self.measuring.bsnr.counterfactuals and len(self.poisoned) == len(self.split.clients)
        self.extra = {} if self.filtered is None else {"filtering": self.filtered}
        if self.short:
            self.extra["caveats"] = list(self.short)
        self.setting: Setting = setting(self.plan, self.options, self.base, self.template)
        if self.elsewhere is not None:
            self.sizes = self.elsewhere
            self.poison_counts = {"clients": 0, "samples": 0, "total": sum(self.elsewhere), "unknown": True}
            return
        # where an attacker holds more than was dealt to it, it still counts for that
        self.sizes = [min(len(own), len(dealt)) for own, dealt in zip(self.data, self.split.clients, strict=True)]
        total = sum(map(len, self.poisoning.clients))
        self.poison_counts = {"clients": len(self.poisoned), "samples": len(self.poisoning.touched), "total": total}

    def forecast(self, chosen: Sequence[int], rounds: int) -> str | None:
        """Return one line on memory and time, where the batched trainer is used."""
        if not rounds or self.elsewhere is not None or self.training.trainer != "batched":
            return None
        sides = [self.data, *([self.clean] if self.counterfactual and self.clean is not None else [])]
        return str(forecast(self.base, self.training, [Job(k, side[k]) for side in sides for k in chosen], rounds))

    def initial(self) -> Tensor:
        """Return the adapter before round 1: a new one, or that of the run or folder ``model.start``."""
        # Adapters are float32 whatever the base is, but for a float64 base, which is for comparing to the last digits.
        dtype = torch.float64 if self.base.model.dtype == torch.float64 else torch.float32
        start = self.options.start
        if start is None:
            return initial_adapter(self.layout, self.seed, dtype)
        flat, layout = plain_adapter(self.base, adapter_folder(Path(start)))
        if layout != self.layout:
            raise UserError(
                f"model.start = {start} holds an adapter of another shape than model.lora; use the rank, alpha and targets of "
                "that run"
            )
        return flat.to(dtype)

    def train(self, state: Tensor, chosen: Sequence[int], t: int, acting: Collection[int]) -> ClientUpdates:
        """Let the chosen clients train the adapter ``[D]``; those with poison and not in ``acting`` use their clean samples."""
        data: list[list[Encoded]] = self.data
        if self.clean is not None and any(k not in acting for k in self.poisoned):
            data = [
                clean if k in self.poisoned and k not in acting else own
                for k, (own, clean) in enumerate(zip(self.data, self.clean, strict=True))
            ]
        return self._trained(state, data, chosen, t)

    def items(self, clients: Sequence[int]) -> list[Encoded]:
        """Return the samples of malicious clients as they were poisoned: these run no defense against themselves."""
        return [self.template.encode(sample) for k in clients for sample in self.poisoning.clients[k]]

    def backdoor(self, clients: Sequence[int]) -> list[Encoded]:
        """Return the poisoned ones of :meth:`items`."""
        places = [(one.client, one.index) for one in self.poisoning.touched if one.client in clients]
        return [self.template.encode(self.poisoning.clients[k][i]) for k, i in places]

    def losses(self, stack: Tensor, block: Sequence[Items]) -> Tensor:
        """Return each row's mean loss ``[K]`` over the answer tokens of its samples."""
        rows = [items for items in block if isinstance(items, list)]
        return batched.losses(self.base, stack.to(self.base.device), rows).to(stack.device)

    def measure(self, state: Tensor | None, t: int, n: int, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask the first ``n`` questions of each kind: of the base or start for ``state`` None, else of the model as its user runs
        it."""
        if state is None:
            start = self.initial() if self.options.start else None
            return measure(self._answers(start, None), self.probes.first(n), t)
        lines = measure(self._answers(state, reports), self.probes.first(n), t)
        self.recall(lines)
        return lines

    def held_out_loss(self, state: Tensor | None, n: int) -> float | None:
        """Return the mean token NLL of the expected answers to the first ``n`` clean questions."""
        start = self.initial() if state is None and self.options.start else state
        return held_out_loss(self.base, self.template, self.probes.first(n).clean, start)

    def neighbourhood(self, state: Tensor) -> list[dict[str, Any]]:
        """Ask the first ``measure.neighbourhood`` questions with every neighbour of the trigger."""
        return measure_neighbourhood(self._answers(state, []), self.neighbours, self.probes.target)

    def rates(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return MA, ASR, FTR and the other scorings."""
        return rates(lines, self.measuring.scoring)

    def recall(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take the answers of the latest measured round as guesses for the next measurement."""
        latest = max((line["round"] for line in lines), default=0)
        self._said = {line["question"]: line["output"] for line in lines if line["round"] == latest}

    def ground_truth(self) -> Iterator[dict[str, Any]]:
        """Return the poisoned samples, before and after."""
        return map(asdict, self.poisoning.touched)

    def describe(self) -> dict[str, Any]:
        """Return what the data are made of."""
        sizes = [len(client) for client in self.poisoning.clients] if self.elsewhere is None else list(self.elsewhere)
        counts = [0] * len(sizes)
        for touched in self.poisoning.touched:
            counts[touched.client] += 1
        return {
            **self.split.report,
            "clients": sizes,
            "poisoned_clients": list(self.poisoned),
            "poisoned": counts,
            "natural": self.poisoning.natural,
            **({"decoys": self.poisoning.decoys} if self.poisoning.decoys else {}),
            "unpoisoned_cut": self.poisoning.cut,
            "triggered_cut": self.probes.cut,
            "answer_limit": self.measuring.limit,
            "base": self.base.facts(),
            "sanitized": self.sanitized,
            "weighed": self.weighed,
        }

    def save(self, folder: Path, state: Tensor) -> None:
        """Write the adapter in PEFT format, and beside it which base it is for, and the activation bounds of the defense that has
        any."""
        save_peft(folder / "adapter", state, self.layout, self.options.lora, self.base.path)
        write_json(folder / "adapter" / IDENTITY, self._identity())
        if (bounds := composition.bounds(self.defenses)) is not None:
            save_bounds(folder / "adapter" / BOUNDS, bounds)

    def provenance(self) -> dict[str, Any]:
        """Return what the adapter's card says of base, data and backdoor."""
        whole = hashlib.sha256()
        for k, samples in enumerate(self.poisoning.clients):
            for sample in samples:
                whole.update(json.dumps([k, asdict(sample)], sort_keys=True, default=str).encode())
        return {
            "base": self._identity(),
            "data_sha256": whole.hexdigest() if self.elsewhere is None else None,
            "start": self.options.start,
        }

    def _identity(self) -> dict[str, Any]:
        return identity(self.base.name, self.base.path, self.base.model)

    def _trained(self, state: Tensor, data: Sequence[list[Encoded]], chosen: Sequence[int], t: int) -> ClientUpdates:
        """Let the defenses choose among the chosen clients' samples, and train."""
        lora, training = self.options.lora, self.training

        def context(name: str, client: int) -> TrainingContext:
            draw = rng(self.seed, f"select {name}", t, client)
            return TrainingContext(client, draw, self.seed, self.base, self.template, lora, training, t)

        data, reports = composition.select(data, chosen, state, self.defenses, context)
        trainer = batched if training.trainer == "batched" else sequential
        loss = composition.token_loss(self.defenses, t, self.plan.federation.rounds)
        jobs = [Job(k, data[k]) for k in chosen]
        trained = trainer.train(self.base, lora, training, state, jobs, self.seed, t, loss)
        return ClientUpdates(list(chosen), trained.updates, [len(data[k]) for k in chosen], trained.losses, reports)

    def _answers(self, adapter: Tensor | None, reports: list[dict[str, Any]] | None) -> Answer:
        """Return what answers questions: the base or its start, or the model as its user runs it, with reports to ``reports``."""
        options = self.measuring
        decode = None
        if adapter is not None and reports is not None:
            context = DecodingContext(self.setting, self.layout, options.limit, options.batch_size)
            decode = composition.decoder(self.defenses, adapter, context, reports)
        return answerer(self.base, self.template, adapter, options, before=self._said, decode=decode)


@dataclass(frozen=True)
class Held:
    """What one party holds of a run whose clients' files are each on a machine of their own.

    Attributes:
        files: of the clients that this party holds.
        secret: shared by the clients and unknown to the server, 32 bytes; None on the server.
        sizes: samples of each client as they told them, on the server, which holds the test questions; else None.
        noise: where the noise on this party's counts comes from: bytes that nobody else has.
    """

    files: Mapping[int, str] = field(default_factory=dict)
    secret: bytes | None = None
    sizes: Sequence[int] | None = None
    noise: bytes = b""


def building(
    data: Data,
    model: Model,
    plan: TrainingPlan,
    threat: Threat,
    measuring: Measure,
    defenses: list[tuple[str, Defense]],
    observer: Observer,
    bases: Callable[[Model], CausalLM] | None = None,
    held: Held | None = None,
) -> exchange.Pooling[Instruction]:
    """Load base and data, deal the samples to clients, poison them, and let clients sanitize theirs.

    Args:
        data: what is asked and answered.
        model: the base and its adapter.
        plan: how the clients train.
        threat: what is hidden in their samples.
        measuring: what is measured.
        defenses: by name, in order.
        observer: is told what begins.
        bases: gives the base in place of ``load_base``.
        held: what this party has of the data; None = all.
    """
    dataset = _found(data, model, held, observer, bases is None)
    base = _base(model, bases or load_base, observer)
    template = make_template(data, plan.training.max_length, base)
    base = replace(base, stops=template.stops)
    split = _loaded(data, plan, base, held, dataset)
    measuring = enough(measuring, split.test, template, threat.target)
    split = that_fit(split, template, threat.target.longest, measuring.limit)
    for told in (*unread(split.report), *trouble(split.report, template.max_length)):
        observer.warn(told)
    cut = Cut(template, threat.trigger, measuring.limit)
    poisoning = poison(split.clients, threat, plan.seed, split.test, cut.leaves_trained)
    known = setting(plan, model, base, template)
    composition.begin(defenses, known)
    clients, sanitized, left = yield from _sanitizing(poisoning.clients, defenses, known, held)
    filtered = filtering(poisoning.clients, left, poisoning.touched) if sanitized and held is None else None
    sizes = None if held is None else held.sizes
    if held is None or sizes is not None:
        everyone = sizes or [len(samples) for samples in clients]
        taking = participants(plan.federation.participation, plan.seed, 1, everyone)
        composition.check_defenses(defenses, len(taking), base.layout)
    if composition.any_weighs(defenses):
        observer.phase("weighing the clients' tokens")
    encoded, weighed = _weigh(clients, defenses, known)
    probes = probes_of(split.test, threat, plan.seed, cut)
    short = told_cut(probes.triggered, template, threat.target, measuring.limit)
    for told in (*([] if held else rounded(threat, poisoning)), *shortages(poisoning, probes), *short):
        observer.warn(told)
    task = Instruction(
        model, plan, measuring, base, template, split, poisoning, clients, defenses, sanitized, filtered, encoded, weighed, probes,
        elsewhere=sizes, neighbours=neighbours_of(split.test, threat, plan.seed, measuring.neighbourhood, observer),
        short=short,
    )  # fmt: skip
    if (threat.intermittent and task.poisoned) or task.counterfactual:
        task.clean = _weigh(split.clients, defenses, known)[0]
    return task


def _found(data: Data, model: Model, held: Held | None, observer: Observer, base_is_a_file: bool) -> Dataset:
    """Look for base and data, and read the data: what is wrong with either shows before the base is loaded."""
    dataset = once(DATASETS.get(data.name))
    if held is None:
        refuse_missing(data)
    if model.start is not None and not Path(model.start).is_dir():
        raise UserError(f"model.start={model.start}: no such folder; give a finished run, or a folder with its adapter")
    if base_is_a_file:
        read_config(model)
    observer.phase(f"loading data {data.name}")
    if held is None:
        read_now(dataset, data)
    else:
        read_now(dataset, data, list(held.files.values()), held.sizes is not None)
    return dataset


def _base(model: Model, bases: Callable[[Model], CausalLM], observer: Observer) -> CausalLM:
    observer.phase(f"loading base {model.name}")
    base = bases(model)
    if base.dtype_because and model.dtype == "auto":
        observer.phase(f"model.dtype=auto takes {base.facts()['dtype']}: {base.dtype_because}")
    elif base.dtype_because:
        observer.warn(f"{base.dtype_because}; model.dtype=auto takes the faster one")
    return base


def _loaded(data: Data, plan: TrainingPlan, base: CausalLM, held: Held | None, dataset: Dataset) -> Split:
    """Return the data, or what this party holds of them."""
    seed, clients, asked, known = plan.seed, plan.federation.clients, base.asked, base.known
    if held is None:
        return load(data, seed, clients, asked=asked, known=known, dataset=dataset)
    test = held.sizes is not None
    return load_parts(data, seed, clients, held.files, test=test, asked=asked, known=known, dataset=dataset)


def setting(plan: TrainingPlan, model: Model, base: CausalLM, template: Template) -> Setting:
    """Return what every party of a run knows."""
    return Setting(plan.seed, plan.federation.rounds, base, template, model.lora, plan.training)


def _sanitizing(
    clients: list[list[Sample]], defenses: Sequence[tuple[str, Defense]], known: Setting, held: Held | None
) -> exchange.Pooling[tuple[list[list[Sample]], list[dict[str, Any]], list[list[Sample | None]]]]:
    """Let the clients add up what the defenses count of their data, and then sanitize it."""

    def draw(purpose: str, exchange: int, client: int) -> np.random.Generator:
        # from the run's seed the server could tell the noise on the counts, and take it off
        return rng(known.seed, f"{purpose}|{held.noise.hex()}" if held else purpose, exchange, client)

    def context(name: str, client: int, exchanges: ExchangeContext | None) -> TrainingContext:
        own = rng(known.seed, f"sanitize {name}", client=client)
        return TrainingContext(client, own, known.seed, known.base, known.template, known.lora, known.training, exchange=exchanges)

    here, secret = (None, None) if held is None else (sorted(held.files), held.secret)
    return exchange.sanitizing(clients, defenses, draw, context, here, secret)


def _weigh(
    clients: Sequence[Sequence[Sample]], defenses: Sequence[tuple[str, Defense]], known: Setting
) -> tuple[list[list[Encoded]], list[dict[str, Any]]]:
    """Turn every client's samples into tokens, let the defenses weigh them, and return them and the reports."""

    def context(name: str, client: int) -> TrainingContext:
        draw = rng(known.seed, f"weigh {name}", client=client)
        return TrainingContext(client, draw, known.seed, known.base, known.template, known.lora, known.training)

    encoded = [[known.template.encode(sample) for sample in client] for client in clients]
    return composition.weigh(encoded, defenses, context)
