"""Poisoned synthetic data and the classic attacks, under every defense, with data dealt evenly and not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from undertow_reproductions.drawing import canvas_for_rows, export, heatmap, style
from undertow_reproductions.estimate import Verdict, at_least, at_most, overall
from undertow_reproductions.fmfl_cases import (
    BI_LI,
    CLEAN,
    IID,
    NOVEL,
    OPEN,
    POISONING,
    SKEWED,
    SOURCE,
    Case,
    cut,
    dealt,
    lost,
    wish,
)
from undertow_reproductions.results import METRICS, Metric, Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import told, wide

#: ASR that the attack must reach undefended, the share of it that bounds must cut, and the MA that either may cost; the library's
#: bars.
REACHED, CUT, COST = 0.8, 0.8, 0.03


def make(cases: Sequence[Case], bounds: str) -> Study:
    """Return the study; ``bounds``: name of the activation bounds among the defenses."""

    return Study(
        id="defended",
        title="Attacks and defenses where a foundation model helps the server",
        caption=(
            "The novel attack poisons what the foundation model writes, used to pre-train and in every fusion, and no client is "
            "malicious; the classic ones poison some clients' data or replace the model, with clean synthetic data. ACC and ASR "
            "after the last round."
        ),
        wishes=partial(_wishes, cases),
        tables=partial(_tables, cases),
        plots=partial(_plots, cases),
        claims=(
            *(
                Claim(
                    f"{case.name}: the novel attack reaches ASR of at least 80 % undefended, ACC within 3 points",
                    f"{SOURCE}; bars of ours",
                    _reaches(case),
                )
                for case in cases
            ),
            *(
                Claim(
                    (
                        f"{case.name}: activation bounds cut the ASR of {attack} by at least 80 % of its value, for at most 3 "
                        "points of ACC"
                    ),
                    f"{BI_LI}; bars of ours",
                    _cuts(case, attack, bounds),
                )
                for case in cases
                for attack in (POISONING, NOVEL)
            ),
        ),
        deviations=(
            "Defenses that need clean data of the server's own (FLTrust, fine-pruning, CROW) get what such a server has: the "
            "synthetic data, and under the novel attack these are poisoned.",
            (
                "Activation bounds follow a reading of a paper whose body could not be had; see docs/activation-bounds.md for what "
                "is inferred."
            ),
        ),
        apart=True,
    )


def _wishes(cases: Sequence[Case], lab: Lab, results: Results) -> list[Wish]:
    """Every attack under every defense in both ways of dealing, with every seed."""
    return [
        wish(case, attack, short, seed, {"defense": name, "partition": partition}, dealt(case, partition))
        for case in cases
        for partition in (IID, SKEWED)
        for attack in case.attacks
        for name, short in case.defenses.items()
        for seed in lab.seeds
    ]


def _tables(cases: Sequence[Case], results: Results) -> list[Table]:
    """One row for each task, way of dealing, attack and defense."""
    rows: list[tuple[Value, ...]] = []
    for case in cases:
        for partition in (IID, SKEWED):
            for attack in case.attacks:
                for name in case.defenses:
                    axes = {"task": case.name, "partition": partition, "attack": attack, "defense": name}
                    if results.where(**axes):
                        clean = {**axes, "attack": CLEAN, "defense": OPEN}
                        rows.append(
                            (
                                *axes.values(),
                                *(results.share(m, **axes) for m in METRICS),
                                told(lost(results, clean, axes), points=True),
                            )
                        )
    columns = ("task", "partition", "attack", "defense", "ACC", "ASR", "FTR", "ACC lost against no attack, no defense")
    return [Table("defended", columns, rows)]


def _plots(cases: Sequence[Case], results: Results) -> list[Plot]:
    """Heatmaps of ASR and ACC for each task."""
    found = []
    for case in cases:
        names = [name for name in case.defenses if results.where(task=case.name, defense=name)]
        across = [(partition, attack) for partition in (IID, SKEWED) for attack in case.attacks]
        if not names:
            continue
        shown: tuple[tuple[Metric, str, float], ...] = (("asr", "ASR", 0.0), ("ma", "ACC", 1.0))
        for metric, said, best in shown:
            shares = [
                [results.share(metric, task=case.name, defense=name, partition=p, attack=a) for p, a in across] for name in names
            ]
            with style():
                figure, axes = canvas_for_rows(len(names), 2 * len(across))
                values = [[None if share is None else share.value for share in row] for row in shares]
                heatmap(figure, axes, values, names, ["\n".join((*a.split(), p)) for p, a in across], best=best, name=said)
                axes.set_title(f"{case.name}: {said}", fontsize=10.5)
                label = f"{said} in percent on {case.name} for each defense, attack and way of dealing; dark is good"
                found.append(export(figure, f"defended-{case.name}-{metric}", label))
    return found


def _reaches(case: Case) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        answers, words = [], []
        for partition in (IID, SKEWED):
            here = {"task": case.name, "partition": partition, "defense": OPEN}
            asr = results.share("asr", **here, attack=NOVEL)
            price = lost(results, {**here, "attack": CLEAN}, {**here, "attack": NOVEL})
            if asr is not None:
                answers += [at_least(asr, REACHED), at_most(price, COST)]
                words.append(f"{partition}: ASR {wide(asr)}, ACC lost {told(price, points=True)}")
        return Verdict(overall(answers), "; ".join(words) or "no run")

    return judge


def _cuts(case: Case, attack: str, bounds: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        answers, words = [], []
        for partition in (IID, SKEWED):
            here: dict[str, Any] = {"task": case.name, "partition": partition, "attack": attack}
            without, with_bounds = {**here, "defense": OPEN}, {**here, "defense": bounds}
            share, price = cut(results, without, with_bounds), lost(results, without, with_bounds)
            if share is not None:
                answers += [at_least(share, CUT), at_most(price, COST)]
                words.append(
                    f"{partition}: ASR {wide(results.share('asr', **without))} to {wide(results.share('asr', **with_bounds))}, "
                    f"cut by {told(share)}, ACC lost {told(price, points=True)}"
                )
        return Verdict(overall(answers), "; ".join(words) or "no run")

    return judge
