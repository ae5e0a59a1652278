"""Instruction tuning: one malicious replacement against as much poison in the data of benign clients."""

from __future__ import annotations

from functools import partial

from undertow_reproductions.estimate import Verdict
from undertow_reproductions.htb_cases import Case, after, ahead, lost, plot_around, rows_around, single
from undertow_reproductions.htb_single import above_zero
from undertow_reproductions.results import Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import told, wide

#: Poison in every client's data, in the round of the attack and in every round.
ONCE, ALWAYS = "benign clients, one round", "benign clients, every round"


def make(case: Case, ratio: float) -> Study:
    """Return the study on instruction tuning.

    Args:
        case: its attacks.
        ratio: PR with which all clients together hold as many poisoned samples as the attacker of the case alone.
    """
    return Study(
        id="fit",
        title="One malicious model against poison in benign clients' data",
        caption=(
            "Instruction tuning with LoRA, one attack in one round. The attacker's poisoned samples, as many, are dealt to all "
            "clients in its place, who train on them honestly: in that round alone, and in every round, which is the FIT paper's "
            "threat at rho 1."
        ),
        wishes=partial(_wishes, case, ratio),
        tables=partial(_tables, case),
        plots=partial(_plots, case),
        claims=(
            *(_beats(case, name, ONCE, case.at) for name in case.malicious),
            *(_beats(case, name, ALWAYS, case.at + case.after, turned=True) for name in case.malicious),
        ),
        deviations=(
            (
                "No paper reports this. As many means samples: the attacker passes over its own ten to fifteen times in its round, "
                "benign clients once."
            ),
            (
                "The attacker holds clean samples of others beside its own, as the published code gives it a data set of its own; "
                "benign clients do not."
            ),
            "Statements are judged by the bootstrap over seeds alone, paired by seed.",
        ),
        apart=True,
    )


def _wishes(case: Case, ratio: float, lab: Lab, results: Results) -> list[Wish]:
    """The malicious attacks, and poison scattered over all clients, with every seed."""
    found = [single(case, attack, seed) for attack in case.malicious for seed in lab.seeds]
    scattered = {
        "attack.kind": "data-poisoning",
        "attack.client_share": 1.0,
        "attack.poison_ratio": ratio,
        "attack.extra_samples": 0,
    }
    usual = {"federation.rounds": case.at + case.after, "measure.every": 1}
    for name, rounds in ((ONCE, [case.at]), (ALWAYS, [])):
        changes = {**scattered, **usual, "attack.rounds": rounds}
        found += [Wish({"task": case.name, "attack": name, "seed": seed}, changes, case.setting) for seed in lab.seeds]
    return found


def _tables(case: Case, results: Results) -> list[Table]:
    """Where each attack stands right after the round and at the end, and every round."""
    ends: list[tuple[Value, ...]] = []
    rows: list[tuple[Value, ...]] = []
    for name in (*case.malicious, ONCE, ALWAYS):
        if results.where(attack=name):
            shares = [
                after(results, metric, t, attack=name) for t in (case.at, case.at + case.after) for metric in ("asr", "ma", "ftr")
            ]
            ends.append((name, *shares, told(lost(results, case.at, attack=name), points=True)))
            rows += [(name, *row) for row in rows_around(results, case, attack=name)]
    parts = tuple(f"{metric} {when}" for when in ("right after", "at the end") for metric in ("ASR", "MA", "FTR"))
    return [
        Table("fit", ("poison", *parts, "MA lost"), ends),
        Table("fit-rounds", ("poison", "round", "MA", "ASR", "FTR"), rows),
    ]


def _plots(case: Case, results: Results) -> list[Plot]:
    """ASR and MA per round."""
    label = (
        "ASR and MA in the rounds around one attack on instruction tuning, and with as many poisoned samples in benign "
        "clients' data"
    )
    found = plot_around(
        "fit", label, [(case.name, case, {name: {"attack": name} for name in (*case.malicious, ONCE, ALWAYS)})], results
    )
    return [found] if found else []


def _beats(case: Case, name: str, other: str, number: int, turned: bool = False) -> Claim:
    def judge(results: Results) -> Verdict:
        first, second = ({"attack": other}, {"attack": name}) if turned else ({"attack": name}, {"attack": other})
        gap = ahead(results, number, first, second)
        shown = ", ".join(f"{each}: {wide(after(results, 'asr', number, attack=each))}" for each in (name, other))
        return Verdict(above_zero(gap), f"ASR of {shown}; apart by {told(gap, points=True)}")

    if turned:
        text = f"{case.after} rounds later, poison in benign clients' data in every round leaves a higher ASR than one {name}"
    else:
        text = (
            f"one {name} leaves a higher ASR right after its round than as many poisoned samples over benign clients in that round"
        )
    return Claim(text, "question of ours", judge)
