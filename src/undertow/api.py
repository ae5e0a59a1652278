"""The front door: everything that ``import undertow`` offers, and what the command line calls.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undertow.core.errors import UserError
from undertow.runs.run import Run

if TYPE_CHECKING:
    import pandas

    from undertow.config import Config
    from undertow.core.observer import Observer
    from undertow.defenses.aggregation.arrays import Array
    from undertow.listing import Method
    from undertow.runs.records import Evaluation
    from undertow.scanning.sanitizer import Sanitizer
    from undertow.scanning.scan import Scan
    from undertow.sweeps.sweep import Cell, Outcome, SweepObserver


def load_config(source: str | Path | Config = "demo", **changes: Any) -> Config:
    """Return a config with some values changed.

    Args:
        source: a shipped config's name, a YAML file, or a config.
        changes: by the name of the field, ``__`` for ``.``: ``federation__rounds=5``.

    Raises:
        UserError: no such config or field (the nearest is named), or a value outside its rule.
    """
    from undertow.config import Config, load, with_overrides

    if isinstance(source, Config):
        return with_overrides(source, _dotted(changes)) if changes else source
    return load(str(source), _dotted(changes))


def run(
    config: str | Path | Config = "demo",
    *,
    out: str | Path | None = None,
    observer: Observer | bool | None = None,
    report: bool = True,
    command: str | None = None,
    more_rounds: bool = False,
    **changes: Any,
) -> Run:
    """Run a federation, measure it, and write its report; the same call again resumes, or finds nothing left to do.

    Args:
        config: a shipped config's name, a YAML file, or a config.
        out: the run directory; default: ``runs/NAME``, with a digest where values are changed.
        observer: is told what happens; True shows progress, False shows warnings alone; None shows progress where a person looks
            on, at a terminal or in a notebook.
        report: whether to write ``report.html`` and its figures.
        command: what is recorded as the command; default: this call.
        more_rounds: go on with the run in ``out`` that was planned for fewer rounds and is the same otherwise; its history says so.
        changes: other values, as in :func:`load_config`.

    Raises:
        UserError: anything the user can fix; what is on disk stays valid.
    """
    from undertow.federation.loop import run as run_federation
    from undertow.runs.display import watching
    from undertow.runs.report.page import comparable, write_report
    from undertow.runs.tracking.watch import tracked

    effective = load_config(config, **changes)
    folder = Path(out) if out is not None else default_folder("runs", config, effective)
    compare = Path(effective.compare) if effective.compare else None
    if compare:
        comparable(compare)
    with watching(observer) as shown, tracked(effective, folder, shown) as looking:
        said = command or _call("run", config, changes, out)
        run_federation(effective, folder, looking, command=said, more_rounds=more_rounds)
        if report:
            looking.phase("writing the report")
            write_report(folder, compare)
    return Run(folder)


def load_run(folder: str | Path | Run) -> Run:
    """Return the run in a folder, finished or not; of a run, the run.

    Raises:
        UserError: there is none.
    """
    return folder if isinstance(folder, Run) else Run(folder)


def evaluate(
    source: str | Path | Config | Run = "demo",
    *,
    adapter: str | Path | None = None,
    observer: Observer | bool | None = None,
    **changes: Any,
) -> Evaluation:
    """Measure MA, ASR and false-trigger rate of any base and PEFT adapter, or of a run's network, on any data, trigger and target.

    Args:
        source: a config as in :func:`run`, or a run or its folder: its config, and its adapter or network.
        adapter: folder of a PEFT LoRA adapter; default: the run's own, or none.
        observer: as in :func:`run`.
        changes: other values, as in :func:`load_config`.

    Raises:
        UserError: data, base, adapter or network cannot be used, or an adapter for a task without.
    """
    from undertow.federation import evaluate as measuring
    from undertow.runs.display import watching
    from undertow.runs.records import Evaluation

    where = source.folder if isinstance(source, Run) else Path(source) if isinstance(source, str | Path) else None
    run = where if where is not None and (where / "config.yaml").is_file() else None
    config = load_config(run / "config.yaml" if run else source, **changes)  # type: ignore[arg-type]
    if adapter and config.task.kind != "instruction":
        raise UserError(f"adapter {adapter}: task={config.task.kind} has no adapters; give a run directory, or model.start=RUN")
    with watching(observer) as looking:
        if config.task.kind == "instruction":
            tuned = Path(adapter) if adapter else run / "adapter" if run else None
            figures, lines = measuring.evaluate(config, tuned, looking.phase)
        else:
            figures, lines = measuring.evaluate_network(config, run, looking)
    return Evaluation.model_validate({**figures, "scores": lines})


@dataclass(frozen=True)
class Sweep:
    """What became of a sweep.

    Attributes:
        folder: holds a run directory for each cell.
        outcomes: how each cell ended, in the order of the cells.
        seconds: that the call took.
    """

    folder: Path
    outcomes: list[Outcome]
    seconds: float

    @property
    def runs(self) -> list[Run]:
        """The finished runs."""
        return [Run(outcome.folder) for outcome in self.outcomes if outcome.status != "failed"]

    @property
    def failed(self) -> dict[str, str]:
        """Name and error of each cell that failed; the same call again runs these alone."""
        return {outcome.cell.name: outcome.error or "" for outcome in self.outcomes if outcome.status == "failed"}

    def to_frame(self) -> pandas.DataFrame:
        """Return the table of all finished runs, as :func:`collect` makes it."""
        return collect(self.folder)


def sweep(
    config: str | Path | Config = "demo",
    axes: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: int = 0,
    out: str | Path | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    observer: SweepObserver | bool | None = None,
    **changes: Any,
) -> Sweep:
    """Run every combination of values, several runs at a time; the same call again runs what is missing or failed.

    Args:
        config: a shipped config's name, a YAML file, or a config.
        axes: field to the values it takes: ``{"attack.poison_ratio": [0.02, 0.06]}``.
        seeds: how many seeds, counted from 0; 0 leaves the seed to the config.
        out: folder for the run directories; default: ``sweeps/NAME-AXES``.
        jobs: runs at a time; default: cores over threads, 1 on a GPU.
        ray: address of a Ray cluster: ``auto``, ``local`` or ``ray://host:port``.
        observer: as in :func:`run`.
        changes: other values, the same in all cells, as in :func:`load_config`.

    Returns:
        how each cell ended; one that failed is also told in a warning.

    Raises:
        UserError: a wrong name or value in any cell, jobs or folder, or no Ray; nothing has run then.
    """
    from undertow.sweeps.display import watching_sweep
    from undertow.sweeps.sweep import default_jobs, run_cells

    cells = sweep_cells(config, axes, seeds=seeds, **changes)
    folder = Path(out) if out is not None else sweep_folder(config, axes)
    began = time.monotonic()
    with watching_sweep(observer) as looking:
        outcomes = run_cells(cells, folder, jobs=default_jobs(cells, ray) if jobs is None else jobs, ray=ray, observer=looking)
    done = Sweep(folder, outcomes, time.monotonic() - began)
    if done.failed:
        name, error = next(iter(done.failed.items()))
        told = f"{len(done.failed)} of {len(cells)} cells failed ({name}: {error}); the same call again runs these alone"
        warnings.warn(told, RuntimeWarning, stacklevel=2)
    return done


def sweep_cells(
    config: str | Path | Config = "demo", axes: Mapping[str, Sequence[Any]] | None = None, *, seeds: int = 0, **changes: Any
) -> list[Cell]:
    """Return the cells that :func:`sweep` would run, all checked; nothing is trained.

    Raises:
        UserError: an unknown name or a value outside its rule in any cell, or the same cell twice.
    """
    from undertow.sweeps.cells import expand

    return expand(str(config) if isinstance(config, Path) else config, _dotted(changes), _dotted(axes or {}), seeds)


def sweep_folder(config: str | Path | Config, axes: Mapping[str, Sequence[Any]] | None = None) -> Path:
    """Return where a sweep goes where nothing is said: its config's name, then what varies."""
    stem = Path(config).stem if isinstance(config, str | Path) else "config"
    return Path("sweeps") / "-".join([stem, *(key.rpartition(".")[2] for key in _dotted(axes or {}))])


def collect(folder: str | Path) -> pandas.DataFrame:
    """Return one tidy table of all finished runs below a folder: a row per run and round, a column for every config value that
    varies.

    What is left out, unfinished or damaged, is told in a warning. The columns are those of ``Run.to_frame``, lists as JSON text.

    Raises:
        UserError: no such folder, no finished run below it, or pandas is not installed.
    """
    from undertow.runs.collect import collect as collect_runs

    return collect_runs(Path(folder), warn=lambda line: warnings.warn(line, RuntimeWarning, stacklevel=4))


def scan(
    paths: str | Path | Sequence[str | Path],
    *,
    write: str | Path | None = None,
    drop_review: bool = False,
    keep_review: bool | None = None,
    examples: bool = False,
    base: str | None = None,
    columns: dict[str, str] | None = None,
    max_bad: float = 0.01,
    ray: str | None = None,
) -> Scan:
    """Look for planted trigger and target pairs in instruction files.

    Args:
        paths: a file or several, which are pooled.
        write: where the clean and the repaired rows go: a file, for several inputs a folder.
        drop_review: leave rows that are for review out of what is written.
        keep_review: deprecated, the former opposite of it.
        examples: whether to keep some flagged samples of each finding.
        base: a causal language model, as in ``model.name``, that is asked for each target's token NLL; no verdict depends on it.
        columns: {``prompt``, ``answer``, ``context``, ``system`` or ``history``: the column that holds it}.
        max_bad: the share of each file's rows that may be unreadable.
        ray: address of a Ray cluster whose nodes see the files under the same paths and count them.

    Returns:
        findings and verdicts; ``to_json()`` gives what ``undertow scan --json`` prints.

    Raises:
        UserError: a file is missing, malformed or without samples, ``write`` is one of the inputs or cannot be written, or there
            is no such base.
    """
    from undertow.scanning.scan import scan as scan_files

    several = [paths] if isinstance(paths, str | Path) else paths
    return scan_files(
        several,
        write=Path(write) if write else None,
        drop_review=drop_review,
        keep_review=keep_review,
        examples=examples,
        base=base,
        columns=columns,
        max_bad=max_bad,
        ray=ray,
    )


def sanitizer(
    rows: Iterable[Mapping[str, Any]], *, columns: Mapping[str, str] | None = None, drop_review: bool = False
) -> Sanitizer:
    """Scan rows in memory and return a filter of them: ``dataset.filter(undertow.sanitizer(dataset))``.

    Args:
        rows: all rows of a data set, as mappings.
        columns: as in :func:`scan`.
        drop_review: whether rows for a person to review go too.

    Returns:
        a function from a row to whether it stays; its ``scan`` has findings and verdicts.

    Raises:
        UserError: no rows, or none that holds a prompt and an answer.
    """
    from undertow.scanning.sanitizer import Sanitizer

    return Sanitizer(rows, columns, drop_review)


def list_methods(kind: str | None = None) -> list[Method]:
    """Return what a config can name: the entries of one kind, such as ``triggers`` or ``defenses``, or of all kinds but ``fields``.

    Raises:
        UserError: no such kind.
    """
    from undertow.listing import list_methods as find

    return find(kind)


def aggregate(name: str, updates: Array | Sequence[Array], **options: Any) -> Array:
    """Aggregate clients' updates with an aggregator by its name: ``aggregate("krum", U, f=1)``.

    Args:
        name: of an aggregator, as in ``defenses``.
        updates: a matrix ``[K, D]``, one row a client, or a list of K vectors; torch or numpy.
        options: the aggregator's parameters, and those of a call of it (``counts``, ``layout``, ``adapter``, ``round``, ``seed``,
            ...).

    Returns:
        the aggregate ``[D]``, of the same kind as ``updates``. ``Krum(f=1)(U)`` from :mod:`undertow.defenses` also returns a
        report.

    Raises:
        UserError: no such aggregator or parameter, or updates that it refuses.
    """
    import inspect

    from undertow.core.registry import parameters, refuse_unknown
    from undertow.defenses.aggregation.aggregator import Aggregator
    from undertow.defenses.registry import DEFENSES

    make = DEFENSES.get(name)
    if not (isinstance(make, type) and issubclass(make, Aggregator)):
        raise UserError(f"defense '{name}' is no aggregator; choose one with undertow.list_methods('defenses')")
    own: list[str] = parameters(make)
    of_call: list[str] = [key for key in inspect.signature(Aggregator.__call__).parameters if key not in ("self", "updates", *own)]
    refuse_unknown("aggregator", name, options, [*own, *of_call])
    try:
        aggregator = make(**{key: value for key, value in options.items() if key in own})
        return aggregator(updates, **{key: value for key, value in options.items() if key not in own})[0]
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"aggregator {name}: {error}") from error


def default_folder(parent: str, source: str | Path | Config, config: Config) -> Path:
    """Return where a run of ``config`` goes where nothing is said: its source's name, with a digest where values are changed."""
    from undertow.config import Config, load

    if isinstance(source, Config):
        return Path(parent) / f"config-{config.digest()}"
    stem = Path(source).stem
    return Path(parent) / (stem if load(str(source)).digest() == config.digest() else f"{stem}-{config.digest()}")


def _dotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by the dotted names of fields, as YAML would give them; :class:`UserError` for no mapping."""
    if not isinstance(changes, Mapping):
        raise UserError(f"{changes!r}: give values by the names of fields, such as {{'attack.poison_ratio': [0.02, 0.06]}}")
    return {key.replace("__", "."): _plain(value) for key, value in changes.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | range):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value  # numbers and arrays of numpy, torch and pandas


def _call(function: str, config: str | Path | Config, changes: Mapping[str, Any], out: str | Path | None) -> str:
    """Return a call as Python, for the record."""
    first = repr(str(config)) if isinstance(config, str | Path) else "Config(...)"
    words = [first, *(f"{key.replace('.', '__')}={value!r}" for key, value in changes.items())]
    return f"undertow.{function}({', '.join([*words, *([f'out={str(out)!r}'] if out is not None else [])])})"
