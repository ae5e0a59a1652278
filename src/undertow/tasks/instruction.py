"""Instruction tuning: a causal LM answers questions, clients train a LoRA adapter, poison is hidden in their samples (FIT, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.backdoors.placement import Poisoning, make_probes, poison, shortages
from undertow.backdoors.target import make_target
from undertow.config import Config, Model
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.observer import Observer
from undertow.core.rng import rng
from undertow.data.fit import that_fit, trouble
from undertow.data.load import Split, load, load_parts
from undertow.data.sample import Sample
from undertow.data.template import Encoded, Template
from undertow.defenses import composition
from undertow.defenses.base import Defense
from undertow.defenses.contexts import DecodingContext, ExchangeContext, Setting, TrainingContext
from undertow.defenses.registry import make_defenses
from undertow.inference.answering import answerer, make_template
from undertow.metrics.filtering import filtering
from undertow.metrics.measure import Answer, Probes, measure, rates
from undertow.models.bounds import BOUNDS, save_bounds
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.lora import initial_adapter, load_peft, save_peft
from undertow.runs.records import Poisoned, write_records
from undertow.tasks.contract import Items, Local, Task
from undertow.tasks.participation import participants
from undertow.training import batched, sequential
from undertow.training.forecast import forecast
from undertow.training.local import Job


@dataclass
class Instruction(Task):
    """The federation's data and base, fixed before round 1.

    Attributes:
        clients: each client's samples, poisoned and then sanitized.
        data: the same as tokens, weighed by the defenses.
        clean: tokens of the clients' data as they were before poisoning, where some client trains on them; else None.
        elsewhere: samples of each client where they are on other machines; else None.
    """

    config: Config
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
    _said: dict[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Of the adapter."""
        return self.base.layout

    @property
    def affected(self) -> Sequence[int]:
        """Clients with poison."""
        return self.poisoning.affected

    @property
    def chosen(self) -> Sequence[int]:
        """Clients drawn to hold poison."""
        return self.poisoning.chosen

    @property
    def extra(self) -> Mapping[str, Any]:
        """What the defenses took out of the data, measured against the ground truth."""
        return {} if self.filtered is None else {"filtering": self.filtered}

    @property
    def sizes(self) -> Sequence[int]:
        """Samples of each client after sanitization; of those dealt to it, where an attacker holds more."""
        if self.elsewhere is not None:
            return self.elsewhere
        return [min(len(samples), len(dealt)) for samples, dealt in zip(self.data, self.split.clients, strict=True)]

    @property
    def setting(self) -> Setting:
        """What every party knows."""
        return setting(self.config, self.base, self.template)

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.base.device

    def forecast(self, chosen: Sequence[int], rounds: int) -> str | None:
        """Return one line on memory and time, where the batched trainer is used."""
        if not rounds or self.elsewhere is not None or self.config.training.trainer != "batched":
            return None
        sides = [self.data, *([self.clean] if self._has_twins and self.clean is not None else [])]
        return str(forecast(self.base, self.config.training, [Job(k, side[k]) for side in sides for k in chosen], rounds))

    def initial(self) -> Tensor:
        """Return the adapter before round 1: a new one, or that of the run or folder ``model.start``."""
        # Adapters are float32 whatever the base is, but for a float64 base, which is for comparing to the last digits.
        dtype = torch.float64 if self.base.model.dtype == torch.float64 else torch.float32
        start = self.config.model.start
        if start is None:
            return initial_adapter(self.layout, self.config.seed, dtype)
        folder = Path(start) / "adapter" if (Path(start) / "adapter").is_dir() else Path(start)
        flat, layout = load_peft(folder, self.base.model)
        if layout != self.layout:
            raise UserError(
                f"model.start = {start} holds an adapter of another shape than model.lora; use the rank, alpha and targets of that run"
            )
        return flat.to(dtype)

    def train(self, state: Tensor, chosen: Sequence[int], t: int, poisoned: Collection[int]) -> Local:
        """Let the chosen clients train the adapter ``[D]``; those that are affected and not in ``poisoned`` use their clean samples."""
        data: list[list[Encoded]] = self.data
        if self.clean is not None and any(k not in poisoned for k in self.affected):
            data = [
                clean if k in self.affected and k not in poisoned else own
                for k, (own, clean) in enumerate(zip(self.data, self.clean, strict=True))
            ]
        return self._trained(state, data, chosen, t)

    def twins(self, state: Tensor, chosen: Sequence[int], t: int) -> Tensor | None:
        """Return the updates of the same clients from their data without poison, where every client is affected and the config asks for it."""
        return self._trained(state, self.clean, chosen, t).updates if self._has_twins and self.clean is not None else None

    def items(self, clients: Sequence[int]) -> list[Encoded]:
        """Return the samples of compromised clients as they were poisoned: these run no defense against themselves."""
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
        """Ask the first ``n`` questions of each kind: of the base or start for ``state`` None, else of the tuned model as its user runs it."""
        if state is None:
            start = self.initial() if self.config.model.start else None
            return measure(self._answers(start, None), self.probes.first(n), t)
        lines = measure(self._answers(state, reports), self.probes.first(n), t)
        self.recall(lines)
        return lines

    def rates(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return MA, ASR, FTR and the other scorings."""
        return rates(lines, self.config.measure.scoring)

    def recall(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take the answers of the latest measured round as guesses for the next measurement."""
        latest = max((line["round"] for line in lines), default=0)
        self._said = {line["question"]: line["output"] for line in lines if line["round"] == latest}

    def describe(self, folder: Path) -> dict[str, Any]:
        """Write the poisoned samples, and return what the data are made of."""
        write_records(folder, Poisoned, map(asdict, self.poisoning.touched))
        sizes = [len(client) for client in self.poisoning.clients] if self.elsewhere is None else list(self.elsewhere)
        counts = [0] * len(sizes)
        for touched in self.poisoning.touched:
            counts[touched.client] += 1
        return {
            **self.split.report,
            "clients": sizes,
            "affected": list(self.poisoning.affected),
            "poisoned": counts,
            "natural": self.poisoning.natural,
            **({"decoys": self.poisoning.decoys} if self.poisoning.decoys else {}),
            "base": self.base.facts(),
            "sanitized": self.sanitized,
            "weighed": self.weighed,
        }

    def poison_counts(self) -> dict[str, int]:
        """Return the counts of clients with poison, poisoned samples and all samples."""
        if self.elsewhere is not None:
            return {"clients": 0, "samples": 0, "total": sum(self.elsewhere), "unknown": True}
        total = sum(len(client) for client in self.poisoning.clients)
        return {"clients": len(self.poisoning.affected), "samples": len(self.poisoning.touched), "total": total}

    def save(self, folder: Path, state: Tensor) -> None:
        """Write the adapter in PEFT format, and beside it the activation bounds of the defense that has any."""
        save_peft(folder / "adapter", state, self.layout, self.config.model.lora, self.base.path)
        if (bounds := composition.bounds(self.defenses)) is not None:
            save_bounds(folder / "adapter" / BOUNDS, bounds)

    @property
    def _has_twins(self) -> bool:
        return self.config.measure.bsnr.twins and len(self.poisoning.affected) == len(self.split.clients)

    def _trained(self, state: Tensor, data: Sequence[list[Encoded]], chosen: Sequence[int], t: int) -> Local:
        """Let the defenses choose among the chosen clients' samples, and train."""
        config = self.config

        def context(name: str, client: int) -> TrainingContext:
            draw = rng(config.seed, f"select {name}", t, client)
            return TrainingContext(client, draw, config.seed, self.base, self.template, config.model.lora, config.training, t)

        data, reports = composition.select(data, chosen, state, self.defenses, context)
        trainer = batched if config.training.trainer == "batched" else sequential
        loss = composition.token_loss(self.defenses, t, config.federation.rounds)
        jobs = [Job(k, data[k]) for k in chosen]
        trained = trainer.train(self.base, config.model.lora, config.training, state, jobs, config.seed, t, loss)
        return Local(list(chosen), trained.updates, [len(data[k]) for k in chosen], trained.losses, reports)

    def _answers(self, adapter: Tensor | None, reports: list[dict[str, Any]] | None) -> Answer:
        """Return what answers questions: the base or its start, or the tuned model as its user runs it, with reports to ``reports``."""
        options = self.config.measure
        decode = None
        if adapter is not None and reports is not None:
            context = DecodingContext(self.setting, self.layout, options.max_new_tokens, options.batch_size)
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


def build(
    config: Config,
    observer: Observer,
    bases: Callable[[Model], CausalLM] | None = None,
    *,
    defenses: list[tuple[str, Defense]] | None = None,
    returns: bool = False,
    held: Held | None = None,
) -> Instruction:
    """Go through :func:`building` with all clients in one process."""
    return composition.alone(building(config, observer, bases, defenses=defenses, returns=returns, held=held))


def building(
    config: Config,
    observer: Observer,
    bases: Callable[[Model], CausalLM] | None = None,
    *,
    defenses: list[tuple[str, Defense]] | None = None,
    returns: bool = False,
    held: Held | None = None,
) -> composition.Pooling[Instruction]:
    """Load base and data, deal the samples to clients, poison them, and let clients sanitize theirs.

    Args:
        config: of the run.
        observer: is told what begins.
        bases: gives the base in place of ``load_base``.
        defenses: by name, in the order of the config; None = those it lists.
        returns: whether affected clients train on clean samples in some rounds.
        held: what this party has of the data; None = all.
    """
    observer.phase(f"loading base {config.model.name}")
    base = (bases or load_base)(config.model)
    template = make_template(config, base)
    observer.phase(f"loading data {config.data.name}")
    if held is None:
        split = load(config, asked=base.asked, known=base.known)
    else:
        split = load_parts(config, held.files, test=held.sizes is not None, asked=base.asked, known=base.known)
    split = that_fit(split, template, config)
    for told in trouble(split.report, template.max_length):
        observer.warn(told)
    poisoning = poison(split.clients, config.attack, config.backdoor, config.seed, split.test)
    defenses = make_defenses(config.defenses) if defenses is None else defenses
    composition.begin(defenses, setting(config, base, template))
    clients, sanitized, left = yield from _sanitizing(poisoning.clients, defenses, config, base, template, held)
    filtered = filtering(poisoning.clients, left, poisoning.touched) if sanitized and held is None else None
    sizes = None if held is None else held.sizes
    if held is None or sizes is not None:
        taking = participants(config, 1, sizes or [len(samples) for samples in clients])
        composition.check_defenses(defenses, len(taking), base.layout)
    if composition.any_weighs(defenses):
        observer.phase("weighing the clients' tokens")
    data, weighed = _weigh(clients, defenses, config, base, template)
    probes = (
        make_probes(split.test, config.backdoor, config.seed) if split.test else Probes([], [], make_target(config.backdoor), [])
    )
    for told in shortages(poisoning, probes):
        observer.warn(told)
    task = Instruction(
        config, base, template, split, poisoning, clients, defenses, sanitized, filtered, data, weighed, probes, elsewhere=sizes
    )
    if (returns and task.affected) or task._has_twins:
        task.clean = _weigh(split.clients, defenses, config, base, template)[0]
    return task


def setting(config: Config, base: CausalLM, template: Template) -> Setting:
    """Return what every party of a run knows."""
    return Setting(config.seed, config.federation.rounds, base, template, config.model.lora, config.training)


def _sanitizing(
    clients: list[list[Sample]],
    defenses: Sequence[tuple[str, Defense]],
    config: Config,
    base: CausalLM,
    template: Template,
    held: Held | None,
) -> composition.Pooling[tuple[list[list[Sample]], list[dict[str, Any]], list[list[Sample | None]]]]:
    """Let the clients add up what the defenses count of their data, and then sanitize it."""

    def draw(purpose: str, exchange: int, client: int) -> np.random.Generator:
        # from the run's seed the server could tell the noise on the counts, and take it off
        return rng(config.seed, f"{purpose}|{held.noise.hex()}" if held else purpose, exchange, client)

    def context(name: str, client: int, exchanges: ExchangeContext | None) -> TrainingContext:
        own = rng(config.seed, f"sanitize {name}", client=client)
        return TrainingContext(client, own, config.seed, base, template, config.model.lora, config.training, exchange=exchanges)

    here, secret = (None, None) if held is None else (sorted(held.files), held.secret)
    return composition.sanitizing(clients, defenses, draw, context, here, secret)


def _weigh(
    clients: Sequence[Sequence[Sample]], defenses: Sequence[tuple[str, Defense]], config: Config, base: CausalLM, template: Template
) -> tuple[list[list[Encoded]], list[dict[str, Any]]]:
    """Turn every client's samples into tokens, let the defenses weigh them, and return them and the reports."""

    def context(name: str, client: int) -> TrainingContext:
        draw = rng(config.seed, f"weigh {name}", client=client)
        return TrainingContext(client, draw, config.seed, base, template, config.model.lora, config.training)

    return composition.weigh([[template.encode(sample) for sample in client] for client in clients], defenses, context)
