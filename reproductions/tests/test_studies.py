"""Every study's verdicts on results with known shapes: as the paper has them, the opposite, and too few to tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from fabricated_results import RHOS, as_in_the_paper, grid, hump, run, signals

from undertow_reproductions import fig2a, fig2b, fig3, fig4a, fig4b, fig5, hypotheses, table1
from undertow_reproductions.fit import STUDIES
from undertow_reproductions.lab import make_lab
from undertow_reproductions.profiles import get_profile
from undertow_reproductions.results import Results
from undertow_reproductions.study import Study

PRS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1)
TENTHS = (*RHOS, 1.0)


def answers(study: Study, results: Results) -> list[str]:
    return [claim.check(results).answer for claim in study.claims]


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_without_any_run_nothing_is_decided(study: Study) -> None:
    assert set(answers(study, Results())) == {"undecided"}
    assert all(not table.rows for table in study.tables(Results()))
    study.plots(Results())


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_whatever_its_own_runs_say_a_study_reads_them(study: Study, tmp_path: Path) -> None:
    lab = make_lab(get_profile("laptop"), tmp_path, seeds=3, given=[], data=None)
    wishes = study.wishes(lab, Results())
    results = Results([run(wish.axes, asr=0.5, curve=hump(0.2, 7)) for wish in wishes])
    assert all(claim.source and claim.check(results).evidence for claim in study.claims)
    tables = study.tables(results)
    assert any(table.rows for table in tables)
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert all(plot.svg.startswith(b"<?xml") and plot.label for plot in study.plots(results))
    assert [plot.svg for plot in study.plots(results)] == [plot.svg for plot in study.plots(results)]


def pr_curves(asr: float, ma: float = 0.9) -> Results:
    poisoned = [
        run({"method": m, "pr": pr, "seed": s}, asr=asr, ma=ma) for m in ("natural", "badnets") for pr in PRS for s in range(3)
    ]
    return Results([*poisoned, *(run({"method": "none", "pr": 0.0, "seed": s}, ma=0.9) for s in range(3))])


def test_fig2a() -> None:
    assert answers(fig2a.STUDY, pr_curves(0.97)) == ["holds"] * 3
    assert answers(fig2a.STUDY, pr_curves(0.3, ma=0.7)) == ["does not hold"] * 3
    assert answers(fig2a.STUDY, pr_curves(0.7))[:2] == ["undecided", "does not hold"]


def test_fig2b() -> None:
    steep = Results(grid("rho", TENTHS, lambda rho: 0.0 if rho < 0.3 else 0.8, scope="client"))
    assert answers(fig2b.STUDY, steep) == ["holds"] * 3
    late = Results(grid("rho", TENTHS, lambda rho: 0.2 if rho < 0.8 else 0.9, scope="client"))
    assert answers(fig2b.STUDY, late)[:2] == ["does not hold", "does not hold"]
    assert answers(fig2b.STUDY, Results(grid("rho", (0.2, 0.5), lambda rho: 0.5, scope="client")))[:2] == ["undecided"] * 2
    # the other reading of PR does not decide
    assert answers(fig2b.STUDY, Results(grid("rho", TENTHS, lambda rho: 0.9, scope="global")))[:2] == ["undecided"] * 2


def searched(first: dict[float, int]) -> Results:
    return Results(
        [
            run({"rho": rho, "pr": step / 100, "seed": seed}, asr=0.9 if step >= smallest + seed else 0.1)
            for rho, smallest in first.items()
            for step in range(1, 21)
            for seed in range(2)
        ]
    )


def test_fig3() -> None:
    falling = searched({0.2: 15, 0.4: 9, 0.6: 5, 1.0: 2})
    assert answers(fig3.STUDY, falling) == ["holds"]
    (table, tried) = fig3.tables(falling)
    assert [row[2] for row in table.rows] == ["0.15, 0.16", "0.09, 0.10", "0.05, 0.06", "0.02, 0.03"]
    assert len(tried.rows) == 160
    assert answers(fig3.STUDY, searched({0.2: 3, 0.6: 6, 1.0: 9})) == ["does not hold"]
    assert answers(fig3.STUDY, searched({0.2: 30, 1.0: 40})) == ["undecided"]


def defended(filters: float, foundation: float, ma: float = 0.885) -> Results:
    runs = grid("rho", TENTHS, lambda rho: min(1.0, 1.5 * rho), defense="none")
    for arm in ("krum", "freqfed"):
        high = [(rho, filters if rho < 0.5 else 0.9) for rho in (0.1, 0.3, 0.5, 0.7, 0.9)]
        runs += [run({"defense": arm, "rho": rho, "seed": s}, asr=asr, ma=ma) for rho, asr in high for s in range(3)]
    for arm in ("foundationfl-median", "foundationfl-trimmed"):
        runs += grid("rho", (0.1, 0.3, 0.5, 0.7, 0.9), lambda rho: max(0.0, min(1.0, 1.5 * rho) - foundation), defense=arm)
    return Results(runs)


def test_fig5() -> None:
    assert answers(fig5.STUDY, defended(0.0, 0.0)) == ["holds"] * 4
    assert answers(fig5.STUDY, defended(0.5, 0.3, ma=0.7)) == ["does not hold", "holds", "does not hold", "does not hold"]


@pytest.mark.parametrize(("rho", "f"), [(0.1, 1), (0.3, 3), (0.9, 3)])
def test_krums_f_is_the_affected_clients_as_far_as_it_is_legal(rho: float, f: int) -> None:
    assert fig5.defense("krum", rho, 10) == [{"name": "krum", "params": {"f": f}}]
    assert 2 * f + 2 < 10


def table(asr: float, ma: float, other: float = 0.0) -> Results:
    names = {"dataset": "D", "model": "M", "paper_dataset": "TriviaQA", "paper_model": ""}
    poisoned = [
        run({**names, "method": m, "seed": s}, asr=asr - gap, ma=ma)
        for m, gap in (("natural", 0.0), ("badnets", other))
        for s in range(3)
    ]
    return Results([*poisoned, *(run({**names, "method": "none", "seed": s}, ma=0.9) for s in range(3))])


def test_table1() -> None:
    assert answers(table1.STUDY, table(0.97, 0.9)) == ["holds", "holds", "holds", "undecided", "holds"]
    assert answers(table1.STUDY, table(0.7, 0.7, other=0.3)) == [
        "does not hold",
        "does not hold",
        "holds",
        "undecided",
        "does not hold",
    ]
    row = table1.tables(table(0.97, 0.9))[0].rows[0]
    assert row[3:5] == ("47.35 / 45.72", "94.46 / 99.51"), "the paper's values of the same data set, both models"


def test_fig4_and_the_hypotheses_hold_where_bsnr_is_as_in_the_paper() -> None:
    results = as_in_the_paper()
    for study in (fig4a.STUDY, fig4b.STUDY, hypotheses.STUDY):
        assert set(answers(study, results)) == {"holds"}


def test_fig4_and_the_hypotheses_fail_where_it_is_not() -> None:
    # largest at 0.9, with the square, the peak later with rho, no poison as loud as poison
    results = Results(
        [
            *signals(lambda rho: rho**2, lambda rho: round(5 + 10 * rho), p=0.5),
            *signals(lambda rho: 0.3, lambda rho: 5, kind="no poison", p=0.01),
        ]
    )
    assert answers(fig4b.STUDY, results) == ["does not hold", "does not hold"]
    assert answers(hypotheses.STUDY, results) == [
        "does not hold",
        "does not hold",
        "does not hold",
        "holds",
        "does not hold",
        "does not hold",
    ]


def test_a_curve_that_only_decays_has_no_rise() -> None:
    runs = [
        run({"kind": "poison", "rho": rho, "seed": s}, curve=[1 / (t + 1) for t in range(20)]) for rho in RHOS for s in range(3)
    ]
    verdict = fig4a.STUDY.claims[0].check(Results(runs))
    assert verdict.answer == "does not hold"
    assert "0 of 27 curves rise and 27 decay" in verdict.evidence
    # all peaks in the first possible round: no fall with rho
    assert answers(fig4b.STUDY, Results(runs))[1] == "does not hold"


def test_where_seeds_disagree_on_the_place_of_the_peak_it_is_undecided() -> None:
    by_seed = {0: 0.5, 1: 0.9, 2: 0.2}
    runs = [
        run({"kind": "poison", "rho": rho, "seed": s}, curve=[1 - abs(rho - top)] * 5) for rho in RHOS for s, top in by_seed.items()
    ]
    assert hypotheses.STUDY.claims[0].check(Results(runs)).answer == "undecided"
