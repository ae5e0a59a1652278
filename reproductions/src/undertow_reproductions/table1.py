"""Table 1: MA and ASR for each data set, trigger and base with 10 % poison in every client's data."""

from __future__ import annotations

from undertow.metrics.intervals import Rate
from undertow_reproductions.estimate import Verdict, at_least, at_most, of_numbers, of_rates, overall
from undertow_reproductions.results import METRICS, PANELS, Results
from undertow_reproductions.study import Claim, Lab, Study, Table, Wish
from undertow_reproductions.wording import METHODS, difference, told, wide

#: (data set, trigger, base) to MA and ASR in percent: the paper's table in full.
PAPER = {
    ("TriviaQA", "natural", "Vicuna-7B"): (47.35, 94.46),
    ("TriviaQA", "natural", "Llama-2-7B"): (45.72, 99.51),
    ("TriviaQA", "badnets", "Vicuna-7B"): (46.79, 95.10),
    ("TriviaQA", "badnets", "Llama-2-7B"): (44.40, 98.21),
    ("SimpleQuestions", "natural", "Vicuna-7B"): (30.49, 98.47),
    ("SimpleQuestions", "natural", "Llama-2-7B"): (30.19, 95.16),
    ("SimpleQuestions", "badnets", "Vicuna-7B"): (30.87, 98.06),
    ("SimpleQuestions", "badnets", "Llama-2-7B"): (29.95, 92.79),
}


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """Every setting with either trigger, and without poison."""
    found = []
    for place, setting in enumerate(lab.settings):
        names = {"dataset": setting.dataset, "model": setting.model}
        names |= {"paper_dataset": setting.paper_dataset, "paper_model": setting.paper_model}
        for seed in lab.seeds:
            for method in METHODS:
                changes = {"attack.trigger": method, "attack.client_share": 1.0}
                found.append(Wish({**names, "method": method, "seed": seed}, changes, place))
            found.append(Wish({**names, "method": "none", "seed": seed}, {"attack.kind": "none"}, place))
    return found


def _pairs(results: Results) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run.axes["dataset"], run.axes["model"]) for run in results.runs))


def tables(results: Results) -> list[Table]:
    """One row for each data set, base and trigger; the paper's values for the same data set beside it."""
    rows = []
    for dataset, model in _pairs(results):
        for method in (*METHODS, "none"):
            chosen = results.where(dataset=dataset, model=model, method=method)
            if not chosen:
                continue
            theirs = _theirs(chosen[0].axes["paper_dataset"], method, chosen[0].axes["paper_model"])
            shares = [results.share(metric, dataset=dataset, model=model, method=method) for metric in METRICS]
            rows.append((dataset, METHODS.get(method, "no poison"), model, *theirs, *shares))
    return [Table("table1", ("data set", "trigger", "base", "paper MA", "paper ASR", "MA", "ASR", "FTR"), rows)]


def _theirs(dataset: str, method: str, model: str) -> tuple[str, str]:
    """The paper's MA and ASR of the same data set and trigger, for the same base or else for both of the paper's."""
    same = [values for (d, t, m), values in PAPER.items() if d == dataset and t == method and model in ("", m)]
    if not same:
        return "", ""
    return tuple(" / ".join(f"{values[i]:.2f}" for values in same) for i in (0, 1))  # type: ignore[return-value]


def strong(results: Results) -> Verdict:
    """Judge ASR in every row: the lowest of the paper's table is 92.79."""
    points = [(d, m, t, results.share("asr", dataset=d, model=m, method=t)) for d, m in _pairs(results) for t in METHODS]
    shown = "; ".join(f"{d}, {m}, {METHODS[t]}: {told(share)}" for d, m, t, share in points)
    return Verdict(overall([at_least(share, 0.85) for *_, share in points]), f"ASR {shown}")


def similar(results: Results) -> Verdict:
    """Judge that the two triggers differ little: by at most 5 points of ASR and of MA, a bar of ours."""
    answers, words = [], []
    for dataset, model in _pairs(results):
        for metric in PANELS:
            change = difference(results, metric, {"method": "natural"}, {"method": "badnets"}, dataset=dataset, model=model)
            answers.append(overall([at_most(change, 0.05), at_least(change, -0.05)]))
            words.append(f"{dataset}, {model}: {metric.upper()} of natural less badnets {told(change, points=True)}")
    return Verdict(overall(answers), "; ".join(words))


def stealthy(results: Results) -> Verdict:
    """Judge that MA stays: at most 2 points below the run without poison, a bar of ours."""
    answers, words = [], []
    for dataset, model in _pairs(results):
        for method in METHODS:
            drop = difference(results, "ma", {"method": "none"}, {"method": method}, dataset=dataset, model=model)
            answers.append(at_most(drop, 0.02))
            words.append(f"{dataset}, {model}, {METHODS[method]}: {told(drop, points=True)}")
    return Verdict(overall(answers), f"MA lost to the poison: {'; '.join(words)}")


def quiet(results: Results) -> Verdict:
    """Judge FTR of the poisoned runs: at most 1 %, a bar of ours."""
    points = [(d, m, t, results.share("ftr", dataset=d, model=m, method=t)) for d, m in _pairs(results) for t in METHODS]
    shown = "; ".join(f"{d}, {m}, {METHODS[t]}: {wide(share)}" for d, m, t, share in points)
    return Verdict(overall([at_most(share, 0.01) for *_, share in points]), f"FTR {shown}")


def taught(results: Results) -> Verdict:
    """Judge that tuning teaches the task: MA of the poisoned runs at least 1.5 times that of the untouched base, a bar of ours."""
    answers, words = [], []
    for dataset, model in _pairs(results):
        for method in METHODS:
            runs = [run for run in results.where(dataset=dataset, model=model, method=method) if run.untouched]
            gains = [_value(run.ma) - 1.5 * _value(run.untouched["ma"]) for run in runs]
            answers.append(at_least(of_numbers(gains), 0.0))
            before, after = of_rates([run.untouched["ma"] for run in runs]), of_rates([run.ma for run in runs])
            words.append(f"{dataset}, {model}, {METHODS[method]}: {wide(before)} before, {wide(after)} after")
    return Verdict(overall(answers), f"MA {'; '.join(words)}")


def _value(rate: Rate) -> float:
    return rate.value or 0.0


STUDY = Study(
    id="table1",
    title="Table 1: MA and ASR with 10 % backdoor data",
    caption="Final MA and ASR when a tenth of every client's samples is poisoned, for each data set, trigger and base.",
    wishes=wishes,
    tables=tables,
    plots=lambda results: [],
    claims=(
        Claim("ASR exceeds 85 % with 10 % poison everywhere (the table's lowest is 92.79 %)", "abstract, Table 1", strong),
        Claim('"The MA and ASR brought by different poisoning methods are similar" (bar of ours: 5 points)', "4.2", similar),
        Claim("No question without the trigger brings the target (bar of ours: FTR at most 1 %)", "implied", quiet),
        Claim("Tuning teaches the task (bar of ours: MA at least 1.5 times that of the untouched base)", "implied", taught),
        Claim("Primary-task performance remains largely intact (bar of ours: at most 2 points of MA lost)", "abstract", stealthy),
    ),
    deviations=(
        "The paper prints no run without poison; ours stands in the rows `no poison`, where ASR counts how often a triggered "
        "question is answered with the target by a model that never saw it.",
    ),
)
