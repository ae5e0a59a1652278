"""How many steps of pre-training fit into a time: a few are timed on this machine, on the real text, before the build begins."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from undertow.core.errors import UserError
from undertow.pretraining.build import Recipe, build
from undertow.pretraining.corpus import Corpus

#: Steps that are timed, after one that warms up.
_TIMED = 6
#: Steps below which a base of these recipes has learned nothing.
FEWEST = 50


def steps_within(corpus: Corpus, out: Path, recipe: Recipe, minutes: float, device: torch.device) -> tuple[Recipe, str]:
    """Return the recipe with as many steps, to two figures and at most its own, as take about ``minutes``, and a line that says so.

    A build that was interrupted or is done keeps its number of steps, so that the same command goes on with it.

    Raises:
        UserError: ``minutes`` is not above 0, or too little for :data:`FEWEST` steps.
    """
    if not 0 < minutes < 1e6:  # NaN too
        raise UserError(f"--minutes {minutes:g} must be above 0 and below a million")
    kept = _kept(out, recipe)
    if kept is not None:
        return kept, f"{kept.steps:,} steps, as the build in {out} began with"
    each = _seconds(corpus, recipe, device)
    fitting = int(60 * minutes / each)
    rounded = int(float(f"{fitting:.2g}")) if fitting else 0
    if rounded < FEWEST:
        raise UserError(
            f"--minutes {minutes:g}: a step takes {each:.2g} s here, and {FEWEST} are the fewest; give {FEWEST * each / 60:.1f} or "
            "more, or a smaller --hidden, --layers or --batch"
        )
    chosen = replace(recipe, steps=min(rounded, recipe.steps))
    return chosen, f"{chosen.steps:,} of the recipe's {recipe.steps:,} steps fit into {minutes:g} minutes ({each:.2g} s a step)"


def _seconds(corpus: Corpus, recipe: Recipe, device: torch.device) -> float:
    """Return what a step takes."""
    told: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        timed = replace(recipe, steps=_TIMED + 1)
        build(corpus, Path(folder), timed, progress=lambda line: told.append((time.monotonic(), line["step"])), device=device)
    (began, first), (ended, last) = told[0], told[-1]  # the first step warms up
    return max((ended - began) / max(1, last - first), 1e-6)


def _kept(out: Path, recipe: Recipe) -> Recipe | None:
    """Return the recipe of a build that is there, where it differs in the steps alone."""
    for path in (out / "recipe.json", out / "building" / "state.json"):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = values.get("recipe") if isinstance(values, dict) else None
        if isinstance(found, dict) and isinstance(found.get("steps"), int):
            return replace(recipe, steps=found["steps"])
    return None
