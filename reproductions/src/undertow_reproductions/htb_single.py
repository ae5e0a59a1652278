"""A single-shot attack: the backdoor in the rounds around it, beside data poisoning by the same client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from undertow_reproductions.estimate import Answer, Estimate, Verdict, at_least, at_most
from undertow_reproductions.htb_cases import POISONING, SOURCE, Case, after, ahead, lost, plot_around, rows_around, single
from undertow_reproductions.results import Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import told, wide

#: MA that the round of the attack may cost; ours.
LOST = 0.03


def make(cases: Sequence[Case]) -> Study:
    """Return the study of a single shot on these tasks."""

    return Study(
        id="single",
        title="One attack in one round",
        caption=(
            "ASR and MA after each round around the one in which a single malicious client sends its model, and how long the "
            "backdoor lasts; beside it the same client, in the same round and with the same data, trains as all others do."
        ),
        wishes=partial(_wishes, cases),
        tables=partial(_tables, cases),
        plots=partial(_plots, cases),
        claims=tuple(claim for case in cases for attack in case.malicious for claim in _claims(case, attack)),
        deviations=(
            "The paper attacks after 10,000 rounds on CIFAR-10 and 5,000 on words; here the attack comes when MA no longer rises.",
            "`five rounds later` is empty where fewer rounds follow.",
            "MA lost and the distance from data poisoning are judged by their bootstrap over seeds alone, paired by seed: both "
            "are of one run or of the same test questions. With one seed there is no interval, and they are undecided.",
        ),
        apart=True,
    )


def _wishes(cases: Sequence[Case], lab: Lab, results: Results) -> list[Wish]:
    """Every attack on every task with every seed."""
    return [single(case, attack, seed) for case in cases for attack in case.kinds for seed in lab.seeds]


def _tables(cases: Sequence[Case], results: Results) -> list[Table]:
    """One row a round, and the rounds that the statements are about."""
    rows: list[tuple[Value, ...]] = []
    ends: list[tuple[Value, ...]] = []
    for case in cases:
        for attack in case.kinds:
            axes = {"task": case.name, "attack": attack}
            found = rows_around(results, case, **axes)
            rows += [(case.name, attack, *row) for row in found]
            if found:
                last = case.at + case.after
                shares = [after(results, "asr", number, **axes) for number in (case.at, case.at + 5, last)]
                ends.append((case.name, attack, *shares, told(lost(results, case.at, **axes), points=True), last - case.at))
    return [
        Table(
            "single",
            ("task", "attack", "ASR right after", "five rounds later", "at the end", "MA lost", "rounds to the end"),
            ends,
        ),
        Table("single-rounds", ("task", "attack", "round", "MA", "ASR", "FTR"), rows),
    ]


def _plots(cases: Sequence[Case], results: Results) -> list[Plot]:
    """One figure a task."""
    found = [
        plot_around(
            f"single-{case.name.lower().replace(' ', '-')}",
            f"ASR and MA in the rounds around one attack on {case.name}, round 0 being the one it took place in",
            [(case.name, case, {attack: {"task": case.name, "attack": attack} for attack in case.kinds})],
            results,
        )
        for case in cases
    ]
    return [plot for plot in found if plot]


def _claims(case: Case, attack: str) -> list[Claim]:
    where = f"{case.name}, {attack}:"
    bar = f"{100 * case.bar:.0f} %"
    return [
        Claim(
            f'{where} ASR right after the round at least {bar}; stated: "immediately reach 100% accuracy"',
            f"{SOURCE}; bar of ours",
            _reaches(case, attack),
        ),
        Claim(f"{where} the round costs at most 3 points of MA", "bar of ours", _keeps(case, attack)),
        Claim(f"{where} data poisoning by the same client stays below", SOURCE, _beats(case, attack)),
    ]


def _reaches(case: Case, attack: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        axes = {"task": case.name, "attack": attack}
        now, later = (after(results, "asr", number, **axes) for number in (case.at, case.at + case.after))
        return Verdict(at_least(now, case.bar), f"ASR {wide(now)}; {case.after} rounds later {wide(later)}")

    return judge


def _keeps(case: Case, attack: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        gone = lost(results, case.at, task=case.name, attack=attack)
        return Verdict(at_most(gone, LOST), f"MA lost {told(gone, points=True)}")

    return judge


def _beats(case: Case, attack: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        gap = ahead(results, case.at, {"task": case.name, "attack": attack}, {"task": case.name, "attack": POISONING})
        other = after(results, "asr", case.at, task=case.name, attack=POISONING)
        return Verdict(above_zero(gap), f"data poisoning reaches {wide(other)}, {told(gap, points=True)} lower")

    return judge


def above_zero(gap: Estimate | None) -> Answer:
    """Judge ``gap > 0`` by its interval over seeds."""
    if gap is None or gap.alone:
        return "undecided"
    return "holds" if gap.least > 0 else "does not hold" if gap.most <= 0 else "undecided"
