"""What each rule costs where there is nothing to defend against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from undertow_reproductions.defense_matrix import loss, untouched, wish
from undertow_reproductions.defense_rules import NONE, label, source
from undertow_reproductions.estimate import Verdict, at_most
from undertow_reproductions.results import METRICS, Results
from undertow_reproductions.study import Claim, Lab, Study, Table, Value, Wish
from undertow_reproductions.wording import wide

#: MA that a rule may lose; ours.
BAR = 0.02


def make(rules: Sequence[str]) -> Study:
    """Return the study of these rules."""

    def wishes(lab: Lab, results: Results) -> list[Wish]:
        """Every rule without poison, with every seed."""
        return [wish(rule, 0.0, seed, lab) for seed in lab.seeds for rule in rules]

    return Study(
        id="cost",
        title="The cost of each rule with no poison at all",
        caption=(
            "MA lost against no defense on the same seeds, in runs without any poison. ASR and FTR there are what a model shows "
            "that never saw the trigger."
        ),
        wishes=wishes,
        tables=lambda results: _tables(results, rules),
        plots=lambda results: [],
        claims=tuple(Claim(f"`{rule}` costs at most 2 points of MA", source(rule), _cheap(rule)) for rule in rules if rule != NONE),
        deviations=(
            (
                "The interval of MA lost takes both runs' questions as independent. They are the same ones, so the true interval "
                "is narrower."
            ),
            "What a rule costs in time is in `docs/performance.md`; the runs here shared the machine.",
        ),
        apart=True,
    )


def _tables(results: Results, rules: Sequence[str]) -> list[Table]:
    """One row a rule, those that lose least first, and the untouched base."""
    if not results.runs:
        return [Table("cost", (), [])]
    lost = {rule: loss(results, rule, 0.0) for rule in rules if results.where(rule=rule)}
    rows: list[tuple[Value, ...]] = [("untouched base", *(untouched(results, metric) for metric in METRICS), None)]
    for rule in sorted(lost, key=lambda rule: (rule != NONE, found.value if (found := lost[rule]) else 1.0, rule)):
        gone = None if rule == NONE else lost[rule]
        rows.append((label(rule), *(results.share(metric, rule=rule) for metric in METRICS), gone))
    return [Table("cost", ("rule", "MA", "ASR", "FTR", "MA lost"), rows)]


def _cheap(rule: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        gone = loss(results, rule, 0.0)
        if gone is None:
            return Verdict("undecided", "no run")
        return Verdict(at_most(gone, BAR), f"MA lost {wide(gone, points=True)}")

    return judge
