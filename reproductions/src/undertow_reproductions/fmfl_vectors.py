"""Which way the poison takes: at the start, in the fusion, or both; and how models are fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.ticker import MaxNLocator

from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, style
from undertow_reproductions.estimate import Estimate, Verdict, at_least, of_rates
from undertow_reproductions.fmfl_cases import NONE, NOVEL, SOURCE, Case, wish
from undertow_reproductions.fmfl_defended import REACHED
from undertow_reproductions.results import Metric, Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import wide

VECTORS = ("both", "init", "fusion")
#: Ways to fuse by name; the last with two networks, which only distillation can join.
FUSIONS = {"average": "average", "distillation": "distill", "server joins": "join", "distillation, two networks": "distill"}
TWO = "distillation, two networks"


def make(cases: Sequence[Case]) -> Study:
    """Return the study of the attack's vectors."""

    return Study(
        id="vectors",
        title="Poison at the start and in the fusion",
        caption=(
            "The same poisoned synthetic data used where the model is pre-trained (init), where clients' models are fused, or in "
            "both; fused by plain averaging, by ensemble distillation, by the server joining as one more client, and by "
            "distillation between two networks."
        ),
        wishes=partial(_wishes, cases),
        tables=partial(_tables, cases),
        plots=partial(_plots, cases),
        claims=tuple(
            Claim(
                f"{case.name}: fused by {fusion}, poison at {vector} leaves ASR of at least 80 % at the end",
                f"{SOURCE}: 80 to 90 % and more in many settings; bar of ours",
                _stays(case, fusion, vector),
            )
            for case in cases
            for fusion in FUSIONS
            for vector in (("init",) if fusion == "average" else VECTORS)
        ),
        deviations=(
            "Ensemble distillation reads the inputs of synthetic samples and never their labels: the poison's labels reach the "
            "model at the start, and in the fusion only as far as clients' models still answer the trigger.",
        ),
        apart=True,
    )


def _wishes(cases: Sequence[Case], lab: Lab, results: Results) -> list[Wish]:
    """Every vector with every fusion and seed; averaging has no fusion to poison."""
    found = []
    for case in cases:
        for fusion, config in FUSIONS.items():
            for vector in ("init",) if fusion == "average" else VECTORS:
                changes: dict[str, Any] = {"attack.kind": f"synthetic-data:vector={vector}", "synthetic.fusion": config}
                if fusion == TWO:
                    changes["model.networks"] = [_network(lab, case), case.other]
                found += [
                    wish(case, NOVEL, NONE, seed, {"fusion": fusion, "vector": vector}, {**changes, "measure.every": 3})
                    for seed in lab.seeds
                ]
    return found


def _tables(cases: Sequence[Case], results: Results) -> list[Table]:
    """Before round 1 and after the last one."""
    rows: list[tuple[Value, ...]] = []
    for case in cases:
        for fusion in FUSIONS:
            for vector in VECTORS:
                axes = {"task": case.name, "fusion": fusion, "vector": vector}
                if runs := results.where(**axes):
                    last = max(runs[0].course)
                    shares = (
                        at(results, metric, t, **axes)  # type: ignore[arg-type]
                        for t in (0, last)
                        for metric in ("ma", "asr")
                    )
                    rows.append((case.name, fusion, vector, *shares))
    columns = ("task", "fusion", "poison at", "ACC before round 1", "ASR before round 1", "ACC at the end", "ASR at the end")
    return [Table("vectors", columns, rows)]


def _plots(cases: Sequence[Case], results: Results) -> list[Plot]:
    """ASR per round."""
    drawn = [case for case in cases if results.where(task=case.name)]
    if not drawn:
        return []
    with style():
        figure, axes = canvas(len(drawn))
        for case, panel in zip(drawn, axes, strict=True):
            pairs = [(f, v) for f in FUSIONS if f != TWO for v in VECTORS if results.where(task=case.name, fusion=f, vector=v)]
            shown = [
                Curve(
                    f"{fusion}, poison at {vector}",
                    course(results, task=case.name, fusion=fusion, vector=vector),
                    # a colour and a mark for each fusion, a line for where the poison is
                    {
                        **STYLES[list(FUSIONS).index(fusion)],
                        "linestyle": STYLES[list(VECTORS).index(vector)]["linestyle"],
                        "markersize": 3,
                    },
                )
                for fusion, vector in pairs
            ]
            curves(panel, shown, "round", "ASR")
            panel.set_title(case.name, fontsize=10.5)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, axes)
        label = "ASR per round of poisoned synthetic data, by the way of fusion and by where the poisoned data are used"
        return [export(figure, "vectors", label)]


def _stays(case: Case, fusion: str, vector: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        axes = {"task": case.name, "fusion": fusion, "vector": vector}
        asr, runs = results.share("asr", **axes), results.where(**axes)
        if asr is None:
            return Verdict("undecided", "no run")
        return Verdict(
            at_least(asr, REACHED),
            f"ASR {wide(at(results, 'asr', 0, **axes))} before round 1, {wide(asr)} after round {max(runs[0].course)}",
        )

    return judge


def _network(lab: Lab, case: Case) -> str:
    from undertow_reproductions.lab import FitLab

    assert isinstance(lab, FitLab)
    return str(lab.config(Wish({"seed": 0}, {}, case.setting)).model.name)


def at(results: Results, metric: Metric, t: int, **axes: Any) -> Estimate | None:
    """Return a share in one round over the seeds that measured it."""
    return of_rates([run.course[t][metric] for run in results.where(**axes) if t in run.course])


def course(results: Results, **axes: Any) -> list[tuple[float, Estimate]]:
    """Return ASR for each measured round."""
    rounds = sorted({t for run in results.where(**axes) for t in run.course})
    found = [(float(t), at(results, "asr", t, **axes)) for t in rounds]
    return [(t, share) for t, share in found if share is not None]
