"""Rounds as rows of a table: what ``Run.to_frame`` and ``undertow collect`` share.

A rate and a BSNR are several columns: its own name holds the value, and its parts follow an underscore (``ma``, ``ma_low``,
``ma_high``, ``ma_n``, ``ma_hits``; ``bsnr_adapter``, ``bsnr_adapter_p``). Whatever else ``rounds.jsonl`` holds has its dotted name
there (``cross_term``, ``fusion.teachers``, ``defenses.krum.scores``).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from undertow.core.errors import UserError
from undertow.runs.records import BsnrValue, Rate, Round, Space

if TYPE_CHECKING:
    import pandas

#: Rates whose columns every table has, measured or not.
RATES = ("ma", "asr", "ftr", "ftr_near")
#: Parts of a rate and of a BSNR, after its value.
_RATE, _BSNR = ("low", "high", "n", "hits"), ("null_low", "null_median", "null_high", "p", "permutations")
#: Counts, with room for missing values; all other figures are floating-point.
_COUNTS = ("_n", "_hits", "_permutations")


def figures(record: Round, spaces: Sequence[Space]) -> dict[str, Any]:
    """Return every figure of a round by the name of its column; ``spaces`` are those that BSNR was to be measured in."""
    row: dict[str, Any] = {"round": record.round}
    for name in RATES:
        row |= _rate(name, getattr(record, name))
    row["loss"], row["held_out_loss"] = record.loss, record.held_out_loss
    for space in spaces:
        row |= _bsnr(f"bsnr_{space}", (record.bsnr or {}).get(space))
    row["seconds"] = record.seconds
    if record.asr_suffix:
        row |= _rate("asr_suffix", record.asr_suffix)
    for name, rate in (record.scorings or {}).items():
        row |= _rate(f"scorings.{name}", rate)
    for name in ("update_norm", "cross_term", "client_loss", "participants", "dropped", "attackers"):
        row[name] = getattr(record, name)
    row |= _flat(record.fusion or {}, "fusion.")
    for report in record.defenses or []:
        prefix = f"defenses.{report.get('name', 'unnamed')}"
        number = 2
        while f"{prefix}." in {key[: len(prefix) + 1] for key in row}:  # one defense may report twice in a round
            prefix = f"defenses.{report.get('name', 'unnamed')}-{number}"
            number += 1
        row |= _flat({key: value for key, value in report.items() if key != "name"}, f"{prefix}.")
    return row | _flat(record.surplus)


def frame(rows: Sequence[Mapping[str, Any]], spaces: Sequence[Space]) -> pandas.DataFrame:
    """Make a table of rows as :func:`figures` gives them; a column has one type whatever is missing, so that tables can be joined.

    Raises:
        UserError: pandas is not installed.
    """
    table = installed("pandas").DataFrame(list(rows))
    known = {
        column: "Int64" if column.endswith(_COUNTS) else "float64" for column in table.columns if _is_figure(str(column), spaces)
    }
    return table.astype(known)


def installed(package: str) -> Any:
    """Import a package that tables need.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"tables need the package {package} ({error}): pip install -e '.[tables]' in the clone") from error


def text(value: Any) -> Any:
    """Return a list or mapping as JSON text, anything else as it is."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _rate(name: str, rate: Rate | None) -> dict[str, Any]:
    return {name: rate and rate.value, **{f"{name}_{part}": rate and getattr(rate, part) for part in _RATE}}


def _bsnr(name: str, value: BsnrValue | None) -> dict[str, Any]:
    return {name: value and value.value, **{f"{name}_{part}": value and getattr(value, part) for part in _BSNR}}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _is_figure(column: str, spaces: Sequence[Space]) -> bool:
    heads = (*RATES, "asr_suffix", *(f"bsnr_{space}" for space in spaces))
    parts = {f"{head}{part}" for head in heads for part in ("", *(f"_{part}" for part in (*_RATE, *_BSNR)))}
    return (
        column in parts
        or column.startswith("scorings.")
        or column in ("loss", "held_out_loss", "seconds", "update_norm", "cross_term")
    )
