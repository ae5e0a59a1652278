"""One tidy table of many runs: a row for every run and round, a column for every config value that varies."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from undertow.config import by_short_names, validate
from undertow.core.errors import UserError
from undertow.core.files import check_file, write_bytes
from undertow.core.registry import defense_text
from undertow.runs.records import Result, Round, read_record, read_records
from undertow.runs.seal import refuse_edited
from undertow.runs.tables import figures, frame, installed, text

if TYPE_CHECKING:
    import pandas

#: Any of these makes a folder a run, whole or damaged.
MARKS = {"config.yaml", "rounds.jsonl", "result.json"}
#: Folders named in a warning; the rest are counted.
NAMED = 8


def collect(folder: Path, warn: Callable[[str], None] | None = None) -> pandas.DataFrame:
    """Return the rounds of all finished runs below a folder.

    Columns: ``run`` (its folder below the one given), ``seed``, every config value that differs between the runs by its
    dotted name (lists and mappings as text, defenses in short), ``round`` (0 is the untouched base), ``final`` (the last
    round), ``status`` (``done``), and every figure of the round, as :mod:`undertow.runs.tables` names them: rates are shares in [0,
    1] with 95 % Wilson intervals; lists are JSON text. What was not measured is missing.

    Args:
        folder: searched at any depth; it may itself be a run.
        warn: is given one line that names what was left out: unfinished, damaged, foreign, or a config seen before; default: print
            it to stderr.

    Raises:
        UserError: no such folder, no finished run below it, or pandas is not installed.
    """
    installed("pandas")
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the folder of a sweep, or any folder with run directories")
    runs, left_out = _read_all(folder)
    if left_out:
        more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
        (warn or _to_stderr)(f"{len(left_out)} left out: {'; '.join(left_out[:NAMED])}{more}")
    if not runs:
        raise UserError(f"{folder} holds no finished run; run `undertow sweep` or `undertow run` first, or give another folder")
    varying = _varying([config for _, config, _ in runs])
    rows = []
    for name, config, rounds in runs:
        axes = {key: config.get(key) for key in varying}
        for record in rounds:
            found = {key: text(value) for key, value in figures(record, json.loads(config["measure.bsnr.spaces"])).items()}
            rows.append(
                {"run": name, **axes, "round": found.pop("round"), "final": record is rounds[-1], "status": "done", **found}
            )
    table = frame(rows, ["adapter", "delta_w"])
    for column in table.columns:
        values = table[column]
        if values.dtype == object and len({type(value) for value in values.dropna()}) > 1:  # a Parquet column has one type
            table[column] = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return table


def _read_all(folder: Path) -> tuple[list[tuple[str, dict[str, Any], list[Round]]], list[str]]:
    """Return name, flat config and rounds of every finished run, by name, and a line for each folder that is none."""
    runs: list[tuple[str, dict[str, Any], list[Round]]] = []
    left_out: list[str] = []
    seen: dict[str, str] = {}
    for place, is_run in _folders(folder):
        name = place.relative_to(folder).as_posix()
        try:
            if not is_run:
                raise ValueError("no run in it")
            config, rounds = _read(place)
            twin = seen.setdefault(repr(config), name)
            if twin != name:
                raise ValueError(f"the same config as {twin}")
            runs.append((name, config, rounds))
        except (OSError, ValueError) as error:
            left_out.append(f"{name} ({_shortened(' '.join(str(error).split()))})")
    return sorted(runs, key=lambda run: run[0]), left_out


def places(folder: Path, out: Path | None = None) -> list[Path]:
    """Return the files of the table: ``results.parquet`` and ``results.csv`` in ``folder``, or the one file ``out``.

    Raises:
        UserError: ``out`` is neither .parquet nor .csv, a file cannot be written, or pyarrow is not installed.
    """
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out {out}: the name must end in .parquet or .csv")
    paths = [out] if out is not None else [folder / "results.parquet", folder / "results.csv"]
    for path in paths:
        check_file("--out", path)
        if path.suffix == ".parquet":
            installed("pyarrow")
    return paths


def write(table: pandas.DataFrame, folder: Path, out: Path | None = None) -> list[Path]:
    """Write the table atomically to its :func:`places`, and return them."""
    paths = places(folder, out)
    for path in paths:
        if path.suffix == ".csv":
            content = table.to_csv(index=False).encode()
        else:
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False)
            content = buffer.getvalue()
        write_bytes(path, content)
    return paths


def _folders(root: Path) -> Iterator[tuple[Path, bool]]:
    """Give every run below ``root``, and every folder right below it that holds none."""
    if MARKS & set(os.listdir(root)):
        yield root, True
        return
    for place in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        runs = []
        for path, folders, files in os.walk(place):
            if MARKS & set(files):
                runs.append(Path(path))
                folders.clear()
        yield from ((run, True) for run in sorted(runs))
        if not runs:
            yield place, False


def _read(run: Path) -> tuple[dict[str, Any], list[Round]]:
    """Return a finished run's flat config and its rounds, every field checked."""
    if not (run / "config.yaml").is_file():
        raise ValueError("it has no config.yaml")
    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError("config.yaml is not YAML") from error
    if not isinstance(values, dict):
        raise ValueError("config.yaml holds no config")
    config = validate(values, "config.yaml")
    refuse_edited(run, config)
    if not (run / "result.json").is_file():
        raise ValueError("unfinished")
    result, records = read_record(run, Result), list(read_records(run, Round))
    if [record.round for record in records] != list(
        range(config.federation.rounds + 1)
    ) or result.rounds != config.federation.rounds:
        raise ValueError(f"damaged: rounds.jsonl does not hold the rounds 0 to {config.federation.rounds}")
    plain = by_short_names(config.identity())
    return {**_flat(plain), "defenses": defense_text(plain["defenses"])}, records


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return flat


def _varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the seed and every key with more than one value among the runs that have it, in the config's order."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if key == "seed" or len({repr(config[key]) for config in configs if key in config}) > 1]


def _to_stderr(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _shortened(reason: str, most: int = 280) -> str:
    """Return a line of at most ``most`` characters that keeps its end: paths are long and stand in front of what is wrong."""
    return reason if len(reason) <= most else f"...{reason[3 - most :]}"
