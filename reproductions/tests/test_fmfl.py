"""``undertow reproduce fmfl``: what it runs, its formulas on made-up runs, and real ones on the profile for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fabricated_results import run

from undertow.attacks.contract import make_attack
from undertow.core.errors import UserError
from undertow.defenses.making import make_defenses
from undertow_reproductions.fmfl import BOUNDS, FMFL
from undertow_reproductions.fmfl_cases import CLEAN, IID, NOVEL, OPEN, POISONING, SKEWED, cut
from undertow_reproductions.report import reproduce
from undertow_reproductions.reproduce import Options, open_lab
from undertow_reproductions.results import Results, Run
from undertow_reproductions.study import Study

TASKS = ("text", "images")


def laptop(folder: Path, **changed: Any) -> Any:
    return open_lab(FMFL, Options("laptop", folder, **{"seeds": None, "given": [], "data": None, "plan": True, **changed}))


def of(folder: Path, name: str) -> Study:
    return FMFL.studies(laptop(folder))[name]


def answers(study: Study, results: Results) -> dict[str, str]:
    return {claim.text: claim.check(results).answer for claim in study.claims}


# --- wishes ----------------------------------------------------------------------------------------------------------


def test_every_run_is_a_valid_config_whose_attack_and_defenses_can_be_made(tmp_path: Path) -> None:
    lab = laptop(tmp_path)
    seen: dict[str, int] = {}
    for study in FMFL.studies(lab).values():
        for wish in study.wishes(lab, Results()):
            config = lab.config(wish)
            make_attack(config.attack)
            make_defenses(config.defenses, trusted=True)
            assert config.task.kind == "classification"
            assert config.synthetic.generator
            seen[study.id] = seen.get(study.id, 0) + 1
    assert set(seen) == {"defended", "vectors", "bounds"}


def test_items_share_the_runs_that_they_have_in_common(tmp_path: Path) -> None:
    lab = laptop(tmp_path, seeds=1)
    cells = {name: {lab.cell(w).name for w in study.wishes(lab, Results())} for name, study in FMFL.studies(lab).items()}
    assert len(cells["bounds"] & cells["defended"]) >= 2 * 3 * 2, "no attack, data poisoning and synthetic data, open and bounded"


def test_the_classic_attacks_have_clean_synthetic_data_and_the_novel_one_clean_clients(tmp_path: Path) -> None:
    lab = laptop(tmp_path, seeds=1)
    for wish in FMFL.studies(lab)["defended"].wishes(lab, Results()):
        attack = make_attack(lab.config(wish).attack)
        assert (attack is not None and attack.of_server) == (wish.axes["attack"] == NOVEL)


# --- formulas --------------------------------------------------------------------------------------------------------


def test_the_cut_is_of_the_attacks_own_value_by_seed() -> None:
    runs = [run({"defense": OPEN, "seed": s}, asr=asr) for s, asr in enumerate((0.8, 0.4, 0.0))]
    runs += [run({"defense": BOUNDS, "seed": s}, asr=asr) for s, asr in enumerate((0.2, 0.2, 0.1))]
    found = cut(Results(runs), {"defense": OPEN}, {"defense": BOUNDS})
    assert found is not None
    assert (found.value, found.seeds) == (pytest.approx((0.75 + 0.5) / 2), 2), "a seed without any ASR has nothing to cut"
    assert cut(Results(runs[:3]), {"defense": OPEN}, {"defense": BOUNDS}) is None


def made(asr: dict[str, float], bounded: dict[str, float], ma: float = 0.9) -> Results:
    """Three seeds of every attack, open and under bounds, in both ways of dealing."""
    found: list[Run] = []
    for task in TASKS:
        for partition in (IID, SKEWED):
            for attack, value in asr.items():
                for defense, share in ((OPEN, value), (BOUNDS, bounded[attack])):
                    axes = {"task": task, "partition": partition, "attack": attack, "defense": defense}
                    price = ma if defense == BOUNDS else 0.9
                    found += [run({**axes, "seed": s}, asr=share, ma=price) for s in range(3)]
    return Results(found)


def test_bounds_that_cut_enough_hold_and_those_that_cost_too_much_do_not(tmp_path: Path) -> None:
    study, attacks = of(tmp_path, "defended"), {CLEAN: 0.0, NOVEL: 0.95, POISONING: 0.9}
    good = answers(study, made(attacks, {CLEAN: 0.0, NOVEL: 0.02, POISONING: 0.02}))
    assert set(good.values()) == {"holds"}
    weak = answers(study, made(attacks, {CLEAN: 0.0, NOVEL: 0.6, POISONING: 0.02}))
    assert {text for text, answer in weak.items() if answer == "does not hold"} == {
        text for text in weak if f"the ASR of {NOVEL}" in text
    }
    dear = answers(study, made(attacks, {CLEAN: 0.0, NOVEL: 0.02, POISONING: 0.02}, ma=0.8))
    assert all((answer == "does not hold") == ("cut the ASR" in text) for text, answer in dear.items())
    assert set(answers(study, Results()).values()) == {"undecided"}


def test_an_attack_that_reaches_too_little_does_not_hold(tmp_path: Path) -> None:
    found = answers(
        of(tmp_path, "defended"), made({CLEAN: 0.0, NOVEL: 0.5, POISONING: 0.9}, {CLEAN: 0.0, NOVEL: 0.0, POISONING: 0.0})
    )
    assert [answer for text, answer in found.items() if "reaches" in text] == ["does not hold", "does not hold"]


# --- from end to end ---------------------------------------------------------------------------------------------------


def test_the_command_makes_its_document_and_then_nothing(tmp_path: Path) -> None:
    def go() -> dict[str, Any]:
        return reproduce("fmfl", Options("tiny", tmp_path, seeds=1, jobs=1))

    go()
    text = (tmp_path / "fmfl.md").read_text()
    for words in ("synthetic data", "ACC lost", "distillation, two networks", "before round 1"):
        assert words in text
    kept = {path.name for path in (tmp_path / "tables").iterdir()}
    assert {"defended.csv", "vectors.csv", "bounds.csv"} <= kept
    assert "NaN" not in text
    assert go()["plan"]["left"] == 0
    assert (tmp_path / "fmfl.md").read_text() == text


def test_other_profiles_and_files_are_refused(tmp_path: Path) -> None:
    for changed, told in (({"data": tmp_path}, "reads no file"), ({"rules": "krum"}, "--rules")):
        with pytest.raises(UserError, match=told):
            laptop(tmp_path, **changed)
    with pytest.raises(UserError, match="has the profile laptop alone"):
        open_lab(FMFL, Options("gpu", tmp_path, seeds=None, given=[], data=None, plan=True))
