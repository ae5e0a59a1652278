"""The whole method, in the order of the FIT paper's section 2.1.

A task with its data, poison hidden in some clients; then rounds of local training, aggregation and measurement. Everything else in
the package is a room with one purpose.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.attacks.contract import acts, view, weight
from undertow.config import Config, Model
from undertow.core.errors import UserError
from undertow.core.memory import give_back
from undertow.core.observer import Observer
from undertow.core.rng import rng
from undertow.core.seam import asked
from undertow.core.threads import set_threads
from undertow.defenses import composition, cross_term
from undertow.defenses.base import origin, refuse_answer
from undertow.defenses.contexts import ServerContext
from undertow.federation.resolve import Federation, resolve
from undertow.federation.round_audit import audit_round, stops
from undertow.federation.server import aggregate_parts, guard
from undertow.federation.threat import card
from undertow.metrics.neighbourhood import curve
from undertow.metrics.round_bsnr import round_bsnr
from undertow.models.causal_lm import CausalLM
from undertow.runs.directory import RunDirectory, State
from undertow.runs.records import Neighbour, Poisoned, write_records
from undertow.runs.summary import describe, summarise
from undertow.tasks.contract import Task
from undertow.tasks.instruction import Held
from undertow.tasks.participation import participants
from undertow.training.clients import ClientUpdates

#: Trains the chosen clients of a round: (federation, global state ``[D]``, chosen, who attacks, round). :func:`train` does so here;
#: another one may ask other machines. It returns the rows in the order of the clients, and none for a client that it got no sound
#: update from.
Trainer = Callable[[Federation, Tensor, Sequence[int], set[int], int], ClientUpdates]


def run(
    config: Config,
    folder: Path,
    observer: Observer,
    *,
    command: str = "",
    bases: Callable[[Model], CausalLM] | None = None,
    trainer: Trainer | None = None,
    held: Held | None = None,
    more_rounds: bool = False,
) -> dict[str, Any]:
    """Run an experiment, or what is left of it, and return its final figures.

    Args:
        config: what to do.
        folder: the run directory; an interrupted run of the same config is resumed there.
        observer: is told what happens.
        command: what the user typed, for the record.
        bases: gives the base in place of ``load_base``, so that several runs in one process share a loaded copy.
        trainer: trains the clients in place of :func:`train`.
        held: what of the data is here, where the clients' files are on other machines.
        more_rounds: take up a run that was planned for fewer rounds.

    Raises:
        UserError: anything the user can mend; what is on disk stays valid.
    """
    directory = RunDirectory.open(folder, config, more_rounds)
    try:
        done = directory.result()
        if done is not None:
            last, planned = done["rounds"], config.federation.rounds
            early = f"ended at what its audit found in round {last} of {planned}"
            observer.phase(f"nothing left to do: {folder} {early if last < planned else f'holds all {planned} rounds'}")
            return done
        set_threads(config.training.threads)
        federation = resolve(config, observer, bases=bases, folder=folder, held=held)
        give_back()
        describe(directory, config, federation.task.device, federation.task.describe(), command)
        write_records(folder, Poisoned, federation.task.ground_truth())
        card(config, federation).write(folder)
        return _rounds(directory, federation, observer, trainer or train)
    finally:
        directory.close()


def _rounds(directory: RunDirectory, federation: Federation, observer: Observer, trainer: Trainer) -> dict[str, Any]:
    options, task = federation.options, federation.task
    state, warnings = directory.resume(task.layout.size)
    for warning in warnings:
        observer.warn(warning)
    told = task.forecast(participants(options.participation, federation.seed, 1, task.sizes), options.rounds)
    if told:
        observer.phase(told)
    if state is None:
        state = _untouched(directory, federation, observer)
    composition.restore_states(federation.defenses, state.defenses)
    task.recall(directory.scores())
    auditing = federation.auditing
    for t in range(state.round + 1, options.rounds + 1):
        if auditing.stop and stops(directory.rounds()[-1]):
            break
        began = time.monotonic()
        observer.phase(f"round {t}/{options.rounds}: training")
        adapter, row = _round(federation, state.adapter, t, trainer)
        give_back()
        if auditing.every and t % auditing.every == 0:
            observer.phase(f"round {t}/{options.rounds}: auditing")
            row["audit"] = audit_round(task, adapter, t)
        last = t == options.rounds or (auditing.stop and stops(row))
        if t % federation.measuring.every == 0 or last:
            observer.phase(f"round {t}/{options.rounds}: measuring")
            n = federation.measuring.final_samples if last else federation.measuring.samples
            lines = task.measure(adapter, t, n, row["defenses"])
            directory.append("scores.jsonl", lines)
            row |= task.rates(lines) | _held_out(task, adapter, n)
            give_back()
        row["seconds"] = round(time.monotonic() - began, 3)
        directory.append("rounds.jsonl", [row])
        state = State(t, adapter, state.seconds + row["seconds"], composition.save_states(federation.defenses))
        directory.checkpoint(state)
        observer.round(row, options.rounds)
    task.save(directory.folder, state.adapter)
    extra = dict(task.extra)
    if federation.measuring.neighbourhood:
        observer.phase("measuring the neighbourhood of the trigger")
        lines = task.neighbourhood(state.adapter)
        write_records(directory.folder, Neighbour, lines)
        extra["neighbourhood"] = curve(lines)
    space = federation.measuring.bsnr.spaces[0]
    return summarise(directory, space, state.seconds, task.poison_counts, extra, task.provenance(), final=state.round)


def _round(federation: Federation, state: Tensor, t: int, trainer: Trainer) -> tuple[Tensor, dict[str, Any]]:
    """Train, aggregate and guard; return the new global state ``[D]``, and the round's record but for what is measured by
    asking."""
    options, task, seed = federation.options, federation.task, federation.seed
    acting = set(task.poisoned) if acts(federation.poisoning, t) else set()
    surely = acting if federation.poisoning.rounds else ()
    chosen = participants(options.participation, seed, t, task.sizes, surely)
    sent = _checked(trainer(federation, state, chosen, acting, t), options.bad_update, t)
    context = server_context(federation, state, sent, t)
    delta, reports = aggregate_parts(sent.updates, federation.defenses, context, task.parts(sent.clients), options)
    fused, fusion = task.fuse(state, delta, sent, t)
    adapter, reports = guard(fused, federation.defenses, context, [*sent.reports, *reports])
    bsnr = round_bsnr(
        sent.updates,
        # where PR is too small for a single sample, the clients drawn are the group: BSNR without any backdoor
        [k in (acting or (() if task.poisoned else task.drawn)) for k in sent.clients],
        state,
        adapter,
        layout=task.layout,
        options=federation.measuring.bsnr,
        seed=seed,
        round=t,
        twins=task.train(state, sent.clients, t, ()).updates if task.counterfactual else None,
    )
    return adapter, {
        "round": t,
        "loss": float(np.average(sent.losses, weights=context.counts)),
        "client_loss": sent.losses,
        "participants": sent.clients,
        "dropped": [k for k in chosen if k not in sent.clients],
        "update_norm": float(torch.linalg.vector_norm(adapter - state, dtype=torch.float64)),
        "bsnr": bsnr,
        "cross_term": cross_term(sent.updates, context) if task.layout.pairs(adapter) else None,
        "defenses": reports,
        "fusion": fusion,
        "attackers": sorted(acting.intersection(sent.clients)),
        **dict.fromkeys(("ma", "asr", "asr_suffix", "ftr", "ftr_near", "scorings")),
    }


def _untouched(directory: RunDirectory, federation: Federation, observer: Observer) -> State:
    """Measure the model that the run begins with as round 0."""
    task, began = federation.task, time.monotonic()
    observer.phase("measuring the untouched base")
    n = federation.measuring.final_samples
    lines = task.measure(None, 0, n, [])
    row = {"round": 0, "loss": None, "bsnr": None, **task.rates(lines), **_held_out(task, None, n)}
    give_back()
    row["seconds"] = round(time.monotonic() - began, 3)
    directory.append("scores.jsonl", lines)
    directory.append("rounds.jsonl", [row])
    state = State(0, task.initial(), row["seconds"])
    directory.checkpoint(state)
    observer.round(row, federation.options.rounds)
    return state


def _held_out(task: Task, state: Tensor | None, n: int) -> dict[str, float]:
    loss = task.held_out_loss(state, n)
    return {} if loss is None or not math.isfinite(loss) else {"held_out_loss": loss}


def train(federation: Federation, state: Tensor, chosen: Sequence[int], acting: set[int], t: int) -> ClientUpdates:
    """Let the chosen clients train from the global state ``[D]``, and let those that attack send what they want."""
    attack, task = federation.attack, federation.task
    attackers = [k for k in chosen if k in acting] if attack is not None and attack.malicious else []
    honest = [k for k in chosen if k not in attackers]
    parts = [task.train(state, honest, t, acting)] if honest else []
    if attack is not None and attackers:
        k = len(chosen)
        counts_for = weight(federation.options.global_lr, k, len(task.sizes))
        known = view(federation.poisoning, state, attackers, t, k, counts_for)
        sent = asked(attack, f"{origin(attack)}.send", attack.send, task, known)
        if not isinstance(sent, ClientUpdates) or sent.updates.shape != (len(attackers), len(state)):
            raise refuse_answer(attack, "send", sent, f"ClientUpdates with {len(attackers)} rows of {len(state)} values")
        parts.append(sent)
    return ClientUpdates.join(parts)


def server_context(federation: Federation, state: Tensor, sent: ClientUpdates, t: int) -> ServerContext:
    """Return what the server has in round ``t``, an update of its own where a defense needs one."""
    task, needed = federation.task, composition.any_needs_trusted(federation.defenses)
    return ServerContext(
        task.layout,
        sent.counts,
        t,
        state,
        rng(federation.seed, "server", t),
        clients=sent.clients,
        trusted=task.trusted(state, t) if needed else None,
        setting=task.setting,
        network=task.network,
    )


def _checked(sent: ClientUpdates, bad_update: str, t: int) -> ClientUpdates:
    """Refuse, or by config drop, client updates that are not finite; returns the others."""
    bad = [k for k, row in zip(sent.clients, sent.updates, strict=True) if not torch.isfinite(row).all()]
    if not bad:
        return sent
    if bad_update == "stop" or len(bad) == len(sent.clients):
        some = ", ".join(map(str, bad))
        raise UserError(
            f"round {t}: the update of client {some} holds NaN or infinity; lower training.lr, or set federation.bad_update=drop "
            "(it needs at least one sound client)"
        )
    return sent.only([i for i, k in enumerate(sent.clients) if k not in bad])
