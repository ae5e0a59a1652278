"""Two backdoors on images: a stamp that any image can carry, and a feature that some have by nature."""

from __future__ import annotations

from functools import partial

from undertow_reproductions.estimate import Verdict, at_least, at_most, overall
from undertow_reproductions.htb_cases import POISONING, REPLACEMENT, Case, after, ahead, plot_around, rows_around, single
from undertow_reproductions.results import Results
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import told, wide

KINDS = {"semantic": "semantic", "pixel pattern": "pixel"}
#: Points of ASR by which two backdoors may differ and count as similar; ours.
SIMILAR = 0.05


def make(case: Case) -> Study:
    """Return the study of both backdoors on one task of images."""

    return Study(
        id="kinds",
        title="Pixel pattern and semantic backdoor",
        caption=(
            "One replacement in one round with each kind of backdoor: for the semantic one the attacker chooses images that have "
            "a feature, which nobody alters; for the other it stamps images. Data poisoning beside both."
        ),
        wishes=partial(_wishes, case),
        tables=partial(_tables, case),
        plots=partial(_plots, case),
        claims=(
            Claim(
                f"pixel pattern: ASR right after the round at least {100 * case.bar:.0f} %", "bar of ours", partial(_reaches, case)
            ),
            Claim(
                (
                    'right after the round both backdoors are within 5 points of ASR; stated: "The results are similar to semantic '
                    'backdoors"'
                ),
                "Bagdasaryan et al., caption of Fig. 5; bar of ours",
                partial(_similar, case),
            ),
        ),
        deviations=(
            "The semantic backdoor's images are no longer in any benign client's data; stamped images of it are nobody's. Its "
            "success is measured on held-out images of the group, with noise.",
            "Similarity is judged by the bootstrap over seeds alone, paired by seed.",
        ),
        apart=True,
    )


def _axes(kind: str, attack: str) -> dict[str, str]:
    return {"kind": kind, "attack": attack}


def _wishes(case: Case, lab: Lab, results: Results) -> list[Wish]:
    """Both backdoors by both attacks, with every seed."""
    found = []
    for kind, trigger in KINDS.items():
        for attack in (REPLACEMENT, POISONING):
            for seed in lab.seeds:
                one = single(case, attack, seed, attack__trigger=trigger)
                found.append(Wish({**one.axes, "kind": kind}, one.changes, one.setting))
    return found


def _tables(case: Case, results: Results) -> list[Table]:
    """One row a round."""
    rows: list[tuple[Value, ...]] = [
        (kind, attack, *row)
        for kind in KINDS
        for attack in (REPLACEMENT, POISONING)
        for row in rows_around(results, case, **_axes(kind, attack))
    ]
    return [Table("kinds", ("backdoor", "attack", "round", "MA", "ASR", "FTR"), rows)]


def _plots(case: Case, results: Results) -> list[Plot]:
    """ASR and MA per round."""
    named = {f"{kind}, {attack}": _axes(kind, attack) for kind in KINDS for attack in (REPLACEMENT, POISONING)}
    label = "ASR and MA in the rounds around one attack, with a semantic and with a pixel-pattern backdoor"
    found = plot_around("kinds", label, [(case.name, case, named)], results)
    return [found] if found else []


def _reaches(case: Case, results: Results) -> Verdict:
    found = [after(results, "asr", number, **_axes("pixel pattern", REPLACEMENT)) for number in (case.at, case.at + case.after)]
    return Verdict(at_least(found[0], case.bar), f"ASR {wide(found[0])}; {case.after} rounds later {wide(found[1])}")


def _similar(case: Case, results: Results) -> Verdict:
    gap = ahead(results, case.at, _axes("pixel pattern", REPLACEMENT), _axes("semantic", REPLACEMENT))
    if gap is None or gap.alone:
        return Verdict("undecided", told(gap, points=True))
    answer = overall([at_most(gap, SIMILAR), at_least(gap, -SIMILAR)])
    last = ahead(results, case.at + case.after, _axes("pixel pattern", REPLACEMENT), _axes("semantic", REPLACEMENT))
    words = (
        f"pixel pattern {told(gap, points=True)} against semantic right after, {told(last, points=True)} {case.after} rounds later"
    )
    return Verdict(answer, words)
