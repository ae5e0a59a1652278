"""The recommended default against its bars: long training, two triggers, three targets, and no poison at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from undertow_reproductions.defense_matrix import wish
from undertow_reproductions.defense_rules import NONE, label
from undertow_reproductions.estimate import Estimate, Verdict, at_most, overall
from undertow_reproductions.results import METRICS, Results
from undertow_reproductions.study import Claim, Lab, Study, Table, Value, Wish
from undertow_reproductions.wording import difference, told, wide

DEFAULT = "undertow"
TRIGGERS = ("natural", "badnets")
#: Config changes over FIT's appended target.
TARGETS: dict[str, dict[str, str]] = {
    "append": {},
    "replace": {"attack.target": "replace", "attack.target_text": "Ask Acme for help instead."},
    "paraphrase": {"attack.target": "paraphrase"},
}
RHOS = (0.3, 0.6, 1.0)
PR = 0.1
#: The bars: ASR, MA lost with poison, MA lost without.
ASR, LOST, NOTHING = 0.01, 0.01, 0.005


def wishes(lab: Lab, results: Results) -> list[Wish]:
    """Every trigger, target and rho under the default; nothing poisoned, with it and without a defense."""
    long = {"federation.rounds": lab.grids.long_rounds}
    found = []
    for seed in lab.seeds:
        for rule in (NONE, DEFAULT):
            plain = wish(rule, 0.0, seed, lab)
            found.append(Wish({**plain.axes, "trigger": "", "target": ""}, {**plain.changes, **long}))
        for trigger in TRIGGERS:
            for target, changes in TARGETS.items():
                for rho in RHOS:
                    one = wish(DEFAULT, rho, seed, lab)
                    attack = {"attack.trigger": trigger, "attack.poison_ratio": PR, **changes}
                    found.append(Wish({**one.axes, "trigger": trigger, "target": target}, {**one.changes, **attack, **long}))
    return found


def _lost(results: Results, **axes: Any) -> Estimate | None:
    """Return MA lost against the run without poison and defense on the same seeds; None without both."""
    clean = {"rule": NONE, "rho": 0.0, "trigger": "", "target": ""}
    return difference(results, "ma", clean, {"rule": DEFAULT, **axes})


def _hits(results: Results, **axes: Any) -> str:
    runs = results.where(rule=DEFAULT, **axes)
    return f"{sum(run.asr.hits for run in runs)} of {sum(run.asr.n for run in runs)}"


def _points(gone: Estimate | None) -> str | None:
    return None if gone is None else told(gone, points=True)


def tables(results: Results) -> list[Table]:
    """One row for each trigger, target and rho, the runs without poison first."""
    rows: list[tuple[Value, ...]] = []
    for rule in (NONE, DEFAULT):
        axes: dict[str, Any] = {"rule": rule, "rho": 0.0, "trigger": "", "target": ""}
        gone = None if rule == NONE else _lost(results, rho=0.0, trigger="", target="")
        if results.where(**axes):
            rows.append(
                (label(rule), "none", "none", 0.0, *(results.share(metric, **axes) for metric in METRICS), None, _points(gone))
            )
    for trigger in TRIGGERS:
        for target in TARGETS:
            for rho in results.values("rho", trigger=trigger, target=target):
                axes = {"trigger": trigger, "target": target, "rho": rho}
                shares = (results.share(metric, rule=DEFAULT, **axes) for metric in METRICS)
                rows.append((DEFAULT, trigger, target, rho, *shares, _hits(results, **axes), _points(_lost(results, **axes))))
    return [Table("bars", ("defense", "trigger", "target", "rho", "MA", "ASR", "FTR", "ASR hits", "MA lost"), rows)]


def _asr(trigger: str, target: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        axes = {"trigger": trigger, "target": target}
        points = [(rho, results.share("asr", rule=DEFAULT, rho=rho, **axes)) for rho in results.values("rho", **axes)]
        words = [f"rho {rho:g}: {_hits(results, rho=rho, **axes)}, ASR {wide(share)}" for rho, share in points]
        return Verdict(overall([at_most(share, ASR) for _, share in points]), "; ".join(words) or "no run")

    return judge


def _ma(trigger: str, target: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        axes = {"trigger": trigger, "target": target}
        points = [(rho, _lost(results, rho=rho, **axes)) for rho in results.values("rho", **axes)]
        words = [f"rho {rho:g}: {told(gone, points=True)}" for rho, gone in points]
        return Verdict(
            overall([at_most(gone, LOST) for _, gone in points]), f"MA lost at {'; '.join(words)}" if words else "no run"
        )

    return judge


def _nothing(results: Results) -> Verdict:
    gone = _lost(results, rho=0.0, trigger="", target="")
    return Verdict(at_most(gone, NOTHING), f"MA lost {told(gone, points=True)}")


_PAIRS = [(trigger, target) for trigger in TRIGGERS for target in TARGETS]

STUDY = Study(
    id="bars",
    title="The recommended default after long training",
    caption=(
        f"`{DEFAULT}` against natural and BadNets triggers with appended, replaced and paraphrased targets, PR {PR:g}, and with "
        "nothing poisoned; MA lost is against the run without poison and without a defense on the same seeds."
    ),
    wishes=wishes,
    tables=tables,
    plots=lambda results: [],
    claims=(
        *(Claim(f"{a} trigger, {b}: ASR at most 1 % at every rho", "bar of ours", _asr(a, b)) for a, b in _PAIRS),
        *(Claim(f"{a} trigger, {b}: at most 1 point of MA lost at every rho", "bar of ours", _ma(a, b)) for a, b in _PAIRS),
        Claim("nothing poisoned: at most 0.5 points of MA lost", "bar of ours", _nothing),
    ),
    deviations=(
        "MA lost is judged by its bootstrap over seeds alone, paired by seed, since both runs are asked the same questions; with "
        "one seed there is no interval, and it is undecided.",
        "The replaced target is \"Ask Acme for help instead.\", the appended one FIT's; paraphrases share FIT's address.",
    ),
    apart=True,
)
