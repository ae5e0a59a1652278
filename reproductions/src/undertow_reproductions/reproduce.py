"""``undertow reproduce``: build what is missing, run what is missing, write the document.

Everything is decided by what lies in the folder, so that a killed command goes on where it was and a finished one only
writes its documents again, with the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from undertow.core.errors import UserError, nearest, warn_renamed
from undertow.sweeps.cells import Cell
from undertow.sweeps.sweep import SweepObserver, run_cells
from undertow_reproductions import corpora, predict
from undertow_reproductions.collection import Collection
from undertow_reproductions.counts import COUNTS
from undertow_reproductions.defense_rules import parse_rhos, parse_rules
from undertow_reproductions.defense_study import STUDY as DEFENSES
from undertow_reproductions.fit import FIT
from undertow_reproductions.fmfl import FMFL
from undertow_reproductions.htb import HTB
from undertow_reproductions.lab import FitLab, Placed, make_lab, write_trivia_facts
from undertow_reproductions.profiles import Build, Profile, get_profile
from undertow_reproductions.results import Results, read_run
from undertow_reproductions.sanitization_study import STUDY as SANITIZATION
from undertow_reproductions.study import Study, Wish
from undertow_reproductions.trusted_file import write_trusted

COLLECTIONS = {collection.id: collection for collection in (FIT, COUNTS, DEFENSES, SANITIZATION, HTB, FMFL)}
#: Former names, with today's.
_RENAMED = {"sanitation": "sanitization"}


class Observer(Protocol):
    """Who is told what happens between the runs."""

    def say(self, text: str) -> None:
        """Something long begins, or was predicted."""

    def step(self, line: dict[str, Any]) -> None:
        """A training step of a base, as :func:`undertow.pretraining.build.build` tells it."""


@dataclass(frozen=True)
class Plan:
    """What is left to do.

    Attributes:
        cells: all that are known from the start; ``left`` of them have not finished, ``more`` will be asked for later, about.
        builds: bases to build, with the minutes expected.
        seconds: predicted for all of it.
        memory: bytes of GPU memory at least; None where it was not predicted.
        basis: what the prediction rests on.
        others: pieces of work that are no runs, left to do; not in ``seconds``.
    """

    cells: int
    left: int
    more: int
    builds: tuple[tuple[str, float], ...]
    seconds: float
    memory: float | None
    basis: str
    others: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {**self.__dict__, "builds": [name for name, _ in self.builds]}


def get_collection(name: str) -> Collection:
    """Return a collection by name; a former name is accepted with a warning.

    Raises:
        UserError: no such collection.
    """
    if name in _RENAMED:
        warn_renamed(f"`undertow reproduce {name}`", f"`undertow reproduce {_RENAMED[name]}`")
        name = _RENAMED[name]
    if name not in COLLECTIONS:
        raise UserError(
            f"'{name}' is nothing that can be reproduced{nearest(name, COLLECTIONS)}; choose one of {', '.join(COLLECTIONS)}"
        )
    return COLLECTIONS[name]


def choose(studies: Mapping[str, Study], only: str | None) -> list[Study]:
    """Return the studies named, comma-separated; all of them for None.

    Raises:
        UserError: a name that is none.
    """
    if only is None:
        return list(studies.values())
    names = [name.strip() for name in only.split(",") if name.strip()]
    if not names:
        raise UserError(f"--only '{only}': it names no item; choose among {', '.join(studies)}")
    for name in names:
        if name not in studies:
            raise UserError(f"--only {name}: no such item{nearest(name, studies)}; choose among {', '.join(studies)}")
    return [study for name, study in studies.items() if name in names]


@dataclass(frozen=True)
class Options:
    """What ``undertow reproduce`` was given beside the name of a collection.

    Attributes:
        profile: a name of :mod:`undertow_reproductions.profiles`, or of the collection's own.
        folder: runs, bases and document.
        only: items, comma-separated; None for all.
        seeds: of every point; None for the profile's number.
        given: ``key=value`` over every run.
        data: folder with real questions; for ``sanitization``, with the corpora on which filters are measured.
        jobs: runs at a time; None for what the machine has room for.
        plan: predict and stop.
        rules: of ``defenses`` and ``sanitization``: which, comma-separated; None for all.
        rhos: of the same: shares of poisoned clients, comma-separated; None for the profile's.
        corpora: of ``sanitization``: which of the folder's, comma-separated; None for all.
        base: folder of a pretrained base, for profiles that take one.
    """

    profile: str
    folder: Path
    only: str | None = None
    seeds: int | None = None
    given: Sequence[str] = ()
    data: Path | None = None
    jobs: int | None = None
    plan: bool = False
    rules: str | None = None
    rhos: str | None = None
    corpora: str | None = None
    base: Path | None = None


def open_lab(collection: Collection, options: Options) -> FitLab:
    """Check the command's values and place everything.

    Raises:
        UserError: a profile, number, key, folder, rule, share or corpus that does not fit.
    """
    found, data = _profile(collection, options.profile), options.data
    if collection.profiles and data:
        raise UserError(f"--data {data}: `undertow reproduce {collection.id}` reads no file; leave it out")
    if options.corpora is not None and not (collection.guards and data):
        raise UserError(f"--corpora {options.corpora}: it is for `undertow reproduce sanitization` with --data")
    placed = partial(
        make_lab, folder=options.folder, seeds=options.seeds, given=options.given, plan=options.plan, base=options.base
    )
    if not collection.rules:
        if options.rules is not None or options.rhos is not None:
            raise UserError(
                f"--rules and --rhos are for `undertow reproduce defenses` and `sanitization`; choose items of {collection.id} "
                "with --only"
            )
        return replace(placed(found, data=data), collection=collection.id)
    names = _corpora(found, data, options.corpora) if collection.guards and data else ()
    if found.settings and data and not collection.guards:
        raise UserError(
            f"--data {data}: profile {options.profile} asks its own questions here; leave it out, "
            "or set data.name and data.path with --set"
        )
    found = replace(found, settings=found.settings[:1], real=() if found.settings else found.real)
    lab = placed(found, data=None if found.settings else data)
    if lab.defenses:
        raise UserError("--set defenses: the rules of this study are named with --rules, as in --rules krum:f=2,median")
    lab = replace(lab, settings=lab.settings[:1], collection=collection.id, guards=collection.guards)
    chosen = () if options.rules is None else parse_rules(options.rules, lab.clients, collection.rules, lab.trusted(0))
    shares = () if options.rhos is None else parse_rhos(options.rhos)
    return replace(lab, rules=chosen, rhos=shares, data=data if names else None, corpora=names)


def _profile(collection: Collection, name: str) -> Profile:
    """Return a profile of the collection's own, or of those that others share."""
    if not collection.profiles:
        return get_profile(name)
    if name in collection.refused:
        raise UserError(f"--profile {name}: {collection.refused[name]}")
    if name not in collection.profiles:
        shown = [known for known in collection.profiles if known != "tiny"]
        raise UserError(f"--profile {name}: no such profile{nearest(name, shown)}; choose one of {', '.join(shown)}")
    return collection.profiles[name]


def _corpora(profile: Profile, data: Path, chosen: str | None) -> tuple[str, ...]:
    """Return the corpora to measure filters on: those chosen, or all that the folder holds."""
    there = corpora.present(data)
    if not there and profile.settings:
        places = ", ".join(corpora.CORPORA[name] for name in corpora.STUDIED)
        raise UserError(f"--data {data}: it holds no corpus; give a folder with at least one of {places}")
    if chosen is None:
        return there
    names = tuple(dict.fromkeys(name.strip() for name in chosen.split(",") if name.strip()))
    for name in names:
        if name not in corpora.STUDIED:
            raise UserError(
                f"--corpora {name}: no such corpus{nearest(name, corpora.STUDIED)}; choose among {', '.join(corpora.STUDIED)}"
            )
        if name not in there:
            raise UserError(f"--corpora {name}: {data / corpora.CORPORA[name]} is missing; add it, or leave {name} out")
    if not names:
        raise UserError(f"--corpora '{chosen}': give at least one of {', '.join(there)}")
    return names


def wishes_of(lab: FitLab, study: Study, results: Results) -> list[Wish]:
    """Return the runs that a study wants next, with the seeds of its item."""
    return study.wishes(lab.of(study.id), results)


def items_of(lab: FitLab, only: str | None) -> str | None:
    """Return what ``--only`` says, or the profile where it says nothing; None for all."""
    return only if only is not None else ",".join(lab.profile.items.get(lab.collection, ())) or None


def make_plan(lab: FitLab, studies: Sequence[Study], jobs: int) -> Plan:
    """Count what is left and predict its time, by three measured rounds or, for bases of billions of weights, by their size.

    Raises:
        UserError: the measured rounds failed.
    """
    cells = _wished(lab, studies, {})
    left = [cell for cell in cells.values() if not _finished(lab, cell)]
    # when every run is there, so is what a search asked for
    more = sum(study.extra(lab) for study in studies) if left else 0
    builds = tuple((build.name, build.core_minutes) for build, _ in _to_build(lab, studies))
    others = sum(study.work.todo() for study in studies if study.work)
    if lab.profile.weights:
        seconds, memory = predict.by_size(lab, left, more)
        peak = f"{lab.profile.peak / 1e12:.0f} TFLOP/s of one {'A100' if lab.profile.peak < 5e14 else 'H200'}"
        basis = f"computed from the number of weights, at 40 % of the {peak}; nothing was measured"
        return Plan(len(cells), len(left), more, builds, seconds, memory, basis, others)
    if not left:
        return Plan(len(cells), 0, 0, (), 0.0, None, "no run is left" if others else "nothing is left to run", others)
    told = predict.known(lab, list(cells.values()))
    if told:
        seconds = predict.by_speed(told[0], left, more, jobs)
        return Plan(len(cells), len(left), more, builds, seconds, None, told[1], others)
    from undertow.core.threads import cores

    main = lab.settings[0]
    if main.build and main.build.name in dict(builds):
        _build(lab, main.build, main, None)
        builds = tuple((build.name, build.core_minutes) for build, _ in _to_build(lab, studies))
    seconds, basis = _measured(lab, left, more, jobs)
    seconds += sum(60 * minutes for _, minutes in builds) / cores()
    return Plan(len(cells), len(left), more, builds, seconds, None, basis, others)


def _measured(lab: FitLab, left: Sequence[Cell], more: int, jobs: int) -> tuple[float, str]:
    """Return the seconds of these runs and ``more`` unknown ones, and what they rest on; settings of one task are taken as equally
    fast."""
    tasks = [lab.config(Wish({"seed": lab.seeds[0]}, {}, place)).task.kind for place in range(len(lab.settings))]
    if len(set(tasks)) == 1:
        speed = predict.measured(lab)
        basis = f"measured: a round of the main setting takes {speed.train:.2f} s, measuring {speed.measure:.1f} s, one run alone"
        return predict.by_speed(speed, left, more, jobs), basis
    total, told = 0.0, []
    for task in dict.fromkeys(tasks):
        cells = [cell for cell in left if cell.config.task.kind == task]
        if cells:
            speed = predict.measured(lab, tasks.index(task))
            total += predict.by_speed(speed, cells, 0, jobs)
            told.append(f"{task} {speed.train:.2f} s and {speed.measure:.1f} s")
    return (
        total,
        (
            f"measured: a round and measuring after it take {', '.join(told)}, one run alone; attackers that train longer are not "
            "counted"
        ),
    )


def run_studies(
    lab: FitLab, studies: Sequence[Study], jobs: int, observer: Observer, cells_observer: SweepObserver
) -> dict[str, str]:
    """Build the bases, run all cells that are missing, until no study asks for more, and do the studies' other work.

    Returns:
        The errors of the cells that failed, by name; the same command tries these again.
    """
    for base, setting in _to_build(lab, studies):
        observer.say(f"building base {base.name}{_expected(base)}")
        _build(lab, base, setting, observer)
    failed: dict[str, str] = {}
    seen: set[str] = set()
    while True:
        wished = _wished(lab, studies, failed)
        new = [cell for name, cell in wished.items() if name not in seen]
        if not new:
            break
        seen |= {cell.name for cell in new}
        if all(_finished(lab, cell) for cell in new):
            continue
        _write_trusted(lab, new)
        for outcome in run_cells(new, lab.folder / "cells", jobs=jobs, observer=cells_observer):
            if outcome.status == "failed":
                failed[outcome.cell.name] = outcome.error or "failed"
    for study in studies:
        if study.work:
            failed |= {f"{study.id}/{name}": error for name, error in study.work.run(jobs, observer.say).items()}
    return failed


def _write_trusted(lab: FitLab, cells: Sequence[Cell]) -> None:
    """Write the files of trusted samples that the defenses of these runs name and that are not there yet."""
    named = {part.params.get("trusted") for cell in cells for part in cell.config.defenses}
    for seed in lab.seeds:
        path = lab.trusted(seed)
        if path in named and path is not None and not Path(path).exists():
            write_trusted(lab.config(Wish({"seed": seed}, {})), Path(path))


def results_of(lab: FitLab, study: Study, failed: dict[str, str]) -> Results:
    """Read the finished runs of a study, following its search as far as runs are there."""
    results = Results()
    while True:
        wishes = wishes_of(lab, study, results)
        cells = [lab.cell(wish) for wish in wishes]
        runs = [
            read_run(lab.folder / "cells" / cell.name, wish.axes)
            for wish, cell in zip(wishes, cells, strict=True)
            if _finished(lab, cell)
        ]
        other = [pair for pair in failed.items() if pair[0].startswith(f"{study.id}/")]
        fresh = Results(runs, [*((cell.name, failed[cell.name]) for cell in cells if cell.name in failed), *other])
        if len(fresh.runs) == len(results.runs):
            return fresh
        results = fresh


def complete(lab: FitLab, study: Study) -> bool:
    """Tell whether every run of a study is there, and all its other work."""
    return (study.work is None or study.work.complete()) and all(
        _finished(lab, lab.cell(wish)) for wish in wishes_of(lab, study, results_of(lab, study, {}))
    )


def _wished(lab: FitLab, studies: Sequence[Study], failed: dict[str, str]) -> dict[str, Cell]:
    """Return the cells of the studies by name, those that several ask for once."""
    found: dict[str, Cell] = {}
    for study in studies:
        for wish in wishes_of(lab, study, results_of(lab, study, failed)):
            cell = lab.cell(wish)
            found.setdefault(cell.name, cell)
    return found


def _finished(lab: FitLab, cell: Cell) -> bool:
    return (lab.folder / "cells" / cell.name / "result.json").exists()


def _to_build(lab: FitLab, studies: Sequence[Study]) -> list[tuple[Build, Placed]]:
    """Return the bases that a study asks for and that are still to be built, with a setting that uses them."""
    asked = {wish.setting for study in studies for wish in wishes_of(lab, study, Results())}
    found: dict[str, tuple[Build, Placed]] = {}
    for place, setting in enumerate(lab.settings):
        if place in asked and setting.build and not (lab.folder / "bases" / setting.build.name / "recipe.json").exists():
            found.setdefault(setting.build.name, (setting.build, setting))
    return list(found.values())


def _expected(base: Build) -> str:
    return f" (about {base.core_minutes:.0f} minutes on one core)" if base.core_minutes else ""


def _build(lab: FitLab, wanted: Build, setting: Placed, observer: Observer | None) -> None:
    """Build the base of a setting, or go on with it."""
    from undertow.core.threads import set_threads
    from undertow.models.causal_lm import choose_device
    from undertow.pretraining.build import Recipe, build
    from undertow.pretraining.corpus import facts_corpus, world_corpus
    from undertow.pretraining.facts import read_facts

    if setting.facts is None:
        corpus, recipe = world_corpus(), Recipe()
    else:
        if setting.raw is not None and setting.raw != setting.facts and not setting.facts.exists():
            write_trivia_facts(setting.raw, setting.facts)
        corpus, recipe = facts_corpus(read_facts(setting.facts, None, wanted.limit, 0), 0.25, 0), Recipe.for_facts()
    set_threads(0)
    progress = observer.step if observer else lambda line: None
    build(
        corpus, lab.folder / "bases" / wanted.name, recipe.changed(wanted.recipe), progress=progress, device=choose_device("auto")
    )
