"""Fig. 2b: MA and ASR against the share of poisoned clients rho, at one poison ratio."""

from __future__ import annotations

from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, stated, style
from undertow_reproductions.estimate import Verdict, at_least, at_most, overall
from undertow_reproductions.results import METRICS, PANELS, Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Wish
from undertow_reproductions.wording import difference, told

SCOPES = {"client": "PR of each poisoned client's data", "global": "PR of all data, on the poisoned clients"}


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """Every rho in both readings of PR; they agree at rho 1."""
    return [
        Wish(
            {"scope": scope, "rho": rho, "seed": seed},
            {"attack.scope": "client" if rho == 1 else scope, "attack.client_share": rho},
        )
        for seed in lab.seeds
        for scope, rhos in (("client", lab.grids.rhos), ("global", lab.grids.global_rhos))
        for rho in rhos
    ]


def tables(results: Results) -> list[Table]:
    """One row for each reading and rho."""
    rows = [
        (scope, rho, *(results.share(metric, scope=scope, rho=rho) for metric in METRICS))
        for scope in SCOPES
        for rho in results.values("rho", scope=scope)
    ]
    return [Table("fig2b", ("scope", "rho", "MA", "ASR", "FTR"), rows)]


def plots(results: Results) -> list[Plot]:
    """ASR and MA against rho."""
    with style():
        figure, (left, right) = canvas(2)
        stated(left, [(0.08, 0.12, 0.01), (0.38, 0.42, 0.6)])
        for axes, metric in zip((left, right), PANELS, strict=True):
            shown = [
                Curve(text, results.shares(metric, "rho", scope=scope), STYLES[i]) for i, (scope, text) in enumerate(SCOPES.items())
            ]
            curves(axes, shown, "share of poisoned clients (ρ)", metric.upper())
        legend(figure, [left, right], columns=2)
        return [export(figure, "fig2b", "ASR and MA against the share of poisoned clients in both readings of PR")]


def low(results: Results) -> Verdict:
    """Judge the foot of the curve."""
    share = results.share("asr", scope="client", rho=0.1)
    return Verdict(
        at_most(share, 0.05), f"ASR at rho 0.1: {told(share)}; other scope: {told(results.share('asr', scope='global', rho=0.1))}"
    )


def high(results: Results) -> Verdict:
    """Judge the stated height at rho 0.4."""
    share = results.share("asr", scope="client", rho=0.4)
    return Verdict(
        at_least(share, 0.6), f"ASR at rho 0.4: {told(share)}; other scope: {told(results.share('asr', scope='global', rho=0.4))}"
    )


def stable(results: Results) -> Verdict:
    """Judge that MA at any rho lies within 3 points of MA at the smallest rho, a bar of ours."""
    rhos = results.values("rho", scope="client")
    changes = [(rho, difference(results, "ma", {"rho": rhos[0]}, {"rho": rho}, scope="client")) for rho in rhos[1:]]
    known = [(rho, change) for rho, change in changes if change is not None]
    if not known:
        return Verdict("undecided", "fewer than two rho were run")
    worst = max(known, key=lambda pair: abs(pair[1].value))
    answer = overall([part for _, change in known for part in (at_most(change, 0.03), at_least(change, -0.03))])
    return Verdict(answer, f"largest loss of MA against rho {rhos[0]:g}, at rho {worst[0]:g}: {told(worst[1], points=True)}")


STUDY = Study(
    id="fig2b",
    title="Figure 2b: the share of poisoned clients",
    caption=(
        "MA and ASR against rho at PR 0.1. Whether PR is of each poisoned client's data or of all data, the paper leaves "
        "open: both are run."
    ),
    wishes=wishes,
    tables=tables,
    plots=plots,
    claims=(
        Claim("At rho 0.1 ASR is less than 1 % (bar: 5 %)", "4.2.2", low),
        Claim("At rho 0.4 ASR is greater than 60 %", "4.2.2", high),
        Claim("MA remains relatively stable (bar of ours: 3 points)", "4.2.2", stable),
    ),
    deviations=("Verdicts read PR as a share of each poisoned client's data; the other reading stands beside it in the evidence.",),
)
