"""Constrain-and-scale against anomaly detection: what the attacker gives up to look like the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from undertow.config import short_form
from undertow.defenses.aggregation.anomaly import SCORES
from undertow.metrics.detection import detection
from undertow_reproductions.drawing import STYLES, Curve, canvas, curves, export, legend, style
from undertow_reproductions.estimate import Answer, Estimate, Verdict, at_least, at_most, of_numbers
from undertow_reproductions.htb_cases import CONSTRAINED, REPLACEMENT, after, lost
from undertow_reproductions.results import Results, Run
from undertow_reproductions.study import Claim, Lab, Plot, Study, Table, Value, Wish
from undertow_reproductions.wording import told, wide

SCALED = "train-and-scale"
#: The detector of the statements: cosine of the submitted model and the global one.
DETECTOR = "model-cosine"
#: AUC from which an attack counts as caught, up to which as unseen, and the ASR that goes with it; the bars of this library.
CAUGHT, UNSEEN, ASR = 0.95, 0.65, 0.9


@dataclass(frozen=True)
class Variant:
    """An attack with its parameters; ``alpha`` is 1 without a term."""

    attack: str
    term: str
    alpha: float
    kind: str

    @property
    def axes(self) -> dict[str, Any]:
        """What the study calls it."""
        return {"attack": self.attack, "term": self.term, "alpha": self.alpha}

    @property
    def label(self) -> str:
        """Its name as shown."""
        return f"{self.attack}, {self.term}, alpha {self.alpha:g}" if self.term else self.attack


@dataclass(frozen=True)
class Evasion:
    """Attackers that want to pass a detector.

    Attributes:
        setting: index of the profile's setting.
        at: round of the attack, the last.
        federation: changes for all runs.
        groups: which clients are malicious and what it holds, by name.
        variants: the attacks.
    """

    setting: int
    at: int
    federation: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]
    variants: tuple[Variant, ...]

    def of(self, attack: str) -> list[Variant]:
        """Return the variants of one attack."""
        return [variant for variant in self.variants if variant.attack == attack]


def variants(options: str, norm: float, alphas: Mapping[str, tuple[float, ...]]) -> tuple[Variant, ...]:
    """Return plain replacement, train-and-scale and constrain-and-scale.

    Args:
        options: of all attacks, as ``name=value`` separated by colons.
        norm: S of train-and-scale.
        alphas: of constrain-and-scale, by anomaly term.
    """
    return (
        Variant(REPLACEMENT, "", 1.0, f"model-replacement:{options}"),
        Variant(SCALED, "", 1.0, f"train-and-scale:norm={norm:g}:{options}"),
        *(
            Variant(CONSTRAINED, term, alpha, f"constrain-and-scale:alpha={alpha:g}:anomaly={term}:{options}")
            for term, found in alphas.items()
            for alpha in found
        ),
    )


def detected(runs: Sequence[Run], score: str = DETECTOR) -> dict[str, Any] | None:
    """Return the ROC of a score over the rounds of these runs in which someone attacked, as ``detection`` does; or None."""
    rows = [
        (tuple(row["participants"]), tuple(row["attackers"]), tuple(report["scores"]))
        for run in runs
        for row in run.attacked
        for report in row["defenses"]
        if report.get("score") == score
    ]
    return _detection(tuple(rows))


# tables, statements and figures ask for the same, and each has a bootstrap
@cache
def _detection(rows: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]], ...]) -> dict[str, Any] | None:
    told = [{"participants": people, "defenses": [{"scores": scores}]} for people, _, scores in rows]
    return detection(told, [attackers for _, attackers, _ in rows])


def auc(found: dict[str, Any] | None) -> Estimate | None:
    """Return an area under the ROC with its interval over rounds; None without one."""
    if found is None:
        return None
    value = found["auc"]
    alone = found["low"] is None
    low, high = (value, value) if alone else (found["low"], found["high"])
    return Estimate(value, low, high, None, None, 0, found["rounds"])


def _shown(found: Estimate | None) -> str:
    if found is None:
        return "no run"
    return f"{found.value:.2f}" + (" (one seed)" if found.alone else f" ({found.low:.2f} to {found.high:.2f})")


def passes(unseen: Answer, effect: Answer) -> Answer:
    """Return whether an attack passes: it does where both hold, and does not where one does not."""
    if "does not hold" in (unseen, effect):
        return "does not hold"
    return "holds" if unseen == effect == "holds" else "undecided"


def make(one: Evasion) -> Study:
    """Return the study of evasion."""

    groups = list(one.groups)
    return Study(
        id="evasion",
        title="Constrain-and-scale against anomaly detection",
        caption=(
            "Three detectors score every update and leave nobody out. Area under the ROC (attackers against all other clients of "
            "the same rounds, pooled over the seeds; 0.5 is chance) beside ASR and MA right after the round, for alpha and two "
            "anomaly terms, plain replacement, and train-and-scale with a bound about as long as a benign update."
        ),
        wishes=partial(_wishes, one),
        tables=partial(_tables, one),
        plots=partial(_plots, one),
        claims=tuple(
            claim
            for group in groups
            for claim in (
                Claim(f"{group}: the cosine detector catches plain replacement, AUC at least 0.95", "bar of ours", _caught(group)),
                Claim(
                    f"{group}: constrain-and-scale passes it for at least one alpha, AUC at most 0.65 with ASR at least 90 %",
                    "Bagdasaryan et al., abstract; bars of ours",
                    _passed(one, group),
                ),
            )
        ),
        deviations=(
            "AUC is judged by its bootstrap over rounds, one a seed; an alpha counts as passing if AUC and ASR both do. Several "
            "alphas are tried, so that one of them passes more easily by chance than one named before.",
            "Attackers of one group send copies of one vector, each its part of the replacement. `update-cosine` then finds them "
            "less unusual than anybody, and a detector of copies, such as `foolsgold`, would find them at once; none of the three "
            "scores looks for copies.",
            "The federation is not that of the other items: five local epochs on batches of 4 at learning rate 0.02, shares by "
            "Dirichlet 0.3, the attack in round 10, before MA has settled. With the digits config itself benign updates at "
            "convergence are so short that no replacement looks like theirs: tried on seed 0 at rounds 20, 30 and 50 with one "
            "attacker, every alpha that left ASR above 0.8 sent more than all nine benign clients. Tried besides, on seed 0: ten "
            "local epochs with Dirichlet 0.1 (MA has not settled by round 20), 0.2 and 0.9, three attackers, the pixel pattern, "
            "30 and 40 clients.",
            (
                f"S of train-and-scale is {_bound(one)}, about the middle length of the benign updates of seed 0; the column "
                "`length sent` has what was sent."
            ),
            "The paper's own values stand in figures whose numbers could not be read; none are shown.",
        ),
        apart=True,
    )


def _wishes(one: Evasion, lab: Lab, results: Results) -> list[Wish]:
    """Every variant by every group of attackers with every seed; all detectors look on and leave nobody out."""
    detectors = [{"name": "anomaly", "params": {"score": score, "drop": False}} for score in SCORES]
    return [
        Wish(
            {"group": group, **variant.axes, "seed": seed},
            {
                **one.federation,
                **held,
                "attack.kind": variant.kind,
                "attack.rounds": [one.at],
                "federation.rounds": one.at,
                "measure.every": 1,
                "defenses": detectors,
            },
            one.setting,
        )
        for group, held in one.groups.items()
        for variant in one.variants
        for seed in lab.seeds
    ]


def _tables(one: Evasion, results: Results) -> list[Table]:
    """One row for each group and variant, and the ROC of every variant."""
    rows: list[tuple[Value, ...]] = []
    points: list[tuple[Value, ...]] = []
    for group in one.groups:
        for variant in one.variants:
            axes = {"group": group, **variant.axes}
            runs = results.where(**axes)
            if not runs:
                continue
            found = {score: detected(runs, score) for score in SCORES}
            areas = (_shown(auc(found[score])) for score in SCORES)
            name: tuple[Value, ...] = (group, variant.attack, variant.term or "none", variant.alpha)
            shares = (after(results, metric, one.at, **axes) for metric in ("asr", "ma"))
            rows.append((*name, *shares, told(lost(results, one.at, **axes), points=True), *areas, of_numbers(lengths(runs))))
            points += [(*name, score, *point) for score in SCORES for point in (found[score] or {"roc": []})["roc"]]
    names = ("attackers", "attack", "anomaly term", "alpha")
    columns = (*names, "ASR", "MA", "MA lost", *(f"AUC {score}" for score in SCORES), "length sent")
    return [
        Table("evasion", columns, rows),
        Table("evasion-roc", (*names, "score", "false positives", "true positives"), points),
    ]


def _plots(one: Evasion, results: Results) -> list[Plot]:
    """ROC of the cosine detector, and ASR beside AUC against alpha."""
    return [_rocs(one, results), *_swept(one, results)] if results.runs else []


def lengths(runs: list[Run]) -> list[float]:
    """Return the length of what an attacker sent, one a run."""
    return [
        float(report["length"])
        for run in runs
        for row in run.attacked
        for report in row["defenses"]
        if report.get("name") == "attack"
    ]


def _bound(one: Evasion) -> str:
    """Return S of train-and-scale, as its parameters have it."""
    found = [short_form(variant.kind, "attack")["params"]["norm"] for variant in one.of(SCALED)]
    return ", ".join(f"{norm:g}" for norm in found)


def _caught(group: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        axes = {"group": group, "attack": REPLACEMENT}
        found = auc(detected(results.where(**axes)))
        asr = results.share("asr", **axes)
        return Verdict(at_least(found, CAUGHT), f"AUC {_shown(found)}, ASR {wide(asr)}")

    return judge


def _passed(one: Evasion, group: str) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        tried = []
        for variant in one.of(CONSTRAINED):
            axes = {"group": group, **variant.axes}
            found, asr = auc(detected(results.where(**axes))), results.share("asr", **axes)
            if found and asr:
                answer = passes(at_most(found, UNSEEN), at_least(asr, ASR))
                words = (
                    f"{variant.term}, alpha {variant.alpha:g}: AUC {_shown(found)}, ASR {wide(asr)}, MA lost "
                    f"{told(lost(results, one.at, **axes), points=True)}"
                )
                tried.append((answer, min(asr.value / ASR, UNSEEN / max(found.value, 1e-9)), words))
        if not tried:
            return Verdict("undecided", "no run")
        answers = [answer for answer, _, _ in tried]
        whole: Answer = "holds" if "holds" in answers else "undecided" if "undecided" in answers else "does not hold"
        best = max((each for each in tried if each[0] == whole), key=lambda each: each[1])
        return Verdict(whole, f"{answers.count('holds')} of {len(tried)} pass; nearest to both bars {best[2]}")

    return judge


def _rocs(one: Evasion, results: Results) -> Plot:
    picked = [*one.of(REPLACEMENT), *one.of(SCALED), *one.of(CONSTRAINED)[-4:]]
    with style():
        figure, panels = canvas(len(one.groups))
        for axes, group in zip(panels, one.groups, strict=True):
            axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
            for i, variant in enumerate(picked):
                found = detected(results.where(group=group, **variant.axes))
                if found:
                    xs, ys = zip(*found["roc"], strict=True)
                    look = {**STYLES[i % len(STYLES)], "marker": None}
                    axes.plot(xs, ys, drawstyle="steps-post", linewidth=1.5, label=variant.label, **look)
            axes.set_xlabel("benign clients flagged")
            axes.set_ylabel("attackers flagged")
            axes.set_title(group, fontsize=10.5)
        legend(figure, panels, columns=2)
        return export(figure, "evasion-roc", "ROC of the cosine detector against plain and constrained replacement, chance in grey")


def _swept(one: Evasion, results: Results) -> list[Plot]:
    terms = list(dict.fromkeys(variant.term for variant in one.of(CONSTRAINED)))
    with style():
        figure, panels = canvas(len(terms))
        for axes, term in zip(panels, terms, strict=True):
            shown: list[Curve] = []
            for group in one.groups:
                swept = sorted((v for v in one.of(CONSTRAINED) if v.term == term), key=lambda v: v.alpha)
                where = [(v.alpha, {"group": group, **v.axes}) for v in swept]
                asr = [(alpha, found) for alpha, place in where if (found := results.share("asr", **place))]
                area = [(alpha, found) for alpha, place in where if (found := auc(detected(results.where(**place))))]
                shown += [Curve(f"ASR, {group}", asr, STYLES[len(shown)])]
                shown += [Curve(f"AUC, {group}", area, STYLES[len(shown)])]
            curves(axes, shown, "alpha", "ASR, and AUC of the detector")
            axes.set_xscale("log")
            alphas = sorted({v.alpha for v in one.of(CONSTRAINED) if v.term == term})
            axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
            axes.set_xticks([], minor=True)
            axes.set_title(f"anomaly term {term}", fontsize=10.5)
        legend(figure, panels, columns=2)
        return [
            export(figure, "evasion-alpha", "ASR right after the round and area under the ROC of the cosine detector against alpha")
        ]
