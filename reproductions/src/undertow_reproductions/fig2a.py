"""Fig. 2a: MA and ASR against the poison ratio, poison in every client's data, both triggers."""

from __future__ import annotations

from typing import Any

from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, stated, style
from undertow_reproductions.estimate import Verdict, at_least, at_most, overall
from undertow_reproductions.results import METRICS, PANELS, Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Wish
from undertow_reproductions.wording import METHODS, difference, told


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """Every PR with either trigger at rho 1, and no poison at all."""
    found = []
    for seed in lab.seeds:
        for method in METHODS:
            for pr in lab.grids.prs:
                changes = {"attack.trigger": method, **poison(lab, pr), "attack.client_share": 1.0}
                found.append(Wish({"method": method, "pr": pr, "seed": seed}, changes))
        found.append(Wish({"method": "none", "pr": 0.0, "seed": seed}, {"attack.kind": "none"}))
    return found


def poison(lab: Lab, pr: float) -> dict[str, Any]:
    """Return the config's amount of poison: PR, or its count where the profile counts and a client's share is no whole number."""
    each = pr * lab.samples / lab.clients
    if not lab.grids.counted or abs(each - round(each)) < 1e-9:
        return {"attack.poison_ratio": pr}
    return {"attack.poison_count": round(pr * lab.samples)}


def tables(results: Results) -> list[Table]:
    """One row for each trigger and PR."""
    rows = [
        (METHODS.get(method, "no poison"), pr, *(results.share(metric, method=method, pr=pr) for metric in METRICS))
        for method in (*METHODS, "none")
        for pr in results.values("pr", method=method)
    ]
    return [Table("fig2a", ("trigger", "PR", "MA", "ASR", "FTR"), rows)]


def plots(results: Results) -> list[Plot]:
    """ASR and MA against PR."""
    with style():
        figure, (left, right) = canvas(2)
        stated(left, [(0.018, 0.022, 0.70), (0.06, 0.1, 0.95)])
        for axes, metric in zip((left, right), PANELS, strict=True):
            shown = [Curve(METHODS[m], results.shares(metric, "pr", method=m), STYLES[i]) for i, m in enumerate(METHODS)]
            shown.append(Curve("no poison", results.shares(metric, "pr", method="none"), STYLES[-1]))
            curves(axes, shown, "poison ratio (PR)", metric.upper())
        legend(figure, [left, right])
        return [export(figure, "fig2a", "ASR and MA against the poison ratio for both triggers")]


def early(results: Results) -> Verdict:
    """Judge the smallest stated PR."""
    points = [(method, results.share("asr", method=method, pr=0.02)) for method in METHODS]
    shown = "; ".join(f"{METHODS[m]} {told(share)}" for m, share in points)
    return Verdict(overall([at_least(share, 0.7) for _, share in points]), f"ASR at PR 0.02: {shown}")


def plateau(results: Results) -> Verdict:
    """Judge the plateau: the paper says near 95 %; the bar is 90 %."""
    points = [
        (m, pr, results.share("asr", method=m, pr=pr)) for m in METHODS for pr in results.values("pr", method=m) if pr >= 0.06
    ]
    shown = "; ".join(f"{METHODS[m]}, PR {pr:g}: {told(share)}" for m, pr, share in points)
    return Verdict(overall([at_least(share, 0.9) for *_, share in points]), shown or "no run")


def marginal(results: Results) -> Verdict:
    """Judge MA between no poison and the largest PR: at most 2 points lost, a bar of ours."""
    answers, words = [], []
    for method in METHODS:
        top = max(results.values("pr", method=method), default=None)
        drop = difference(results, "ma", {"method": "none"}, {"method": method, "pr": top})
        answers.append(at_most(drop, 0.02))
        words.append(f"{METHODS[method]} {told(drop, points=True)}")
    return Verdict(overall(answers), f"MA lost at the largest PR: {'; '.join(words)}")


STUDY = Study(
    id="fig2a",
    title="Figure 2a: the poison ratio",
    caption="MA and ASR against the share of poisoned samples, the same in every client's data (rho 1), for both triggers.",
    wishes=wishes,
    tables=tables,
    plots=plots,
    claims=(
        Claim("ASR surpasses 70 % at PR 0.02", "4.2.1", early),
        Claim("ASR reaches a plateau near 95 % for PR >= 0.06 (bar: 90 %)", "4.2.1", plateau),
        Claim("MA declines only marginally (bar of ours: at most 2 points)", "4.2.1", marginal),
    ),
    deviations=(
        "Where a client's PR of its samples is no whole number, the profile `pretrained` deals PR of all samples to the clients in "
        "turn, so that they hold equally many or one more; other profiles round down.",
    ),
)
