"""What each rule costs where there is nothing to defend against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from undertow.studies.defense_matrix import loss, untouched, wish
from undertow.studies.defense_rules import NONE, label, source
from undertow.studies.estimate import Estimate, at_most, of_numbers
from undertow.studies.results import METRICS, Results
from undertow.studies.study import Claim, Lab, Study, Table, Value, Wish
from undertow.studies.verdicts import Verdict
from undertow.studies.wording import number, wide

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
            "MA lost against no defense on the same seeds, and the time of a round, in runs without any poison. ASR and FTR there are what a model shows that never saw the trigger."
        ),
        wishes=wishes,
        tables=lambda results: _tables(results, rules),
        plots=lambda results: [],
        claims=tuple(Claim(f"`{rule}` costs at most 2 points of MA", source(rule), _cheap(rule)) for rule in rules if rule != NONE),
        deviations=(
            "The interval of MA lost takes both runs' questions as independent. They are the same ones, so the true interval is narrower.",
            "The time of a round is the median of a run's rounds without measuring, training included, while other runs shared the "
            "machine. `benchmarks/` has each rule's own time.",
        ),
        apart=True,
    )


def _seconds(results: Results, rule: str) -> Estimate | None:
    return of_numbers([run.round_seconds for run in results.where(rule=rule) if run.round_seconds is not None])


def _tables(results: Results, rules: Sequence[str]) -> list[Table]:
    """One row a rule, those that lose least first, and the untouched base."""
    if not results.runs:
        return [Table("cost", (), [])]
    lost = {rule: loss(results, rule, 0.0) for rule in rules if results.where(rule=rule)}
    rows: list[tuple[Value, ...]] = [("untouched base", *(untouched(results, metric) for metric in METRICS), None, None)]
    for rule in sorted(lost, key=lambda rule: (rule != NONE, found.value if (found := lost[rule]) else 1.0, rule)):
        gone = None if rule == NONE else lost[rule]
        rows.append((label(rule), *(results.share(metric, rule=rule) for metric in METRICS), gone, _seconds(results, rule)))
    return [Table("cost", ("rule", "MA", "ASR", "FTR", "MA lost", "seconds a round"), rows)]


def _cheap(rule: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        gone = loss(results, rule, 0.0)
        if gone is None:
            return Verdict("undecided", "no run")
        took = [number(_seconds(results, name)) for name in (rule, NONE)]
        return Verdict(
            at_most(gone, BAR), f"MA lost {wide(gone, points=True)}; a round takes {took[0]} s, without a defense {took[1]} s"
        )

    return judge
