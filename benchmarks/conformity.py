"""Which of our rules Flower and ByzFL have too, and whether they give the same answer.

    pip install --no-deps -r benchmarks/oracles.txt
    python benchmarks/conformity.py [--federations 1000] [--hard 100] [--rules krum,median] [--json] [--write docs/conformity.md]

Random federations: K from 5 to 20, D from 2 to 200, every legal f, float64; clusters, heavy tails, and updates on one line, in
turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from conformity_text import HARD as HARD_TEXT
from conformity_text import INTRODUCTION, OWN, THEIRS_ALONE, WHY
from numpy.typing import NDArray
from oracles import LIBRARIES, PAIRS, TORCH, Pair, Setting
from scipy.stats import binomtest

from undertow.core.files import write_text
from undertow.core.rng import rng
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.registry import DEFENSES

# by hand: four clients close together, the fourth in the middle of them, and one far away
HAND = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.4], [10, 10], [0.4, 0.6], [0.7, 0.2], [-3, 2]])
KINDS = ("clusters", "heavy tails", "one line")


@dataclass(frozen=True)
class Case:
    """Updates, what the rules are told, and from which difference on two answers are two.

    Attributes:
        updates: ``[K, D]``.
        scale: what a difference is measured by, a row; ``None`` = the length of our answer.
        tolerance: relative difference.
    """

    updates: NDArray[Any]
    setting: Setting
    scale: float | None = None
    tolerance: float = 1e-9


@dataclass
class Tally:
    """How often an answer was the same, another one, no finite one, or an error."""

    n: int = 0
    other: int = 0
    infinite: int = 0
    errors: int = 0
    error: str = ""
    largest: float = 0.0

    def told(self) -> dict[str, Any]:
        """Return all as plain values; ``apart`` counts the federations without our answer."""
        return {**vars(self), "apart": self.other + self.infinite + self.errors}

    def add(self, pair: Pair, case: Case) -> None:
        """Compare once."""
        self.n += 1
        ours = pair.ours(case.updates, case.setting).astype(np.float64)
        try:
            theirs = pair.theirs(case.updates, case.setting).astype(np.float64)
        except Exception as error:
            self.errors += 1
            self.error = type(error).__name__
            return
        if not np.isfinite(theirs).all():
            self.infinite += 1
            return
        length = case.scale * len(ours) ** 0.5 if case.scale and ours.ndim == 2 else case.scale or float(np.linalg.norm(ours))
        apart = float(np.linalg.norm(ours - theirs))
        relative = 0.0 if apart == 0 else apart / length if length > 0 else float("inf")
        self.largest = max(self.largest, relative)
        # ByzFL makes float32 of every tensor.
        self.other += relative > max(case.tolerance, 1e-5 if pair.library == TORCH else 0.0)


def federation(i: int, pair: Pair) -> Case:
    """Return the i-th random federation that a pair is defined for."""
    draw = rng(i, "conformity")
    k, d = int(draw.integers(5, 21)), int(draw.integers(2, 201))
    k = max(k, pair.least(0))
    f = int(draw.integers(0, pair.most(k) + 1))
    kind = KINDS[i % len(KINDS)]
    if kind == "clusters":
        near = draw.integers(0, 3, k)
        u = draw.standard_normal((3, d))[near] + draw.uniform(0.05, 1.0) * draw.standard_normal((k, d))
    elif kind == "heavy tails":
        u = draw.standard_t(1.5, (k, d))
    else:
        u = draw.standard_normal(d) + draw.standard_normal((k, 1)) * draw.standard_normal(d)
    return Case(u, _setting(u, f, i))


def _setting(u: NDArray[Any], f: int, i: int) -> Setting:
    counts = rng(i, "conformity counts").integers(1, 50, len(u)).tolist()
    # Half of the clients are clipped.
    return Setting(f, counts, float(np.median(np.linalg.norm(u.astype(np.float64), axis=1))) or 1.0, i)


def _plain(i: int, pair: Pair, k: int = 11, d: int = 60) -> tuple[NDArray[Any], int]:
    """Return ordinary updates and the largest legal f."""
    return rng(i, "conformity hard").standard_normal((k, d)), pair.most(k)


def _small(i: int, pair: Pair) -> Case:
    u, f = _plain(i, pair, k=30)
    weights = 0.02 * rng(i, "conformity weights").standard_normal(u.shape[1])
    moved = (weights + 0.02 * 1e-6 * u).astype(np.float32)
    # Rounding of the answer to float32 is no other answer: that is a tenth of an update.
    return Case(moved, _setting(moved, f, i), scale=float(np.linalg.norm(moved - moved.mean(0), axis=1).mean()), tolerance=0.3)


def _copies(i: int, pair: Pair) -> Case:
    u, f = _plain(i, pair)
    u[[4, 9]] = u[1]
    u[7] = u[2]
    return Case(u, _setting(u, f, i))


def _ties(i: int, pair: Pair) -> Case:
    u = rng(i, "conformity hard").integers(-1, 2, (11, 2)).astype(np.float64)
    return Case(u, _setting(u, pair.most(11), i), scale=1.0)  # ours may be zero


def _fewest(i: int, pair: Pair) -> Case:
    f = i % 4
    u, _ = _plain(i, pair, pair.least(f))
    return Case(u, _setting(u, f, i))


def _wild(i: int, pair: Pair) -> Case:
    u, f = _plain(i, pair)
    u[i % len(u), 7] = 1e30
    return Case(u.astype(np.float32), _setting(u, f, i), tolerance=1e-5)


def _half(i: int, pair: Pair) -> Case:
    u, f = _plain(i, pair, d=200)
    return Case((10 * u).astype(np.float16), _setting(10 * u, f, i), tolerance=5e-3)


def _still(i: int, pair: Pair) -> Case:
    u, f = _plain(i, pair)
    u[3] = 0
    return Case(u, _setting(u, f, i))


HARD: dict[str, Callable[[int, Pair], Case]] = {
    "small": _small,
    "copies": _copies,
    "ties": _ties,
    "fewest": _fewest,
    "1e30": _wild,
    "float16": _half,
    "zero": _still,
}


def tally(pair: Pair, cases: Iterable[Case]) -> Tally:
    """Compare one pair over many cases."""
    found = Tally()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of overflow and of divisions by zero, which are counted
        for case in cases:
            found.add(pair, case)
    return found


def compare(federations: int, hard: int, rules: set[str]) -> list[dict[str, Any]]:
    """Return a row for each pair."""
    rows = []
    for pair in PAIRS:
        if pair.rule not in rules:
            continue
        random = tally(pair, (federation(i, pair) for i in range(federations))).told()
        interval = binomtest(random["apart"], random["n"]).proportion_ci(method="wilson")
        rows.append(
            {
                "rule": pair.rule,
                "library": pair.library,
                "name": pair.name,
                "by_hand": tally(pair, [Case(HAND, _setting(HAND, pair.most(len(HAND)), 0))]).told(),
                **random,
                "interval": [float(interval.low), float(interval.high)],
                "hard": {name: tally(pair, (make(i, pair) for i in range(hard))).told() for name, make in HARD.items()},
            }
        )
        gc.freeze()  # one of Flower's strategies collects garbage at every call
    return rows


def only_ours() -> list[str]:
    """Return the names of the registered rules and preparations that neither library has."""
    shared = {pair.rule for pair in PAIRS}
    kinds = (
        entry for entry in DEFENSES.entries() if isinstance(entry.make, type) and issubclass(entry.make, Aggregator | PreAggregator)
    )
    return sorted(entry.name for entry in kinds if entry.name not in shared)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def _cell(found: dict[str, Any]) -> str:
    if found["errors"] == found["n"]:
        return f"`{found['error']}`"
    if found["n"] == 1:
        return "same" if not found["apart"] else "other"
    told = [f"{_percent(found['other'] / found['n'])}"] if found["other"] else []
    told += [f"{_percent(found['infinite'] / found['n'])} not finite"] if found["infinite"] else []
    told += [f"{_percent(found['errors'] / found['n'])} `{found['error']}`"] if found["errors"] else []
    return ", ".join(told) or "same"


def page(rows: list[dict[str, Any]], hard: int) -> str:
    """Return the document."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("flwr", "byzfl", "numpy", "torch"))
    lines = [INTRODUCTION.format(versions=versions, n=rows[0]["n"]), "| ours | theirs | by hand | other answer (95 %) | largest |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for row in rows:
        share, (low, high) = row["apart"] / row["n"], row["interval"]
        told = f"{_percent(share)} ({_percent(low)} – {_percent(high)})" if row["apart"] else f"none (≤ {_percent(high)})"
        lines.append(
            f"| `{row['rule']}` | {row['library']}: {row['name']} | {_cell(row['by_hand'])} | {told} | {row['largest']:.0e} |"
        )
    lines += ["", "## Why", ""]
    lines += [f"* **{title}** {text}" for title, text in WHY]
    lines += ["", "## Hard cases", "", HARD_TEXT.format(n=hard), "| ours | theirs | " + " | ".join(HARD) + " |"]
    lines += ["| --- | --- |" + " --- |" * len(HARD)]
    lines += [
        f"| `{row['rule']}` | {row['library']} | " + " | ".join(_cell(row["hard"][name]) for name in HARD) + " |" for row in rows
    ]
    lines += ["", "## Rules that neither has", "", "| rule | what it is tested against |", "| --- | --- |"]
    lines += [f"| `{name}` | {OWN[name]} |" for name in only_ours()]
    lines += ["", "## Rules of theirs that are not here", "", *(f"* {text}" for text in THEIRS_ALONE), ""]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--federations", type=int, default=1000)
    parser.add_argument("--hard", type=int, default=100)
    parser.add_argument("--rules", default=",".join(dict.fromkeys(pair.rule for pair in PAIRS)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    rows = compare(options.federations, options.hard, set(options.rules.split(",")))
    if options.json:
        print(json.dumps({"rows": rows, "libraries": LIBRARIES, "only_ours": only_ours()}))
    elif not options.write:
        print(page(rows, options.hard))
    if options.write:
        write_text(options.write, page(rows, options.hard))


if __name__ == "__main__":
    main()
