"""Does the number of poisoned samples decide, or their share? ASR against the number at several sizes of clean data."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log

from undertow_reproductions.collection import Collection
from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, style
from undertow_reproductions.estimate import Estimate, Verdict, at_most, of_numbers
from undertow_reproductions.results import METRICS, PANELS, Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.trend import slope
from undertow_reproductions.wording import number

#: ASR whose number of poisoned samples is looked for, and the exponent of the size between a count and a share; both ours.
HALF, BETWEEN = 0.5, 0.5


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """Every number of poisoned samples at every size, in every client's data."""
    return [
        Wish(
            {"size": size, "count": count, "seed": seed},
            {"data.train": size, "attack.poison_count": count, "attack.client_share": 1.0},
        )
        for seed in lab.seeds
        for size in lab.grids.sizes
        for count in lab.grids.counts
    ]


def needed(results: Results, size: int, seed: int) -> float | None:
    """Return the number of poisoned samples at which ASR of one seed first reaches one half.

    Between two numbers log(count) is taken as linear in ASR. None where the smallest number reaches it already, or none does.
    """
    points = [(run.axes["count"], run.asr.value or 0.0) for run in results.by_seed("count", size=size, seed=seed).get(seed, ())]
    for (few, low), (many, high) in pairwise(points):
        if low < HALF <= high:
            return exp(log(few) + (HALF - low) / (high - low) * (log(many) - log(few)))
    return None


def exponent(results: Results) -> Estimate | None:
    """Return k of needed ~ size^k, one line a seed over the sizes whose number is known; None where no seed has two."""
    slopes = []
    for seed in results.values("seed"):
        known = [(size, count) for size in results.values("size") if (count := needed(results, size, seed)) is not None]
        found = slope([(log(size), log(count)) for size, count in known])
        slopes += [] if found is None else [found]
    return of_numbers(slopes)


def tables(results: Results) -> list[Table]:
    """One row for each size and number, and the number that one half needs at each size."""
    rows = [
        (size, count, f"{100 * count / size:.1f} %", *(results.share(metric, size=size, count=count) for metric in METRICS))
        for size in results.values("size")
        for count in results.values("count", size=size)
    ]
    halves: list[tuple[Value, ...]] = []
    for size in results.values("size"):
        by_seed = [needed(results, size, seed) for seed in results.values("seed", size=size)]
        known = of_numbers([count for count in by_seed if count is not None])
        shown = ", ".join("outside" if count is None else f"{count:.1f}" for count in by_seed)
        halves.append((size, known, None if known is None else f"{100 * known.value / size:.2f} %", shown))
    return [
        Table("counts", ("samples", "poisoned", "share", "MA", "ASR", "FTR"), rows),
        Table("counts-half", ("samples", "poisoned for ASR 50 %", "share", "by seed"), halves),
    ]


def plots(results: Results) -> list[Plot]:
    """ASR against the number, and against the share: where the curves lie on one another, that is what decides."""
    sizes = results.values("size")
    with style():
        figure, (left, right) = canvas(2)
        shown = [(size, results.shares("asr", "count", size=size), STYLES[i % len(STYLES)]) for i, size in enumerate(sizes)]
        by_count = [Curve(f"{size} samples", points, look) for size, points, look in shown]
        by_share = [Curve(f"{size} samples", [(x / size, y) for x, y in points], look) for size, points, look in shown]
        curves(left, by_count, "poisoned samples in the federation", PANELS[0].upper())
        curves(right, by_share, "their share of all samples", PANELS[0].upper())
        legend(figure, [left, right])
        return [export(figure, "counts", "ASR against the number of poisoned samples, and against their share, at several sizes")]


def decides(results: Results) -> Verdict:
    """Judge that the number for ASR 50 % hardly grows with the size: exponent 0 is a count, 1 a share, the bar lies between."""
    found = exponent(results)
    if found is None:
        return Verdict("undecided", "ASR does not cross 50 % at two sizes of any seed")
    low, high = min(results.values("size")), max(results.values("size"))
    words = f"number for ASR 50 % ~ size^k with k = {number(found)}, sizes {low} to {high}"
    decided = "one seed says" if found.alone else "the seeds say"
    decided += " the count" if found.high <= BETWEEN else " the share" if found.low > BETWEEN else " neither clearly"
    return Verdict(at_most(found, BETWEEN), f"{words}; {decided}")


STUDY = Study(
    id="counts",
    title="Counts, not shares",
    caption=(
        "ASR against the number of poisoned samples in the whole federation (`attack.poison_count`, dealt to all clients) at "
        "several sizes of clean data, each sample seen equally often."
    ),
    wishes=wishes,
    tables=tables,
    plots=plots,
    claims=(
        Claim(
            "The number of poisoned samples decides, not their share: the number for ASR 50 % grows more slowly than the square "
            "root of the size of the data (bar of ours; size^0 is a constant number, size^1 a constant share)",
            "arXiv 2510.07192 (pre-training, up to 13 B)",
            decides,
        ),
    ),
    deviations=(
        "The rounds are the same at every size, as epochs are in the source: more data are more steps of the optimiser, and each "
        "poisoned sample is seen equally often.",
    ),
)

COUNTS = Collection(
    id="counts",
    title="Counts of poisoned samples, or their share",
    document="counts.md",
    introduction=(
        "Souly et al., *Poisoning Attacks on LLMs Require a Near-constant Number of Poison Samples*,",
        "[arXiv 2510.07192](https://arxiv.org/abs/2510.07192), find that about 250 documents suffice at any size of model and",
        "data. Here the same question is asked of instruction tuning in a federation of benign clients.",
    ),
    reading=(
        "How to read a number: `97.1 % (95.2 to 98.4)` is the mean over the seeds. The interval runs from the lower of both lower",
        "ends to the higher of both higher ends of two 95 % intervals: the bootstrap over seeds, and Wilson's over all test",
        "questions of these seeds pooled. The number for ASR 50 % is found for each seed between two neighbouring numbers, on a",
        "logarithmic scale; the exponent is the slope of a line through the logarithms, one a seed, with the bootstrap over seeds.",
    ),
    notes=("One base and one data set, named above; the sizes are of all clients together.",),
    heading="To keep in mind:",
    columns=("statement", "source", "what was found"),
    studies=lambda lab: {STUDY.id: STUDY},
)
