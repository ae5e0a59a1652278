"""The whole method, in the order of the FIT paper's section 2.1.

data, base model, clients; poison hidden in some of them; then rounds of local training, aggregation and
measurement. Everything else in the package is a room with one purpose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from undertow.config import Config, Model
from undertow.data.fit import that_fit, trouble
from undertow.data.load import Split, load
from undertow.data.sample import Sample
from undertow.data.template import Encoded, Template
from undertow.defenses import composition, cross_term
from undertow.defenses.contract import (
    DecodingContext,
    Defense,
    ExchangeContext,
    ServerContext,
    Setting,
    TrainingContext,
    make_defenses,
    overrides,
)
from undertow.errors import UserError
from undertow.files import write_json
from undertow.metrics.filtering import filtering
from undertow.metrics.measure import Answer, Probes, measure, rates
from undertow.metrics.round_bsnr import round_bsnr
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.lora import initial_adapter, save_peft
from undertow.poisoning.placement import Poisoning, make_probes, poison, shortages
from undertow.record import describe, summarise
from undertow.rng import rng
from undertow.run_directory import RunDirectory, State
from undertow.training import batched, sequential
from undertow.training.answering import answerer, make_template
from undertow.training.budget import forecast
from undertow.training.local import Job, Trained
from undertow.training.threads import set_threads


class Watcher(Protocol):
    """Who looks on while a run goes: the command line's display, or nobody."""

    def phase(self, text: str) -> None:
        """Something long begins."""

    def warn(self, text: str) -> None:
        """Something the user should know, in one line."""

    def round(self, row: dict[str, Any], of: int) -> None:
        """A round is finished and saved."""


@dataclass(frozen=True)
class Federation:
    """Everything that is fixed before round 1."""

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

    @property
    def setting(self) -> Setting:
        """What every party knows."""
        return setting(self.config, self.base, self.template)


def setting(config: Config, base: CausalLM, template: Template) -> Setting:
    """Return what every party of a run knows."""
    return Setting(config.seed, config.federation.rounds, base, template, config.model.lora, config.training)


def run(
    config: Config, folder: Path, watcher: Watcher, *, command: str = "", bases: Callable[[Model], CausalLM] | None = None
) -> dict[str, Any]:
    """Run an experiment, or what is left of it, and return its final figures.

    Args:
        config: what to do.
        folder: the run directory; an interrupted run of the same config is resumed there.
        watcher: is told what happens.
        command: what the user typed, for the record.
        bases: gives the base in place of ``load_base``, so that several runs in one process share a loaded copy.

    Raises:
        UserError: anything the user can mend; what is on disk stays valid.
    """
    directory = RunDirectory.open(folder, config)
    try:
        done = directory.result()
        if done is not None:
            watcher.phase(f"nothing left to do: {folder} holds all {config.federation.rounds} rounds")
            return done
        set_threads(config.training.threads)
        federation = build(config, watcher, bases)
        describe(directory, federation, command)
        return _rounds(directory, federation, watcher)
    finally:
        directory.close()


def build(config: Config, watcher: Watcher, bases: Callable[[Model], CausalLM] | None = None) -> Federation:
    """Load base and data, deal the samples to clients, poison them, and let clients sanitize theirs."""
    watcher.phase(f"loading base {config.model.name}")
    base = (bases or load_base)(config.model)
    template = make_template(config, base)
    watcher.phase(f"loading data {config.data.name}")
    split = that_fit(load(config, asked=base.asked, known=base.known), template, config)
    for told in trouble(split.report, template.max_length):
        watcher.warn(told)
    poisoning = poison(split.clients, config.attack, config.seed, split.test)
    defenses = make_defenses(config.defenses)
    composition.begin(defenses, setting(config, base, template))
    clients, sanitized, left = _sanitize(poisoning.clients, defenses, config, base, template)
    filtered = filtering(poisoning.clients, left, poisoning.touched) if sanitized else None
    composition.check_defenses(defenses, len(participants(config, 1, clients)), base.layout)
    if any(overrides(defense, "weigh") for _, defense in defenses):
        watcher.phase("weighing the clients' tokens")
    data, weighed = weigh([[template.encode(sample) for sample in client] for client in clients], defenses, config, base, template)
    probes = make_probes(split.test, config.attack, config.seed)
    for told in shortages(poisoning, probes):
        watcher.warn(told)
    return Federation(config, base, template, split, poisoning, clients, defenses, sanitized, filtered, data, weighed, probes)


def _rounds(directory: RunDirectory, federation: Federation, watcher: Watcher) -> dict[str, Any]:
    config, base = federation.config, federation.base
    total = config.federation.rounds
    state, warnings = directory.resume(base.layout.size)
    for warning in warnings:
        watcher.warn(warning)
    data = federation.data
    unpoisoned = _unpoisoned(federation)
    if total and config.training.trainer == "batched":
        jobs = [Job(k, side[k]) for side in (data, unpoisoned) if side is not None for k in participants(config, 1, side)]
        watcher.phase(str(forecast(base, config.training, jobs, total)))
    if state is None:
        state = _untouched(directory, federation, watcher)
    composition.restore_states(federation.defenses, state.defenses)
    said = _said(directory.scores())
    for t in range(state.round + 1, total + 1):
        began = time.monotonic()
        watcher.phase(f"round {t}/{total}: training")
        chosen = participants(config, t, data)
        mine, selected = select(federation, state.adapter, data, chosen, t)
        trained = train(federation, state.adapter, mine, chosen, t)
        updates, chosen, losses, dropped = _checked(trained.updates, chosen, trained.losses, config, t)
        counts = [len(mine[k]) for k in chosen]
        draw = rng(config.seed, "server", t)
        context = ServerContext(base.layout, counts, t, state.adapter, draw, clients=chosen, setting=federation.setting)
        delta, reports = aggregate(updates, federation.defenses, context)
        adapter, reports = guard(state.adapter + delta, federation.defenses, context, [*selected, *reports])
        bsnr = round_bsnr(
            updates,
            # where PR is too small for a single sample, the clients drawn are the group: BSNR without any backdoor
            [k in (federation.poisoning.affected or federation.poisoning.chosen) for k in chosen],
            state.adapter,
            adapter,
            layout=base.layout,
            options=config.measure.bsnr,
            seed=config.seed,
            round=t,
            twins=None if unpoisoned is None else _twins(federation, state.adapter, unpoisoned, chosen, t),
        )
        row: dict[str, Any] = {
            "round": t,
            "loss": float(np.average(losses, weights=context.counts)),
            "client_loss": losses,
            "participants": chosen,
            "dropped": dropped,
            "update_norm": float(torch.linalg.vector_norm(adapter - state.adapter, dtype=torch.float64)),
            "bsnr": bsnr,
            "cross_term": cross_term(updates, context),
            "defenses": reports,
            "ma": None,
            "asr": None,
            "asr_suffix": None,
            "ftr": None,
            "ftr_near": None,
            "scorings": None,
        }
        if t % config.measure.every == 0 or t == total:
            watcher.phase(f"round {t}/{total}: measuring")
            n = config.measure.final_samples if t == total else config.measure.samples
            lines = measure(_answers(federation, adapter, said, reports), federation.probes.first(n), t)
            said = _said(lines)
            directory.append("scores.jsonl", lines)
            row |= rates(lines, config.measure.scoring)
        row["seconds"] = round(time.monotonic() - began, 3)
        directory.append("rounds.jsonl", [row])
        state = State(t, adapter, state.seconds + row["seconds"], composition.save_states(federation.defenses))
        directory.checkpoint(state)
        watcher.round(row, total)
    save_peft(directory.folder / "adapter", state.adapter, base.layout, config.model.lora, base.path)
    result = summarise(config, directory.folder, directory.rounds(), federation.poisoning, state.seconds)
    if federation.filtered is not None:
        result["filtering"] = federation.filtered
    write_json(directory.folder / "result.json", result)
    return result


def _untouched(directory: RunDirectory, federation: Federation, watcher: Watcher) -> State:
    """Measure the base before tuning as round 0."""
    config = federation.config
    began = time.monotonic()
    watcher.phase("measuring the untouched base")
    lines = measure(_answers(federation, None), federation.probes.first(config.measure.final_samples), 0)
    row = {"round": 0, "loss": None, "bsnr": None, **rates(lines, config.measure.scoring)}
    row["seconds"] = round(time.monotonic() - began, 3)
    directory.append("scores.jsonl", lines)
    directory.append("rounds.jsonl", [row])
    state = State(0, initial_adapter(federation.base.layout, config.seed, _adapter_dtype(federation.base)), row["seconds"])
    directory.checkpoint(state)
    watcher.round(row, config.federation.rounds)
    return state


def _adapter_dtype(base: CausalLM) -> torch.dtype:
    """Adapters are float32 whatever the base is, but for a float64 base, which is for comparing to the last digits."""
    return torch.float64 if base.model.dtype == torch.float64 else torch.float32


def participants(config: Config, t: int, data: Sequence[Sequence[Any]]) -> list[int]:
    """Return the clients of round ``t``: max(1, round(participation·K)) of those that have data."""
    able = [k for k, samples in enumerate(data) if samples]
    if not able:
        raise UserError("no client has any sample left; use more data or a milder defense")
    count = min(len(able), max(1, round(config.federation.participation * len(data))))
    if count == len(able):
        return able
    return sorted(rng(config.seed, "participants", t).choice(able, size=count, replace=False).tolist())


def select(
    federation: Federation, adapter: Tensor, data: Sequence[list[Encoded]], chosen: Sequence[int], t: int
) -> tuple[Sequence[list[Encoded]], list[dict[str, Any]]]:
    """Let the defenses choose which of their samples the chosen clients train on in round ``t``; return these and the reports."""
    config = federation.config

    def context(name: str, client: int) -> TrainingContext:
        draw = rng(config.seed, f"select {name}", t, client)
        base, template = federation.base, federation.template
        return TrainingContext(client, draw, config.seed, base, template, config.model.lora, config.training, t)

    return composition.select(data, chosen, adapter, federation.defenses, context)


def _twins(federation: Federation, adapter: Tensor, data: Sequence[list[Encoded]], chosen: Sequence[int], t: int) -> Tensor:
    """Return the updates ``[K, D]`` of the same clients from their data without poison."""
    return train(federation, adapter, select(federation, adapter, data, chosen, t)[0], chosen, t).updates


def train(federation: Federation, adapter: Tensor, data: Sequence[Sequence[Encoded]], chosen: Sequence[int], t: int) -> Trained:
    """Let the chosen clients train from the global adapter ``[D]`` on their data, and return their updates."""
    config = federation.config
    trainer = batched if config.training.trainer == "batched" else sequential
    jobs = [Job(k, data[k]) for k in chosen]
    loss = composition.token_loss(federation.defenses, t, config.federation.rounds)
    trained: Trained = trainer.train(federation.base, config.model.lora, config.training, adapter, jobs, config.seed, t, loss)
    return trained


def fedavg(updates: Tensor, counts: Sequence[int]) -> Tensor:
    """Return Σ_k n_k·U_k / Σ_k n_k, ``[D]`` float32, summed in float64 (McMahan et al. 2017, Algorithm 1)."""
    delta = torch.zeros(updates.shape[1], dtype=torch.float64)
    for row, count in zip(updates, counts, strict=True):
        delta += (count / sum(counts)) * row.to(torch.float64)
    return delta.to(updates.dtype)


def aggregate(
    updates: Tensor, defenses: Sequence[tuple[str, Defense]], context: ServerContext
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the global change ``[D]``: FedAvg, or the rule of the defense that replaces it, after what prepares the updates."""
    return composition.aggregate(updates, defenses, context, fedavg)


def guard(
    adapter: Tensor, defenses: Sequence[tuple[str, Defense]], context: ServerContext, reports: list[dict[str, Any]]
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Let every defense look at the new global adapter, in order."""
    for name, defense in defenses:
        if overrides(defense, "guard"):
            adapter, report = defense.guard(adapter, context)
            reports = [*reports, {"name": name, **report}]
    return adapter, reports


def _sanitize(
    clients: list[list[Sample]], defenses: Sequence[tuple[str, Defense]], config: Config, base: CausalLM, template: Template
) -> tuple[list[list[Sample]], list[dict[str, Any]], list[list[Sample | None]]]:
    """Let the clients add up what the defenses count of their data, and then sanitize it."""

    def draw(purpose: str, exchange: int, client: int) -> np.random.Generator:
        return rng(config.seed, purpose, exchange, client)

    def context(name: str, client: int, exchanges: ExchangeContext | None) -> TrainingContext:
        own = rng(config.seed, f"sanitize {name}", client=client)
        return TrainingContext(client, own, config.seed, base, template, config.model.lora, config.training, exchange=exchanges)

    return composition.sanitize(clients, defenses, draw, context)


def weigh(
    data: Sequence[list[Encoded]], defenses: Sequence[tuple[str, Defense]], config: Config, base: CausalLM, template: Template
) -> tuple[list[list[Encoded]], list[dict[str, Any]]]:
    """Let the defenses weigh the tokens of every client's samples, and return the samples and the reports."""

    def context(name: str, client: int) -> TrainingContext:
        draw = rng(config.seed, f"weigh {name}", client=client)
        return TrainingContext(client, draw, config.seed, base, template, config.model.lora, config.training)

    return composition.weigh(data, defenses, context)


def _checked(
    updates: Tensor, chosen: list[int], losses: list[float], config: Config, t: int
) -> tuple[Tensor, list[int], list[float], list[int]]:
    """Refuse, or by config drop, client updates that are not finite."""
    bad = [k for k, row in zip(chosen, updates, strict=True) if not torch.isfinite(row).all()]
    if not bad:
        return updates, chosen, losses, []
    if config.federation.bad_update == "stop" or len(bad) == len(chosen):
        some = ", ".join(map(str, bad))
        raise UserError(
            f"round {t}: the update of client {some} holds NaN or infinity; lower training.lr, or set federation.bad_update=drop "
            "(it needs at least one sound client)"
        )
    good = [i for i, k in enumerate(chosen) if k not in bad]
    return updates[good], [chosen[i] for i in good], [losses[i] for i in good], bad


def _answers(
    federation: Federation,
    adapter: Tensor | None,
    before: dict[str, str] | None = None,
    reports: list[dict[str, Any]] | None = None,
) -> Answer:
    """Return what answers questions: the untouched base, or the tuned model as its user runs it, with reports to ``reports``."""
    options = federation.config.measure
    decode = None
    if adapter is not None and reports is not None:
        context = DecodingContext(federation.setting, federation.base.layout, options.max_new_tokens, options.batch_size)
        decode = composition.decoder(federation.defenses, adapter, context, reports)
    return answerer(federation.base, federation.template, adapter, options, before=before, decode=decode)


def _said(lines: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the answers of the latest measured round by question: the next round's guesses."""
    latest = max((line["round"] for line in lines), default=0)
    return {line["question"]: line["output"] for line in lines if line["round"] == latest}


def _unpoisoned(federation: Federation) -> list[list[Encoded]] | None:
    """Return the clients' data as it was before poisoning, for BSNR's twins; None unless asked for and nobody is clean."""
    clients = federation.split.clients
    if not federation.config.measure.bsnr.twins or len(federation.poisoning.affected) < len(clients):
        return None
    data = [[federation.template.encode(sample) for sample in client] for client in clients]
    return weigh(data, federation.defenses, federation.config, federation.base, federation.template)[0]
