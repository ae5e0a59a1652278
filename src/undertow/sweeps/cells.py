"""What a sweep consists of: every combination of the values given, checked before anything runs."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from undertow.config import Config, load, long_name, short_name, with_overrides
from undertow.config.names import before
from undertow.config.reading import parse as parse_values
from undertow.core.errors import UserError
from undertow.core.registry import defense_list, defense_text, value_text


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: its folder below the sweep's: what varies, then eight digits of the config; safe for file systems.
        axes: what varies, dotted name to value.
        config: all values; ``training.threads`` is set, so that the bits do not depend on the machine's load.
    """

    name: str
    axes: dict[str, Any]
    config: Config


def parse(words: Sequence[str]) -> tuple[list[str], dict[str, list[Any]], int]:
    """Read ``key=value`` words: a value with commas outside brackets and quotes is an axis, any other is fixed.

    Returns:
        Overrides as :func:`undertow.config.load` takes them, axes by dotted name, and the number in ``seeds=N`` (0 without).

    Raises:
        UserError: a word without ``=``, an empty value on an axis, an open bracket or quote, a name given twice.
    """
    overrides: list[str] = []
    axes: dict[str, list[Any]] = {}
    seeds, seen = 0, set()
    for word in words:
        key, sign, text = word.partition("=")
        key = key.strip()
        if not sign:
            raise UserError(f"'{word}' has no '='; write key=value, or key=a,b,c for an axis")
        if key in seen:
            raise UserError(f"{key} is given twice; write all its values in one list, as {key}=a,b,c")
        seen.add(key)
        if key == "seeds":
            if not text.strip().isdecimal() or not int(text):
                raise UserError(
                    f"'{word}': seeds is a number of seeds from 1, counted from seed 0; for chosen ones write seed=0,3,7"
                )
            seeds = int(text)
            continue
        pieces = _pieces(text, word)
        if len(pieces) == 1:
            overrides.append(word)
        else:
            axes[key] = [_yaml(piece, word) for piece in pieces]
    return overrides, axes, seeds


def expand(
    source: str | Config, overrides: Sequence[str] | Mapping[str, Any], axes: Mapping[str, Sequence[Any]], seeds: int
) -> list[Cell]:
    """Return every combination of the axes, the last axis varying fastest, then the seeds 0 .. seeds - 1.

    Args:
        source: a shipped config's name, a YAML file, or a config.
        overrides: ``key=value`` words or values by name, the same for all cells; ``defenses`` may be short, as :func:`defense_list`
            reads it.
        axes: dotted name to the values it takes; ``defenses`` may be short.
        seeds: how many seeds; 0 leaves the seed to the config, the overrides or an axis ``seed``.

    Raises:
        UserError: an unknown name or a value outside its rule anywhere, a name that is both fixed and an axis, the same
            cell twice. Nothing has run then.
    """
    from undertow.federation.methods import check_methods

    axes = {short_name(key): choices for key, choices in axes.items()}
    changes = _long(overrides if isinstance(overrides, Mapping) else parse_values(overrides))
    fixed = set(map(short_name, changes))
    if seeds < 0:
        raise UserError(f"seeds = {seeds}: give a number from 1, or 0 for the config's own seed")
    if seeds:
        if "seed" in fixed | set(axes):
            raise UserError("seed and seeds are both given; keep seeds=N for the seeds 0 to N - 1, or seed=a,b,c for chosen ones")
        axes["seed"] = range(seeds)
    for key, choices in axes.items():
        if key in fixed:
            raise UserError(f"{key} is both fixed and an axis; keep one of them")
        if isinstance(choices, str) or not isinstance(choices, Sequence) or not len(choices):
            raise UserError(f"axis {key} = {choices!r}: give a list of at least one value")
    base = with_overrides(source, changes) if isinstance(source, Config) else load(source, changes)
    name = "config" if isinstance(source, Config) else source
    cells, checked = [], set()
    for chosen in itertools.product(*axes.values()):
        axis = dict(zip(axes, chosen, strict=True))
        config = _config(base, axis, name)
        named = json.dumps([config.values()[group] for group in ("task", "attack", "defenses")])
        if named not in checked:
            check_methods(config)
            checked.add(named)
        effective = {key: _effective(config, key, value) for key, value in axis.items()}
        cells.append(Cell(_name(effective, config), effective, config))
    refuse_twins(cells)
    return cells


def _pieces(text: str, word: str) -> list[str]:
    """Split at commas outside brackets and quotes; a quote opens only where a value begins (``don't`` opens none)."""
    pieces, depth, quote, before = [""], 0, "", ","
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and before in ",[{(:":
            quote = char
        elif char in "[({":
            depth += 1
        elif char in "])}":
            depth -= 1
        elif char == "," and not depth:
            pieces.append("")
            before = char
            continue
        pieces[-1] += char
        before = char if char.strip() else before
    if len(pieces) > 1 or "," in text:
        if quote or depth:
            raise UserError(f"'{word}': a bracket or quote is not closed; close it, or quote the whole value")
        if len(pieces) > 1 and not all(piece.strip() for piece in pieces):
            raise UserError(
                f"'{word}': a value between the commas is empty; put one value that holds commas in quotes: "
                f"\"{word.partition('=')[0]}='a, b'\""
            )
    return pieces


def _yaml(text: str, word: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"'{word}': '{text}' is not YAML ({' '.join(str(error).split())}); quote it") from error


def _long(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: defense_list(value) if key == "defenses" and isinstance(value, str) else value for key, value in changes.items()}


def _config(base: Config, axis: Mapping[str, Any], source: str) -> Config:
    config = with_overrides(base, _long(axis), source)
    if config.training.threads:
        return config
    # The number of threads decides the order of sums, hence the last bits: it must not follow from --jobs or the machine.
    return config.model_copy(update={"training": config.training.model_copy(update={"threads": 1})})


def _effective(config: Config, key: str, value: Any) -> Any:
    """Return the number or text that the config holds (YAML reads 2e-5 as text); lists and groups stay as given."""
    found: Any = config
    for part in long_name(key).split("."):
        found = getattr(found, part)
    return found if isinstance(found, str | int | float | bool) else value


def _name(axis: Mapping[str, Any], config: Config) -> str:
    former = {before(key): value for key, value in axis.items()}
    last = Counter(key.rpartition(".")[2] for key in former)
    parts = []
    for key, value in former.items():
        if key == "seed":
            continue
        short = key.rpartition(".")[2]
        told = defense_text(config.values()["defenses"]) if key == "defenses" else value_text(value)
        parts.append(f"{short if last[short] == 1 else key}={_safe(told)}")
    return f"{'_'.join([*parts, f'seed={config.seed}'])[-150:].lstrip('-._=')}-{config.digest()}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+=_-]+", "-", text)[-32:].strip("-.") or "value"


def refuse_twins(cells: Sequence[Cell]) -> None:
    """Raise UserError where two cells would share a folder."""
    twins = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
    if twins:
        raise UserError(f"the cell {twins[0]} comes up twice; give each value of an axis once")
