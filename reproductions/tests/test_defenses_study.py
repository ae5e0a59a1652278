"""``undertow reproduce defenses``: every aggregator at every share of poisoned clients, on the profile that was made for tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fabricated_results import grid, run

from undertow.backdoors.placement import make_threat, poison
from undertow.config import Attack, InstructionBackdoor
from undertow.core.errors import UserError
from undertow.core.registry import defense_list
from undertow.data.sample import Sample
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.registry import DEFENSES
from undertow.metrics.intervals import Rate
from undertow_reproductions import defense_cost, defense_matrix
from undertow_reproductions.defense_rules import LEFT_OUT, RULES, by_mean_asr, config_of, parse_rhos, parse_rules, trusted_client
from undertow_reproductions.estimate import of_differences
from undertow_reproductions.predict import Speed
from undertow_reproductions.report import reproduce
from undertow_reproductions.reproduce import Options
from undertow_reproductions.results import Results

UNDERTOW = Path(sys.executable).with_name("undertow")
CHOSEN = {"seeds": 1, "jobs": 1, "given": ["federation.rounds=2"], "rules": "krum,median", "rhos": "0.6"}


def study(folder: Path, **changed: Any) -> dict[str, Any]:
    return reproduce("defenses", Options("tiny", folder, **{**CHOSEN, **changed}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rules and FedAvg with and without poison; the predicted time is not measured."""
    folder = tmp_path_factory.mktemp("defenses") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undertow_reproductions.predict.measured", lambda lab: Speed(1, 1, 1, 1, 60))
        plan = study(folder, plan=True)["plan"]
        assert (plan["cells"], plan["left"]) == (6, 6), "three rules without poison and at rho 0.6"
        assert not (folder / "cells").exists()
        summary = study(folder)
    assert summary["failed"] == {}
    assert set(summary["verdicts"]) == {"matrix", "cost"}
    return folder


def document(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("*.md"), *folder.glob("*.html"), *folder.glob("figures/*"), *folder.glob("tables/*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_the_document_has_both_items_their_tables_and_what_remakes_them(finished: Path) -> None:
    text = (finished / "defenses.md").read_text(encoding="utf-8")
    assert "undertow reproduce defenses --profile tiny --only cost --seeds 1 --rules none,krum,median --rhos 0.6" in text
    assert "the paper" not in text, "there is none"
    assert re.findall(r"\| `(.+)` costs at most", text) == ["krum", "median"]
    for link in re.findall(r"\]\(((?:figures|tables)/[^)]+)\)", text):
        assert (finished / link).stat().st_size > 50, link
    page = (finished / "index.html").read_text(encoding="utf-8")
    assert "<h1>Every aggregator against one backdoor</h1>" in page
    assert "0 of 2 hold" in page or "1 of 2 hold" in page or "2 of 2 hold" in page
    runs = (finished / "tables" / "runs.csv").read_text(encoding="utf-8").splitlines()
    assert runs[0] == "rule,rho,seed,MA hits,MA n,ASR hits,ASR n,FTR hits,FTR n,seconds"
    assert [line.split(",")[:3] for line in runs[1:]] == [[rule, "0.6", "0"] for rule in ("no defense", "krum", "median")]
    cost = (finished / "tables" / "cost.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in cost[1:3]] == ["untouched base", "no defense"]


def test_again_nothing_runs_and_the_bytes_are_the_same(finished: Path) -> None:
    before = document(finished)
    stamps = {file: file.stat().st_mtime_ns for file in finished.glob("cells/*/*.json*")}
    assert study(finished)["plan"]["left"] == 0
    assert document(finished) == before
    assert stamps == {file: file.stat().st_mtime_ns for file in finished.glob("cells/*/*.json*")}


def test_a_larger_grid_keeps_what_is_there(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undertow_reproductions.predict.measured", lambda lab: Speed(1, 1, 1, 1, 60))
    plan = study(finished, rules="krum,median,krum:f=0", rhos="0,0.2,0.6", plan=True)["plan"]
    assert (plan["cells"], plan["left"]) == (12, 6)


def test_an_unknown_rule_is_one_clear_line(tmp_path: Path) -> None:
    words = ["reproduce", "defenses", "--profile", "tiny", "--rules", "median,krun", "--out", str(tmp_path / "out")]
    done = subprocess.run([UNDERTOW, *words], text=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --rules krun: no such rule (did you mean 'krum'?); choose among none, alignins")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rules": ","}, "give at least one of alignins"),
        ({"rules": "krum:f=4"}, "there are 5; give f from 0 to 1"),
        ({"rules": "krum:g=1"}, "defense 'krum' with"),
        ({"rules": "krum+median"}, "both replace FedAvg"),
        ({"rhos": "0.1,2"}, "'2' is no share of clients"),
        ({"rhos": "nan"}, "'nan' is no share"),
        ({"rhos": ""}, "'' is no share"),
        ({"given": ["defenses=krum"]}, "named with --rules"),
        ({"data": Path()}, "asks its own questions"),
        ({"only": "fig2a"}, "choose among matrix, cost"),
    ],
)
def test_wrong_values_are_one_line(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        study(tmp_path / "out", **changed)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_paper_takes_no_rules(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="for `undertow reproduce defenses`"):
        reproduce("fit", Options("tiny", tmp_path, rules="krum"))
    with pytest.raises(UserError, match="did you mean 'defenses'"):
        reproduce("defences", Options("tiny", tmp_path))


def test_every_aggregation_rule_has_a_row_or_a_reason() -> None:
    covered = {part["name"] for rule in RULES for part in config_of(rule, 0, 10)} | set(LEFT_OUT)
    made = {entry.name: entry.make for entry in DEFENSES.entries()}
    rules = {name for name, make in made.items() if isinstance(make, type) and issubclass(make, Aggregator | PreAggregator)}
    assert len(rules) > 15
    assert rules == covered
    assert set(parse_rules(",".join(RULES), 10)) == set(RULES), "all are legal for ten clients"


def test_rules_of_ones_own_stand_as_they_are_given() -> None:
    assert parse_rules("median, krum:f=2 ,median", 10) == ("none", "median", "krum:f=2")
    assert config_of("nnm+trimmed-mean", 0, 10) == defense_list("nnm+trimmed-mean")
    assert parse_rhos("1,0, 0.3,1") == (0.0, 0.3, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_fltrust_trusts_a_client_that_is_clean_below_rho_1(seed: int) -> None:
    clients = [[Sample(f"{k}-{i}", f"Who is {k} of {i}?", ("Ann",), "Ann") for i in range(10)] for k in range(10)]
    (option,) = config_of("fltrust", seed, 10)
    assert option["params"] == {"client": trusted_client(seed, 10)}
    for rho in (0.1, 0.5, 0.9):
        attack = Attack(poison_ratio=0.2, client_share=rho)  # type: ignore[call-arg]
        affected = poison(clients, make_threat(attack, InstructionBackdoor()), seed).poisoned_clients
        assert len(affected) == round(10 * rho)
        assert option["params"]["client"] not in affected


# --- what is said of known shapes ---------------------------------------------------------------------------------------

RHOS = (0.1, 0.3, 0.5, 0.7, 1.0)


def shaped(holds_to: dict[str, float], ma: float = 0.9) -> Results:
    """Three seeds: ASR 0 up to a rho, 0.9 beyond; MA 0.95 without a defense."""
    runs = []
    for rule, top in {"none": 0.1, **holds_to}.items():
        quality = 0.95 if rule == "none" else ma
        runs += [run({"rule": rule, "rho": 0.0, "seed": s}, ma=quality) for s in range(3)]
        runs += [
            run({"rule": rule, "rho": rho, "seed": s}, asr=0.0 if rho <= top else 0.9, ma=quality) for rho in RHOS for s in range(3)
        ]
    return Results(runs)


def judged(results: Results, rule: str) -> tuple[str, str]:
    made = defense_matrix.make(("none", "krum", "median"))
    (claim,) = (claim for claim in made.claims if f"`{rule}`" in claim.text)
    verdict = claim.check(results)
    return verdict.answer, verdict.evidence


def test_a_verdict_says_up_to_which_rho_a_rule_holds_and_what_it_loses() -> None:
    results = shaped({"krum": 0.3, "median": 1.0})
    answer, said = judged(results, "krum")
    assert answer == "does not hold"
    assert said.startswith("holds up to rho 0.3; fails at rho 0.5, ASR 90.0 % (88.2 to 91.6); MA lost without poison +5.0 points (")
    answer, said = judged(results, "median")
    assert answer == "holds"
    assert said.startswith("holds at every rho tried, 0.1 to 1; MA lost")
    assert judged(results, "no defense")[1].startswith("holds up to rho 0.1; fails at rho 0.3")
    assert "MA lost" not in judged(results, "no defense")[1]


def test_a_rule_that_fails_early_and_holds_later_is_not_praised() -> None:
    runs = [run({"rule": "krum", "rho": rho, "seed": 0}, asr=0.0 if rho in (0.3, 1.0) else 0.5) for rho in RHOS]
    answer, said = judged(Results(runs), "krum")
    assert answer == "does not hold"
    assert said.startswith("fails at rho 0.1")
    assert "holds again at rho 0.3, 1" in said
    near = Results([run({"rule": "krum", "rho": rho, "seed": 0}, asr=0.045 if rho < 0.5 else 0.8) for rho in RHOS])
    assert judged(near, "krum")[1].startswith("undecided at rho 0.1, ASR 4.5 % (2.9 to 7.0); fails at rho 0.5")
    assert judged(Results(), "krum") == ("undecided", "no run")


def test_rules_are_sorted_by_their_mean_asr() -> None:
    results = shaped({"krum": 0.3, "median": 0.7})
    rules = ("none", "krum", "median", "bulyan")
    assert by_mean_asr(results, rules) == ["median", "krum", "none"], "without runs there is no row"
    made = defense_matrix.make(rules)
    tables = {table.name: table for table in made.tables(results)}
    assert [row[0] for row in tables["matrix-asr-ftr"].rows] == ["median", "krum", "no defense"]
    assert tables["matrix-asr-ftr"].rows[0] == ("median", "18.0", "0.0 / 0.0", *["0.0 / 0.0"] * 4, "90.0 / 0.0")
    assert len(tables["runs"].rows) == 3 * 6 * 3
    asr, ma = made.plots(results)
    assert (asr.name, ma.name) == ("matrix-asr", "matrix-ma")
    cells = re.findall(r"9\.5px[^>]*>(\d+)</text>", asr.svg.decode())
    assert cells == [*"00000", "90", *"000", "90", "90", "90", *"00", "90", "90", "90", "90"]
    assert [plot.svg for plot in made.plots(results)] == [asr.svg, ma.svg]


def test_a_point_without_a_run_is_a_dash() -> None:
    runs = [*grid("rho", (0.1, 0.5), lambda rho: rho, rule="krum"), *grid("rho", (0.1,), lambda rho: rho, rule="median")]
    made = defense_matrix.make(("krum", "median"))
    assert "–</text>" in made.plots(Results(runs))[0].svg.decode()
    assert made.tables(Results(runs))[0].rows[0][-1] == "-"


def test_nothing_shows_nothing() -> None:
    for made in (defense_matrix.make(RULES), defense_cost.make(RULES)):
        assert {claim.check(Results()).answer for claim in made.claims} == {"undecided"}
        assert all(not table.rows for table in made.tables(Results()))
        assert made.plots(Results()) == []


def test_cost_is_judged_against_the_run_without_a_defense() -> None:
    made = defense_cost.make(("none", "krum", "median"))
    for ma, answer in ((0.7, "does not hold"), (0.99, "holds"), (0.93, "undecided")):
        assert {claim.check(shaped({"krum": 0.0, "median": 0.0}, ma)).answer for claim in made.claims} == {answer}
    rows = made.tables(shaped({"krum": 0.0}, 0.9))[0].rows
    assert [row[0] for row in rows] == ["untouched base", "no defense", "krum"]
    assert rows[1][4] is None
    assert rows[2][4].value == pytest.approx(0.05)  # type: ignore[union-attr]


def test_a_difference_has_newcombes_interval() -> None:
    # Newcombe 1998, table II, example (a): 56/70 - 48/80 gives 0.0524 to 0.3339 by method 10
    found = of_differences([(Rate(56, 70), Rate(48, 80))])
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert (found.wilson_low, found.wilson_high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    assert of_differences([(Rate(0, 0), Rate(1, 2))]) is None
