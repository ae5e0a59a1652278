"""The paper's defenses against three ways to send a backdoored model; and what secure aggregation leaves of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from undertow.config import Defense, Federation
from undertow.core.errors import UserError
from undertow.core.registry import defense_list
from undertow.defenses.composition import check_sums
from undertow.defenses.making import make_defenses
from undertow_reproductions.defense_rules import NONE
from undertow_reproductions.drawing import canvas_for_rows, export, heatmap, style
from undertow_reproductions.estimate import Verdict, at_most, of_numbers, overall
from undertow_reproductions.htb_cases import after, lost
from undertow_reproductions.results import Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import told, wide

#: ASR right after the attack up to which a defense keeps the backdoor out; ours.
BAR = 0.05
#: Rounds after the attack at which it is looked at again.
LATER = 5


@dataclass(frozen=True)
class Defended:
    """Attacks and defenses on one task.

    Attributes:
        setting: index of the profile's setting.
        at: round of the attack.
        held: which clients are malicious and what it holds.
        attacks: ``attack.kind`` by name; an empty one is no attack at all.
        defenses: in the short form of ``undertow sweep``, by name; ``none`` first.
    """

    setting: int
    at: int
    held: Mapping[str, Any]
    attacks: Mapping[str, str]
    defenses: Mapping[str, str]


def refusal(defense: str) -> str:
    """Return what a run with secure aggregation says to a defense; empty where it takes it."""
    found = make_defenses([Defense(**part) for part in defense_list(defense)])
    try:
        check_sums(found, Federation(secure_aggregation=True))  # type: ignore[call-arg]
    except UserError as error:
        return str(error)
    return ""


def make(one: Defended) -> Study:
    """Return the study of these defenses."""

    return Study(
        id="defended",
        title="Defenses against model replacement",
        caption=(
            "One attack in one round on digits: plain replacement, constrain-and-scale, and train-and-scale within the bound of "
            "norm clipping, under norm clipping, client-level differential privacy, Krum and anomaly detection. ASR and MA right "
            "after the round and five later."
        ),
        wishes=partial(_wishes, one),
        tables=partial(_tables, one),
        plots=partial(_plots, one),
        claims=tuple(
            Claim(
                f"{name} keeps ASR at or below 5 % right after every attack and five rounds later", "bar of ours", _keeps(one, name)
            )
            for name in one.defenses
        ),
        deviations=(
            "Client-level differential privacy: updates clipped to the bound, Gaussian noise on their mean. Epsilon counts every "
            "round and no luck in who is sampled, at delta 1e-5; with noise this small it protects nobody's data, which is what "
            "it costs to keep the model useful.",
            "Bound and noise were set once, on seed 0; the paper's stand in a figure whose values could not be read.",
            "The row `no defense` is also what secure aggregation gives: the server sees the sum alone and adds it up as ever. It "
            "can still put noise on the sum and look at the new global model; what looks at single updates is refused, and the "
            "table has the lines.",
        ),
        apart=True,
    )


def _wishes(one: Defended, lab: Lab, results: Results) -> list[Wish]:
    """Every attack under every defense, and no attack, with every seed; no defense under secure aggregation too."""
    return [
        Wish(
            {"attack": attack, "defense": name, "seed": seed},
            {
                **one.held,
                "attack.kind": kind,
                "attack.rounds": [one.at],
                "federation.rounds": one.at + LATER,
                "measure.every": 1,
                "defenses": defense_list(short),
            },
            one.setting,
        )
        for attack, kind in one.attacks.items()
        for name, short in one.defenses.items()
        for seed in lab.seeds
    ]


def _tables(one: Defended, results: Results) -> list[Table]:
    """One row for each attack and defense; and what secure aggregation refuses."""
    rows: list[tuple[Value, ...]] = []
    for attack in one.attacks:
        for name in one.defenses:
            axes = {"attack": attack, "defense": name}
            if results.where(**axes):
                shares = (after(results, metric, t, **axes) for t in (one.at, one.at + LATER) for metric in ("asr", "ma"))
                rows.append((attack, name, *shares, told(lost(results, one.at, **axes), points=True), _epsilon(results, **axes)))
    parts = (f"{metric} {when}" for when in ("right after", "five rounds later") for metric in ("ASR", "MA"))
    sums: list[tuple[Value, ...]] = []
    for name, short in one.defenses.items() if rows else ():
        if short != NONE:
            said = refusal(short)
            sums.append((name, "refused" if said else "taken", said or "it needs the sum alone"))
    return [
        Table("defended", ("attack", "defense", *parts, "MA lost in the round", "epsilon at the end"), rows),
        Table("secure-aggregation", ("defense", "under secure aggregation", "why"), sums),
    ]


def _plots(one: Defended, results: Results) -> list[Plot]:
    """ASR right after the attack and five rounds later."""
    if not results.runs:
        return []
    names, attacks = list(one.defenses), list(one.attacks)
    found = []
    for number, when in ((one.at, "right after the attack"), (one.at + LATER, "five rounds later")):
        shares = [[after(results, "asr", number, attack=attack, defense=name) for attack in attacks] for name in names]
        with style():
            figure, axes = canvas_for_rows(len(names), 2 * len(attacks))
            values = [[None if share is None else share.value for share in row] for row in shares]
            heatmap(figure, axes, values, names, attacks, best=0.0, name="ASR")
            axes.set_title(when, fontsize=10.5)
            label = f"ASR in percent {when} for each defense and attack; dark is good"
            found.append(export(figure, f"defended-{number - one.at}", label))
    return found


def _epsilon(results: Results, **axes: Any) -> Value:
    """Return the mean epsilon after the last round; None where a defense has no account."""
    told_by = [report["epsilon"] for run in results.where(**axes) for report in run.reports if "epsilon" in report]
    found = of_numbers([float(value) for value in told_by])
    return None if found is None else found.value


def _keeps(one: Defended, name: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        answers, words = [], []
        for attack in one.attacks:
            now, later = (after(results, "asr", t, attack=attack, defense=name) for t in (one.at, one.at + LATER))
            if now is not None or later is not None:
                answers += [at_most(now, BAR), at_most(later, BAR)]
                words.append(
                    f"{attack}: ASR {wide(now)}, later {wide(later)}, MA lost "
                    f"{told(lost(results, one.at, attack=attack, defense=name), points=True)}"
                )
        return Verdict(overall(answers), "; ".join(words) or "no run")

    return judge
