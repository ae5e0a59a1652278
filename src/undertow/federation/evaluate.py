"""MA, ASR and false-trigger rate of any base with any PEFT adapter or of a run's network, and scoring redone from kept outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow.backdoors.placement import Threat, make_neighbourhood, make_probes
from undertow.config import Config, Data, Defense, Measure, Model
from undertow.core.errors import UserError
from undertow.core.files import check_folder, write_json
from undertow.core.observer import Observer
from undertow.core.threads import set_threads
from undertow.data.early import Dataset, once, read_as, read_now, refuse_missing
from undertow.data.fit import askable
from undertow.data.load import DATASETS, load, load_test
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.defenses import composition
from undertow.defenses.contexts import DecodingContext, Setting
from undertow.defenses.decoding.base import DecodingDefense
from undertow.federation.methods import make_methods
from undertow.federation.resolve import over_tensors
from undertow.inference.answering import answerer, make_template
from undertow.metrics.measure import Answer, headline, measure, rates, rescore
from undertow.metrics.neighbourhood import curve, measure_neighbourhood
from undertow.models.adapters import check_adapter
from undertow.models.bounds import BOUNDS, load_bounds
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.net import load_model, model_folder
from undertow.models.with_adapter import Adapted, with_adapter
from undertow.runs.card import rewrite_figures
from undertow.runs.directory import refit_checkpoints
from undertow.runs.records import Result, Round, Score, read_record, read_records, write_records
from undertow.runs.run import read_config
from undertow.tasks.cutting import Cut, cut_targets, enough
from undertow.tasks.over_tensors import OverTensors
from undertow.training.held_out import held_out_loss


def evaluate(config: Config, adapter: Path | None, phase: Callable[[str], None]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a base, with an adapter if given, beside the same base without it.

    The test set is the one a run of this config uses, or with ``data.test_path`` that whole file.

    Args:
        config: ``data``, ``model``, ``attack`` (trigger and target) and ``measure`` are used, and of ``defenses`` the one that
            replaces greedy generation with the adapter.
        adapter: folder of a PEFT LoRA adapter, with the activation bounds that a run left in it, if any; or None for the base
            alone.
        phase: told what begins.

    Returns:
        The figures (``ma``, ``asr``, ``ftr``, ``scorings``, ``untouched``; ``data``, the counts of test rows that were read,
        dropped and cut; and ``defenses`` with the reports of any) and every scored output; the base's own outputs carry round 0,
        the adapter's round 1.

    Raises:
        UserError: data, base or adapter cannot be used.
    """
    set_threads(config.training.threads)
    data, model = config.instruction.data, config.instruction.model
    dataset = _dataset(data, phase)
    base = _base(model, adapter, phase)
    template = make_template(data, config.training.max_length, base)
    base = replace(base, stops=template.stops)
    tuned = Adapted(base, None, None) if adapter is None else with_adapter(base, adapter)
    test, read = _test_set(config, base, dataset)
    methods = make_methods(config, _as_left(config.defenses, adapter))
    assert isinstance(methods.threat, Threat)
    options = enough(config.measure, test, template, methods.threat.target)
    asked, counts = askable(test, template, options.limit)
    cut = Cut(template, methods.threat.trigger, options.limit)
    probes = make_probes(asked, methods.threat.trigger, methods.threat.target, config.seed, cut.leaves_asked)
    probes = probes.first(options.final_samples)
    reports: list[dict[str, Any]] = []
    decode = None if adapter is None else _decoder(config, options, tuned, template, methods.defenses, reports)
    found, lines = [], []
    for round in (0,) if adapter is None else (0, 1):
        phase("measuring the base with the adapter" if round else "measuring the base")
        measured, weights = (tuned.base, tuned.flat) if round else (base, None)
        answer = answerer(measured, template, weights, options, layout=tuned.layout, decode=decode if round else None)
        scored = measure(answer, probes, round)
        lines += scored
        loss = held_out_loss(measured, template, probes.clean, weights, tuned.layout if round else None)
        _refuse_no_numbers(loss, f"{adapter}: the adapter" if round else f"{model.name}: the base")
        found.append({**rates(scored, options.scoring), "held_out_loss": loss})
    lost = cut_targets(probes.triggered, template, methods.threat.target, options.limit)["cut"]
    around = _around(asked, methods.threat, config, answer)
    figures = {
        "base": model.name,
        "adapter": None if adapter is None else str(adapter),
        **headline(found[-1]),
        **{name: found[-1][name] for name in ("asr_suffix", "scorings")},
        "untouched": headline(found[0]),
        "data": {**read, **counts, "triggered_cut": probes.cut, "target_cut": lost},
        **({"defenses": reports} if reports else {}),
        **({"neighbourhood": around} if around else {}),
    }
    return figures, lines


def _refuse_no_numbers(loss: float | None, whose: str) -> None:
    if loss is not None and not math.isfinite(loss):
        raise UserError(f"{whose} gives logits that are no numbers here (diverged, or damaged): there is nothing to measure")


def _base(model: Model, adapter: Path | None, phase: Callable[[str], None]) -> CausalLM:
    if adapter is not None:
        check_adapter(adapter)
    phase(f"loading base {model.name}")
    base = load_base(model, tuned=False)
    if base.dtype_because and model.dtype != "auto":
        phase(f"{base.dtype_because}; model.dtype=auto takes the faster one")
    return base


def _around(asked: Sequence[Sample], threat: Threat, config: Config, answer: Answer) -> list[dict[str, Any]]:
    """Ask with each neighbour of the trigger, where ``measure.neighbourhood`` says so."""
    n = config.measure.neighbourhood
    edits = make_neighbourhood(asked, threat.trigger, config.seed, n) if n else {}
    return curve(measure_neighbourhood(answer, edits, threat.target))


def _dataset(data: Data, phase: Callable[[str], None]) -> Dataset:
    """Read the files that the test questions are from, before the base is loaded."""
    dataset = once(DATASETS.get(data.name))
    refuse_missing(data)
    phase(f"loading data {data.name}")
    if data.test_path:
        read_as(dataset, data, data.test_path, "data.test_path")
    else:
        read_now(dataset, data)
    return dataset


def _test_set(config: Config, base: CausalLM, dataset: Dataset) -> tuple[list[Sample], dict[str, Any]]:
    """Return the test questions, and the counts of what was read and dropped on the way to them."""
    data = config.instruction.data
    if data.test_path:
        return load_test(data, config.seed, base.asked, base.known, dataset)
    split = load(data, config.seed, config.federation.clients, asked=base.asked, known=base.known, dataset=dataset)
    told = ("rows_read", "rows_dropped", "account", "test_file", "duplicates_merged", "excluded_asked", "test")
    return split.test, {name: split.report[name] for name in told if name in split.report}


def _decoder(
    config: Config,
    options: Measure,
    tuned: Adapted,
    template: Template,
    defenses: Sequence[tuple[str, Any]],
    reports: list[dict[str, Any]],
) -> Callable[[list[list[int]]], list[list[int]]] | None:
    """Return what answers in the place of greedy generation with the adapter, if a defense does; ``reports`` gets its report."""
    answering = [(name, defense) for name, defense in defenses if isinstance(defense, DecodingDefense)]
    if tuned.flat is None or tuned.layout is None:
        if answering:
            raise UserError(f"defenses: {answering[0][0]} needs a plain LoRA adapter; this one changes the base's own weights")
        return None
    setting = Setting(config.seed, config.federation.rounds, tuned.base, template, config.instruction.model.lora, config.training)
    composition.begin(answering, setting)
    context = DecodingContext(setting, tuned.layout, options.limit, options.batch_size)
    return composition.decoder(answering, tuned.flat, context, reports)


def _as_left(defenses: Sequence[Defense], adapter: Path | None) -> list[Defense]:
    """Return the defenses of a config; activation bounds that a run left beside its adapter are used as they are."""
    kept = None if adapter is None else adapter / BOUNDS
    if kept is None or not kept.is_file():
        return list(defenses)
    others = [option for option in defenses if option.name != "activation-bounds"]
    return [*others, Defense(name="activation-bounds", params={"bounds": str(kept)})]


def evaluate_network(config: Config, run: Path | None, observer: Observer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure the final network of a run of ``task=classification`` or ``next-word``, beside the one that training began with.

    Args:
        config: ``data``, ``model``, ``attack`` (backdoor) and ``measure`` are used; the run's own, or with other values.
        run: its folder, or one with ``model.safetensors`` and ``model.json``; None measures the start alone (``model.start``).
        observer: told what begins.

    Returns:
        as :func:`evaluate`, with ``network`` and ``model`` in the place of ``base`` and ``adapter``.

    Raises:
        UserError: data or backdoor cannot be used, no such model, or one of another network, task, classes or words.
    """
    set_threads(config.training.threads)
    # What the model of a run began with was trained on what a generator wrote; that is not asked for again.
    kept = run if run is not None and (run / "synthetic.json").is_file() else None
    task = over_tensors(config, make_methods(config, []), observer, kept, synthetic=run is None or kept is not None)
    states: list[Tensor | None] = [None]
    if run is not None:
        found_states, names = [], getattr(config.model, "networks", []) or [config.model.name]
        for i, own in enumerate(task.families.nets):
            net, state, about = load_model(run if len(task.families) == 1 else run / f"model-{i}")
            _check_same(run, about, task, names[i], config.data.name)
            if net.layout != own.layout:
                raise UserError(
                    f"{run}: its network does not fit inputs of shape {list(task.inputs)}; evaluate it on data of its own kind"
                )
            found_states.append(state)
        states.append(torch.cat(found_states))
        bounds = model_folder(run) / BOUNDS
        if bounds.is_file():
            task.given = load_bounds(bounds, task.net.module)
    found, lines = [], []
    for t, weights in enumerate(states):
        observer.phase("measuring the model of the run" if t else "measuring the model before round 1")
        scored = task.measure(weights, t, config.measure.final_samples, [])
        lines += scored
        found.append(task.rates(scored))
    last, first = found[-1], found[0]
    figures = {
        "network": config.model.name,
        "model": None if run is None else str(run),
        **headline(last),
        "scorings": last["scorings"],
        "untouched": headline(first),
    }
    return figures, lines


def _check_same(run: Path, about: dict[str, Any], task: OverTensors, name: str, data: str) -> None:
    """Refuse a model of another task, network, or with other classes or words than the data.

    Raises:
        UserError: it is.
    """
    for field, mine, its in (("task", task.kind, about["task"].replace("_", "-")), ("model.name", name, about["network"])):
        if mine != its:
            raise UserError(f"{field} = {mine}: {run} holds a model of {field}={its}; leave {field} as it is")
    names, outputs = list(task.population.names), about["outputs"]
    if names != outputs:
        raise UserError(
            f"data.name = {data}: its {len(names)} classes or words are not the {len(outputs)} of the model in {run}; "
            "give data with the same ones"
        )


def score_again(folder: Path, scoring: str | None = None) -> dict[str, Any]:
    """Score a run's kept outputs again, without generating, and rewrite its figures.

    Args:
        folder: a run directory.
        scoring: MA's headline scoring; None keeps the run's.

    Raises:
        UserError: not a run directory, one of a task with a single scoring or that cannot be written, or a damaged file in it.
    """
    config = read_config(folder)
    if config.task.kind != "instruction":
        raise UserError(
            f"{folder}: nothing to score again, an output of task={config.task.kind} is one class or word, right or wrong; "
            "`undertow evaluate` measures the model again"
        )
    name = scoring or config.measure.scoring
    if name not in ("rouge-recall", "exact", "containment"):
        raise UserError(f"unknown scoring '{name}': choose rouge-recall, exact or containment")
    check_folder("score", folder)
    rows = [record.to_json() for record in read_records(folder, Round)]
    kept = [record.to_json() for record in read_records(folder, Score)]
    threat = make_methods(config, []).threat
    assert isinstance(threat, Threat)
    lines = rescore(kept, threat.target)
    by_round: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        by_round.setdefault(line["round"], []).append(line)
    rows = [{**row, **rates(by_round[row["round"]], name)} if row["round"] in by_round else row for row in rows]
    result = read_record(folder, Result).to_json()
    result |= headline(rows[-1])
    result["untouched"] = headline(rows[0])
    result["scoring"] = name
    write_records(folder, Score, lines)
    write_records(folder, Round, rows)
    refit_checkpoints(folder)
    write_json(folder / Result.FILE, result)
    rewrite_figures(folder, read_record(folder, Result))
    return result
