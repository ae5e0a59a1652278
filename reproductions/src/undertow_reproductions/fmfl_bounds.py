"""Activation bounds by objective, places and the data they are fitted on: the case to fear is that those are poisoned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from undertow_reproductions.estimate import Verdict, at_least, at_most, overall
from undertow_reproductions.fmfl_cases import BI_LI, CLEAN, NONE, NOVEL, OPEN, POISONING, Case, cut, lost, wish
from undertow_reproductions.fmfl_defended import COST, CUT
from undertow_reproductions.results import METRICS, Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import told, wide

#: What bounds are fitted on.
FITTED = {"as the server has them": "same", "as written without the attacker": "clean"}
SAME, OTHER = FITTED


def make(cases: Sequence[Case]) -> Study:
    """Return the study of the variants."""

    return Study(
        id="bounds",
        title="Activation bounds: objectives, places, and poisoned fitting data",
        caption=(
            "Two objectives and several places of bounds, fitted on the synthetic data that the server has (under the novel "
            "attack poisoned), or as written without the attacker. ASR cut by: 1 - ASR / ASR undefended. ACC lost: against the "
            "same attack undefended."
        ),
        wishes=partial(_wishes, cases),
        tables=partial(_tables, cases),
        plots=_plots,
        claims=tuple(
            Claim(
                (
                    f"{case.name}, {attack}, {name}{'' if attack == POISONING else ', data ' + fitted}: ASR cut by at least 80 %, "
                    "ACC lost at most 3 points"
                ),
                f"{BI_LI}; bars of ours",
                _holds(case, attack, name, fitted),
            )
            for case in cases
            for attack in (POISONING, NOVEL)
            for name in case.bounds
            for fitted in (FITTED if attack == NOVEL else (SAME,))
        ),
        apart=True,
    )


def _wishes(cases: Sequence[Case], lab: Lab, results: Results) -> list[Wish]:
    """Each attack and no attack, undefended and under each variant; fitted on both kinds of data where they differ."""
    found = []
    for case in cases:
        for attack in (CLEAN, POISONING, NOVEL):
            for seed in lab.seeds:
                found.append(wish(case, attack, NONE, seed, {"bounds": OPEN, "fitted": SAME}, {}))
                for name, short in case.bounds.items():
                    for fitted, config in FITTED.items() if attack == NOVEL else [(SAME, "same")]:
                        changes = {"synthetic.defense": config}
                        found.append(wish(case, attack, short, seed, {"bounds": name, "fitted": fitted}, changes))
    return found


def _tables(cases: Sequence[Case], results: Results) -> list[Table]:
    """One row for each task, attack, variant and kind of data."""
    rows: list[tuple[Value, ...]] = []
    for case in cases:
        for attack in (CLEAN, POISONING, NOVEL):
            for name in (OPEN, *case.bounds):
                for fitted in FITTED:
                    axes = {"task": case.name, "attack": attack, "bounds": name, "fitted": fitted}
                    if results.where(**axes):
                        without = {**axes, "bounds": OPEN, "fitted": SAME}
                        shares = (results.share(metric, **axes) for metric in METRICS)
                        rows.append(
                            (
                                *axes.values(),
                                *shares,
                                told(cut(results, without, axes)),
                                told(lost(results, without, axes), points=True),
                            )
                        )
    columns = ("task", "attack", "bounds", "fitted on synthetic data", "ACC", "ASR", "FTR", "ASR cut by", "ACC lost")
    return [Table("bounds", columns, rows)]


def _plots(results: Results) -> list[Plot]:
    """None: the table is the result."""
    return []


def _holds(case: Case, attack: str, name: str, fitted: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        axes: dict[str, Any] = {"task": case.name, "attack": attack, "bounds": name, "fitted": fitted}
        without = {**axes, "bounds": OPEN, "fitted": SAME}
        share, price = cut(results, without, axes), lost(results, without, axes)
        if share is None:
            return Verdict("undecided", "no run")
        words = (
            f"ASR {wide(results.share('asr', **without))} to {wide(results.share('asr', **axes))}, cut by {told(share)}, ACC "
            f"lost {told(price, points=True)}"
        )
        return Verdict(overall([at_least(share, CUT), at_most(price, COST)]), words)

    return judge
