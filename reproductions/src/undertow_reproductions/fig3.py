"""Fig. 3: the smallest poison ratio that gives an ASR of 60 %, for each share of poisoned clients."""

from __future__ import annotations

from itertools import pairwise

from undertow_reproductions.drawing import STYLES, canvas, export, legend, style
from undertow_reproductions.estimate import Answer, Verdict, of_numbers
from undertow_reproductions.results import Results
from undertow_reproductions.search import monotone, next_step, smallest
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Wish
from undertow_reproductions.trend import slope
from undertow_reproductions.wording import number

#: The paper's step of PR and its bar.
STEP, BAR = 0.01, 0.6


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """For each rho and seed: what was tried, and the next PR of the search."""
    found = []
    for seed in lab.seeds[: lab.grids.search_seeds]:
        for rho in lab.grids.search_rhos:
            known = tried(results, rho, seed)
            step = next_step(known, lab.grids.search_top, start=10)
            for one in sorted({*known, *([] if step is None else [step])}):
                pr = round(one * STEP, 2)
                changes = {"attack.poison_ratio": pr, "attack.client_share": rho, "attack.scope": "client"}
                found.append(Wish({"rho": rho, "pr": pr, "seed": seed}, changes))
    return found


def tried(results: Results, rho: float, seed: int) -> dict[int, bool]:
    """Return the steps of 0.01 that were run, and whether ASR reached the bar."""
    return {round(run.axes["pr"] / STEP): (run.asr.value or 0.0) >= BAR for run in results.where(rho=rho, seed=seed)}


def found_prs(results: Results) -> dict[float, dict[int, float | None]]:
    """Return for each rho and seed the smallest PR, or None where no tried PR reached the bar."""
    found: dict[float, dict[int, float | None]] = {}
    for rho in results.values("rho"):
        for seed in results.values("seed", rho=rho):
            step = smallest(tried(results, rho, seed))
            found.setdefault(rho, {})[seed] = None if step is None else step * STEP
    return found


def tables(results: Results) -> list[Table]:
    """The smallest PR for each rho, and everything that was tried."""
    rows = []
    for rho, by_seed in found_prs(results).items():
        reached = [pr for pr in by_seed.values() if pr is not None]
        scanned = sum(not monotone(tried(results, rho, seed)) for seed in by_seed)
        shown = ", ".join(f"{pr:.2f}" if pr is not None else "none" for pr in by_seed.values())
        rows.append((rho, of_numbers(reached), shown, len(by_seed) - len(reached), scanned))
    columns = ("rho", "smallest PR", "by seed", "seeds without one", "seeds scanned step by step")
    runs = sorted(results.runs, key=lambda run: (run.axes["rho"], run.axes["seed"], run.axes["pr"]))
    every = [(run.axes["rho"], run.axes["seed"], run.axes["pr"], run.asr.value) for run in runs]
    return [Table("fig3", columns, rows), Table("fig3-tried", ("rho", "seed", "PR", "ASR"), every)]


def plots(results: Results) -> list[Plot]:
    """The smallest PR against rho: each seed, and the mean."""
    found = found_prs(results)
    with style():
        figure, (axes,) = canvas()
        points = [(rho, pr) for rho, by_seed in found.items() for pr in by_seed.values() if pr is not None]
        if not points:
            return []
        means = [(rho, of_numbers([pr for pr in by_seed.values() if pr is not None])) for rho, by_seed in found.items()]
        told = [(rho, mean.value) for rho, mean in means if mean is not None]
        axes.plot([x for x, _ in told], [y for _, y in told], label="mean", **STYLES[0])
        axes.plot([x for x, _ in points], [y for _, y in points], "x", color="#000000", label="each seed")
        axes.set_xlabel("share of poisoned clients (ρ)")
        axes.set_ylabel("smallest PR with ASR ≥ 60 %")
        axes.set_ylim(bottom=0)
        legend(figure, [axes])
        return [export(figure, "fig3", "Smallest poison ratio with an ASR of 60 percent against the share of poisoned clients")]


def falls(results: Results) -> Verdict:
    """Judge that the smallest PR falls with rho: by the slope over rho of each seed."""
    found = found_prs(results)
    seeds = sorted({seed for by_seed in found.values() for seed in by_seed})
    lines = [[(rho, pr) for rho in found if (pr := found[rho].get(seed)) is not None] for seed in seeds]
    slopes = of_numbers([value for line in lines if (value := slope(line)) is not None])
    if slopes is None:
        return Verdict("undecided", "no seed has a smallest PR at two rho")
    rises = sum(b > a for line in lines for (_, a), (_, b) in pairwise(line))
    steps = sum(max(0, len(line) - 1) for line in lines)
    answer: Answer = "holds" if slopes.high < 0 else "does not hold" if slopes.low >= 0 else "undecided"
    return Verdict(answer, f"slope of PR over rho {number(slopes)}; PR rises at {rises} of {steps} steps of rho")


STUDY = Study(
    id="fig3",
    title="Figure 3: the smallest poison ratio",
    caption="For each rho the smallest PR, in steps of 0.01, whose final ASR is at least 60 %.",
    wishes=wishes,
    tables=tables,
    plots=plots,
    extra=lambda lab: 4 * len(lab.grids.search_rhos) * len(lab.seeds[: lab.grids.search_seeds]),
    claims=(Claim("The minimum PR for an ASR of 60 % decreases as rho increases", "4.2.3, Fig. 3", falls),),
    deviations=(
        "Searched for each seed by itself, by halving; where a PR fails above one that passes, every smaller PR is run.",
        "The paper does not say on which model, data set and trigger; ours is the main setting.",
    ),
)
