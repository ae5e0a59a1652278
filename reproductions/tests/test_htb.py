"""``undertow reproduce htb``: model replacement and its variants; formulas on made-up runs, real runs on the profile for tests."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated_results import rate

from undertow.attacks.contract import make_attack
from undertow.config import Defense
from undertow.core.errors import UserError
from undertow.core.registry import defense_list
from undertow.defenses.aggregation.anomaly import SCORES
from undertow.defenses.making import make_defenses
from undertow_reproductions import htb_defended, htb_evasion, htb_repeated
from undertow_reproductions.estimate import of_numbers
from undertow_reproductions.htb import HTB
from undertow_reproductions.htb_cases import CONSTRAINED, POISONING, REPLACEMENT, ahead, around, lost, single
from undertow_reproductions.htb_evasion import SCALED, auc, detected, passes
from undertow_reproductions.htb_profiles import PLANS
from undertow_reproductions.htb_single import above_zero
from undertow_reproductions.predict import Speed
from undertow_reproductions.report import reproduce
from undertow_reproductions.reproduce import Options, open_lab
from undertow_reproductions.results import Results, Run
from undertow_reproductions.study import Study

LAPTOP = PLANS["laptop"]
DIGITS, WORDS, FIT = LAPTOP.cases
SEEDS = range(3)


def laptop(folder: Path, **changed: Any) -> Any:
    return open_lab(HTB, Options("laptop", folder, **{"seeds": None, "given": [], "data": None, "plan": True, **changed}))


def course(axes: dict[str, Any], values: dict[int, tuple[float, float]], **more: Any) -> Run:
    """A run with (MA, ASR) by round."""
    told = {number: {"ma": rate(ma), "asr": rate(asr), "ftr": rate(0.0)} for number, (ma, asr) in values.items()}
    last = told[max(told)]
    return Run(axes, last["ma"], last["asr"], last["ftr"], (), 1.0, course=told, **more)


def answers(study: Study, results: Results) -> dict[str, str]:
    return {claim.text: claim.check(results).answer for claim in study.claims}


def of(folder: Path, name: str) -> Study:
    return HTB.studies(laptop(folder))[name]


# --- wishes ----------------------------------------------------------------------------------------------------------


def test_every_run_is_a_valid_config_whose_attack_and_defenses_can_be_made(tmp_path: Path) -> None:
    lab = laptop(tmp_path)
    seen: dict[str, int] = {}
    for study in HTB.studies(lab).values():
        for wish in study.wishes(lab, Results()):
            config = lab.config(wish)
            assert make_attack(config.attack) is not None
            make_defenses(config.defenses)
            first = min(config.attack.rounds, default=config.attack.start)
            assert 1 <= first <= config.federation.rounds
            assert (config.measure.every, config.training.threads) == (1, 1)
            assert not config.measure.bsnr.counterfactuals
            seen[study.id] = seen.get(study.id, 0) + 1
    assert set(seen) == {"single", "repeated", "evasion", "kinds", "defended", "fit"}
    assert seen["evasion"] == 10 * len(LAPTOP.evasion.groups) * len(LAPTOP.evasion.variants), "ten seeds where others have three"


def test_items_share_the_runs_that_they_have_in_common(tmp_path: Path) -> None:
    lab = laptop(tmp_path)
    studies = HTB.studies(lab)
    cells = {name: {lab.cell(wish).name for wish in study.wishes(lab, Results())} for name, study in studies.items()}
    assert len(cells["kinds"] & cells["single"]) == 2 * 3, "the semantic backdoor of both"
    assert len(cells["fit"] & cells["single"]) == 2 * 3


def test_the_number_of_seeds_that_is_asked_for_holds_for_all_items(tmp_path: Path) -> None:
    lab = laptop(tmp_path, seeds=1)
    for study in HTB.studies(lab).values():
        assert {wish.axes["seed"] for wish in study.wishes(lab, Results())} == {0}


def test_data_poisoning_has_the_same_participants_round_and_samples(tmp_path: Path) -> None:
    lab = laptop(tmp_path)
    for case in LAPTOP.cases:
        ours, theirs = (lab.config(single(case, attack, 0)).values() for attack in (REPLACEMENT, POISONING))
        assert theirs["attack"].pop("kind") == "data-poisoning"
        assert ours["attack"].pop("kind").startswith("model-replacement")
        assert ours == theirs


def test_scattered_poison_is_as_much_as_the_attackers(tmp_path: Path) -> None:
    lab = laptop(tmp_path)
    wishes = HTB.studies(lab)["fit"].wishes(lab, Results())
    config = lab.config(next(wish for wish in wishes if wish.axes["attack"] == "benign clients, one round"))
    each = config.data.train // config.federation.clients
    everyone = config.federation.clients * int(config.attack.poison_ratio * each)
    attacker = lab.config(single(FIT, REPLACEMENT, 0)).attack
    assert round(attacker.client_share * config.federation.clients) == 1
    assert everyone == int(attacker.poison_ratio * (each + attacker.extra_samples)) == 150


# --- formulas --------------------------------------------------------------------------------------------------------


def test_ma_lost_and_the_lead_are_paired_by_seed() -> None:
    runs = [course({"attack": "a", "seed": s}, {4: (0.9 + s / 20, 0.0), 5: (0.85 + s / 20, 0.5 + s / 10)}) for s in SEEDS]
    runs += [course({"attack": "b", "seed": s}, {5: (0.9, 0.4 + s / 10)}) for s in range(4)]
    results = Results(runs)
    gone = lost(results, 5, attack="a")
    assert gone is not None
    assert (gone.value, gone.low, gone.high, gone.seeds) == (pytest.approx(0.05), pytest.approx(0.05), pytest.approx(0.05), 3)
    assert lost(results, 5, attack="b") is None, "round 4 was not measured"
    gap = ahead(results, 5, {"attack": "a"}, {"attack": "b"})
    assert gap is not None
    assert (gap.value, gap.seeds) == (pytest.approx(0.1), 3)
    points = around(results, "asr", replace(DIGITS, at=5, before=2, after=3), attack="a")
    assert [(place, round(share.value, 6)) for place, share in points] == [(-1.0, 0.0), (0.0, 0.6)]


def test_a_lead_needs_an_interval_above_zero() -> None:
    assert [above_zero(of_numbers(values)) for values in ([0.1, 0.2], [0.0, 0.0], [-0.1, -0.2], [-0.1, 0.2], [0.3])] == [
        "holds",
        "does not hold",
        "does not hold",
        "undecided",
        "undecided",
    ]
    assert above_zero(None) == "undecided"


def test_the_mean_of_a_repeated_attack_is_over_its_own_rounds() -> None:
    one = htb_repeated.Repeated(replace(DIGITS, at=3), 2, (0.1,))
    axes = {"task": "digits", "attack": REPLACEMENT, "share": 0.1}
    runs = [course({**axes, "seed": s}, {2: (0.9, 1.0), 3: (0.9, 0.2), 4: (0.9, 0.6), 5: (0.9, 1.0)}) for s in SEEDS]
    found = htb_repeated.mean(Results(runs), one, REPLACEMENT, 0.1)
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert htb_repeated.gap(Results(runs), one, 0.1) is None


def flagged(attackers: list[float], honest: list[float], **axes: Any) -> Run:
    """A run of one attacked round in which detectors gave these scores."""
    people = list(range(10, 10 + len(attackers) + len(honest)))
    reports = [{"name": "anomaly", "score": score, "scores": [*honest, *attackers]} for score in SCORES]
    reports[2] = {**reports[2], "scores": [0.0] * len(people)}
    row = {
        "round": 25,
        "participants": people,
        "attackers": people[len(honest) :],
        "defenses": [{"name": "attack", "length": 2.0, "gamma": 10.0}, *reports],
    }
    return course(axes, {24: (0.95, 0.0), 25: (0.94, axes.pop("asr", 1.0))}, attacked=(row,), reports=tuple(row["defenses"]))


def test_the_area_is_that_of_the_named_score_over_all_rounds() -> None:
    runs = [flagged([3.0], [1.0, 2.0], seed=0), flagged([1.5], [1.0, 2.0], seed=1)]
    found = auc(detected(runs))
    assert found is not None
    # 3.0 is above all four honest scores, 1.5 above two of them
    assert (found.value, found.seeds) == (pytest.approx(6 / 8), 2)
    assert detected(runs, "length") is not None
    assert auc(detected(runs, "length")).value == pytest.approx(0.5)  # type: ignore[union-attr]
    assert auc(detected([])) is None
    alone = auc(detected(runs[:1]))
    assert alone is not None
    assert alone.alone
    assert htb_evasion.lengths(runs) == [2.0, 2.0]


def test_an_attack_passes_if_it_is_unseen_and_works() -> None:
    assert passes("holds", "holds") == "holds"
    assert passes("undecided", "holds") == passes("holds", "undecided") == "undecided"
    assert passes("undecided", "does not hold") == passes("does not hold", "holds") == "does not hold"


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", ["single", "repeated", "evasion", "kinds", "defended", "fit"])
def test_without_any_run_nothing_is_decided(item: str, tmp_path: Path) -> None:
    study = of(tmp_path, item)
    assert set(answers(study, Results()).values()) == {"undecided"}
    assert all(not table.rows for table in study.tables(Results()))
    assert study.plots(Results()) == []


def results_like(study: Study, folder: Path) -> Results:
    runs = []
    for wish in study.wishes(laptop(folder), Results()):
        first = min(wish.changes["attack.rounds"], default=wish.changes.get("attack.start", 1))
        total = wish.changes["federation.rounds"]
        weak = wish.axes["attack"] in (POISONING, "benign clients, one round")
        always = wish.axes["attack"] == "benign clients, every round"

        def asr(t: int, first: int = first, weak: bool = weak, always: bool = always) -> float:
            if always:
                return 0.95
            return 0.0 if t < first else 0.1 if weak else max(0.0, 1 - 0.02 * (t - first))

        values = {t: (0.95 - 0.01 * (t >= first), asr(t)) for t in range(max(0, first - 6), total + 1)}
        runs.append(course(wish.axes, values))
    return Results(runs)


@pytest.mark.parametrize("item", ["single", "repeated", "kinds", "fit"])
def test_attacks_as_the_paper_has_them_are_confirmed(item: str, tmp_path: Path) -> None:
    study = of(tmp_path, item)
    results = results_like(study, tmp_path)
    assert set(answers(study, results).values()) == {"holds"}
    tables = study.tables(results)
    assert all(table.rows and len(row) == len(table.columns) for table in tables for row in table.rows)
    drawn = study.plots(results)
    assert drawn
    assert all(plot.svg.startswith(b"<?xml") and plot.label for plot in drawn)
    assert item != "fit" or [plot.svg for plot in drawn] == [plot.svg for plot in study.plots(results)]


def test_a_single_shot_that_fails_or_costs_too_much_is_refuted(tmp_path: Path) -> None:
    study = of(tmp_path, "single")
    runs = []
    for case in LAPTOP.cases:
        for attack in case.kinds:
            for seed in SEEDS:
                axes = {"task": case.name, "attack": attack, "seed": seed}
                runs.append(course(axes, {case.at - 1: (0.95, 0.0), case.at: (0.85, 0.3), case.at + case.after: (0.9, 0.1)}))
    assert set(answers(study, Results(runs)).values()) == {"does not hold"}


def evasion_results(plain: float, hidden: float, asr: float) -> Results:
    """Attackers' cosine scores among benign ones at 1 to 9, for plain attacks and constrained ones of one alpha; the others are
    seen."""
    runs = []
    for group in LAPTOP.evasion.groups:
        for variant in LAPTOP.evasion.variants:
            best = variant.attack == CONSTRAINED and variant == LAPTOP.evasion.of(CONSTRAINED)[-1]
            score = hidden if best else plain
            for seed in range(10):
                honest = [i + seed / 100 for i in range(1, 10)]
                runs.append(flagged([score], honest, group=group, **variant.axes, seed=seed, asr=asr if best else 1.0))
    return Results(runs)


@pytest.mark.parametrize(
    ("plain", "hidden", "asr", "caught", "passed"),
    [
        (20.0, 4.5, 0.99, "holds", "holds"),
        (20.0, 4.5, 0.5, "holds", "does not hold"),
        (20.0, 8.5, 0.99, "holds", "does not hold"),
        (5.5, 20.0, 0.99, "does not hold", "holds"),
    ],
)
def test_evasion_needs_a_detector_that_works_and_an_attack_that_does(
    plain: float, hidden: float, asr: float, caught: str, passed: str, tmp_path: Path
) -> None:
    study = of(tmp_path, "evasion")
    results = evasion_results(plain, hidden, asr)
    found = answers(study, results)
    assert {answer for text, answer in found.items() if "catches plain" in text} == {caught}
    assert {answer for text, answer in found.items() if "passes it" in text} == {passed}
    first, roc = study.tables(results)
    assert len(first.rows) == len(LAPTOP.evasion.groups) * len(LAPTOP.evasion.variants)
    assert all(len(row) == len(table.columns) for table in (first, roc) for row in table.rows)
    assert {plot.name for plot in study.plots(results)} == {"evasion-roc", "evasion-alpha"}


def test_defenses_are_judged_by_every_attack_and_both_rounds(tmp_path: Path) -> None:
    one = LAPTOP.defended
    study = htb_defended.make(one)
    runs = []
    for attack in one.attacks:
        for name in one.defenses:
            for seed in SEEDS:
                kept = name == "krum" or (name == "norm clipping" and attack != SCALED)
                later = 0.0 if name == "krum" else 0.5
                values = {one.at - 1: (0.95, 0.0), one.at: (0.94, 0.0 if kept else 1.0), one.at + 5: (0.94, later)}
                report = ({"name": "weak-dp", "epsilon": 100.0},) if "DP" in name else ()
                runs.append(course({"attack": attack, "defense": name, "seed": seed}, values, reports=report))
    results = Results(runs)
    found = answers(study, results)
    assert [text.split(" keeps")[0] for text, answer in found.items() if answer == "holds"] == ["krum"]
    main, sums = study.tables(results)
    assert [row[-1] for row in main.rows if row[1] == "client-level DP"] == [100.0] * len(one.attacks)
    assert {str(row[0]): row[1] for row in sums.rows}["krum"] == "refused"
    assert len(study.plots(results)) == 2


@pytest.mark.parametrize("short", ["krum:f=1", "anomaly", "weak-dp:bound=1"])
def test_secure_aggregation_says_what_it_refuses_in_one_line(short: str) -> None:
    said = htb_defended.refusal(short)
    assert said.startswith(f"defense {defense_list(short)[0]['name']} looks at single updates")
    assert "\n" not in said
    assert htb_defended.refusal("none") == ""


def test_train_and_scale_keeps_within_the_bound_of_norm_clipping() -> None:
    clip = make_defenses([Defense(**part) for part in defense_list(LAPTOP.defended.defenses["norm clipping"])])[0][1]
    assert f"norm={clip.bound:g}" in LAPTOP.defended.attacks[SCALED]  # type: ignore[attr-defined]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two items, run for real; the predicted time is not measured."""
    folder = tmp_path_factory.mktemp("htb") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undertow_reproductions.predict.measured", lambda lab, setting=0: Speed(1, 1, 1, 1, 60))
        summary = reproduce("htb", Options("tiny", folder, only="evasion,defended,single", seeds=1, jobs=1))
    assert summary["failed"] == {}
    assert set(summary["verdicts"]) == {"single", "evasion", "defended"}
    return folder


def document(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("*.md"), *folder.glob("*.html"), *folder.glob("figures/*"), *folder.glob("tables/*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_the_document_has_its_items_tables_and_figures(finished: Path) -> None:
    text = (finished / "htb.md").read_text(encoding="utf-8")
    for item in ("single", "evasion", "defended"):
        assert f"undertow reproduce htb --profile tiny --only {item} --seeds 1" in text
    for link in re.findall(r"\]\(((?:figures|tables)/[^)]+)\)", text):
        assert (finished / link).stat().st_size > 40, link
    assert "network cnn" in text
    assert "which federation.secure_aggregation shows the server the sum alone" in text
    assert str(finished) not in text
    roc = (finished / "tables" / "evasion-roc.csv").read_text(encoding="utf-8").splitlines()
    assert {line.split(",")[4] for line in roc[1:]} == set(SCORES)
    tasks = {line.split(",")[0] for line in (finished / "tables" / "single.csv").read_text(encoding="utf-8").splitlines()[1:]}
    assert tasks == {"digits", "words", "instruction tuning"}


def test_again_nothing_runs_and_the_bytes_are_the_same(finished: Path) -> None:
    before = document(finished)
    assert reproduce("htb", Options("tiny", finished, only="evasion,defended,single", seeds=1, jobs=1))["plan"]["left"] == 0
    assert document(finished) == before


def test_a_single_shot_is_timed_in_a_run_of_three_rounds(tmp_path: Path) -> None:
    plan = reproduce("htb", Options("tiny", tmp_path, only="kinds", seeds=1, jobs=1, plan=True))["plan"]
    assert plan["cells"] == plan["left"] == 4
    assert plan["seconds"] > 0
    assert plan["basis"].startswith("measured")


def test_the_time_of_each_task_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(lab: Any, setting: int = 0) -> Speed:
        asked.append(setting)
        return Speed(0.0, 0.0, (1.0, 10.0, 100.0)[setting], 0.0, lab.main.data.train * lab.main.training.local_epochs)

    monkeypatch.setattr("undertow_reproductions.predict.measured", measured)
    plan = reproduce("htb", Options("tiny", tmp_path, only="kinds", seeds=1, jobs=1, plan=True))["plan"]
    assert (asked, plan["cells"], plan["seconds"]) == ([0], 4, 4 * 3 * 1.0)
    asked.clear()
    plan = reproduce("htb", Options("tiny", tmp_path, only="single", seeds=1, jobs=1, plan=True))["plan"]
    assert sorted(asked) == [0, 1, 2]
    assert plan["seconds"] > 2 * 3 * (1.0 + 10.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"profile": "paper"}, "has the profile laptop alone"),
        ({"profile": "gpu"}, "data.name=cifar10"),
        ({"profile": "laptpo"}, "did you mean 'laptop'?"),
        ({"rules": "krum"}, "--rules and --rhos are for"),
        ({"data": Path()}, "reads no file"),
        ({"only": "fig2a"}, "choose among single, repeated, evasion, kinds, defended, fit"),
    ],
)
def test_wrong_values_are_one_line(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    options = {"profile": "tiny", **changed}
    with pytest.raises(UserError, match=re.escape(said)) as error:
        reproduce("htb", Options(options.pop("profile"), tmp_path / "out", **options))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
