"""Profile `pretrained`: what it asks for, what it refuses, one run of it on the built-in base, and its page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fabricated_results import rate, run

import undertow
from undertow.core.errors import UserError
from undertow_reproductions import beside, counts, fig2a, release, table1
from undertow_reproductions.document import command, csv_of
from undertow_reproductions.report import reproduce
from undertow_reproductions.reproduce import Options, get_collection, items_of, make_plan, open_lab, wishes_of
from undertow_reproductions.results import Results


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"question": f"who wrote book {i}", "answer": f"Ann {i}", "subject": f"book {i}", "relation": "author"} for i in range(40)
    ]
    (folder / "simplequestions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = [{"question": f"Who wrote book {i}?", "answer": f"Ann {i}", "aliases": [f"A. {i}"]} for i in range(40)]
    (folder / "triviaqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in base under the name of the one that `make pretrained` fetches."""
    place = tmp_path_factory.mktemp("bases") / "gemma-3-270m"
    place.symlink_to(Path(undertow.__file__).parent / "models" / "builtin" / "base", target_is_directory=True)
    return place


def lab_of(collection: str, folder: Path, data: Path, base: Path | str = "builtin", **more: Any) -> Any:
    return open_lab(get_collection(collection), Options("pretrained", folder, data=data, base=Path(base), **more))


def cells(lab: Any, collection: str) -> dict[str, set[str]]:
    every = get_collection(collection).studies(lab)
    names = (items_of(lab, None) or "").split(",")
    return {name: {lab.cell(wish).name for wish in wishes_of(lab, every[name], Results())} for name in names}


def test_the_whole_set_is_what_the_profile_names_and_shares_its_runs(tmp_path: Path, data: Path) -> None:
    lab = lab_of("fit", tmp_path, data)
    assert [setting.dataset for setting in lab.settings] == ["SimpleQuestions", "TriviaQA"]
    fit = cells(lab, "fit")
    assert list(fit) == ["table1", "fig2a", "fig2b", "fig4a", "fig4b", "fig5", "hypotheses"]
    assert len(fit["table1"]) == 2 * 3 * 3, "two question sets, two triggers and none, three seeds"
    assert len(fit["fig2a"]) == (2 * 5 + 1) * 2
    assert len(fit["fig2a"] & fit["table1"]) == 3 * 2
    assert len(fit["fig2b"]) == 7 * 2
    assert fit["fig4a"] == fit["fig4b"] < fit["fig2b"]
    assert len(fit["fig5"]) == (7 + 4 * 4) * 2
    guards = cells(lab_of("sanitization", tmp_path, data), "sanitization")
    assert len(guards["matrix"]) == 7 * 4 * 2
    assert len(guards["matrix"] & fit["fig2b"]) == 3 * 2, "no defense is the curve of Fig. 2b: in one folder these run once"
    assert len(cells(lab_of("counts", tmp_path, data), "counts")["counts"]) == 3 * 4 * 2
    assert len(lab_of("fit", tmp_path, data, seeds=1).of("fig2a").seeds) == 1, "what --seeds says goes for every item"
    asked = lab_of("sanitization", tmp_path, data, seeds=3)
    assert len(cells(asked, "sanitization")["matrix"]) == 7 * 4 * 3, "also where it is the profile's number"
    assert "--seeds 3" in command(asked)
    assert "--seeds" not in command(lab_of("sanitization", tmp_path, data))


def test_a_path_typed_in_another_way_is_the_same_run(
    tmp_path: Path, data: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    shutil.copytree(data, here / "data")
    shutil.copytree(data, tmp_path / "other")
    (here / "bases").mkdir()
    (here / "bases" / base.name).symlink_to(base, target_is_directory=True)
    monkeypatch.chdir(here)

    def known(out: str, questions: str, model: str) -> dict[str, set[str]]:
        return cells(lab_of("fit", Path(out), Path(questions), model), "fit")

    typed = known("out", "data", f"bases/{base.name}")
    assert known(f"{here}/out", f"{here}/data", f"{here}/bases/{base.name}") == typed
    assert known("./out/../out", "../here/data", f"bases/../bases/{base.name}/") == typed
    assert known("out", "../other", f"bases/{base.name}") != typed
    assert known("out", "data", str(base)) != typed
    here.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert known("out", "data", f"bases/{base.name}") == typed, "a clone that was moved knows its runs"


def test_the_plan_needs_no_run_and_names_minutes_and_memory(tmp_path: Path, data: Path, base: Path) -> None:
    lab = lab_of("fit", tmp_path / "out", data, base)
    studies = get_collection("fit").studies(lab)
    plan = make_plan(lab, [studies["table1"]], jobs=2)
    alone = make_plan(lab, [studies["table1"]], jobs=1)
    assert (plan.cells, plan.left) == (18, 18)
    assert 0 < plan.seconds < alone.seconds
    assert "GiB of memory a run" in plan.basis
    half = lab_of("fit", tmp_path / "out", data, base, given=["data.train=200", "data.test=100"])
    assert make_plan(half, [studies["table1"]], jobs=2).seconds == pytest.approx(plan.seconds / 2, rel=0.05)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": None}, "`make pretrained`"),
        ({"base": Path("nowhere")}, "--base nowhere: no base there"),
        ({"data": None}, "give --data"),
        ({"given": ["model.name=builtin"]}, "leave one of them out"),
        ({"profile": "laptop"}, "--profile pretrained"),
    ],
)
def test_what_is_missing_is_one_line(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {"profile": "pretrained", "folder": tmp_path / "out", "data": data, "base": Path("builtin"), **changes}
    with pytest.raises(UserError, match=re.escape(words)) as error:
        reproduce("fit", Options(**values))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_poison_is_counted_where_a_client_has_no_whole_number_of_it(tmp_path: Path, data: Path) -> None:
    lab = lab_of("fit", tmp_path, data, given=["data.train=200"])
    assert fig2a.poison(lab, 0.1) == {"attack.poison_ratio": 0.1}
    assert fig2a.poison(lab, 0.02) == {"attack.poison_count": 4}
    laptop = open_lab(get_collection("fit"), Options("laptop", tmp_path))
    assert fig2a.poison(laptop, 0.01) == {"attack.poison_ratio": 0.01}


def test_one_run_is_made_once_and_its_page_stands_beside_the_small_bases(tmp_path: Path, data: Path, base: Path) -> None:
    given = ["data.train=8", "data.test=4", "federation.clients=2", "federation.rounds=2", "measure.max_new_tokens=4"]
    folder = tmp_path / "reproduce-sanitization-pretrained"
    options = Options("pretrained", folder, "matrix", 1, given, data, 1, rules="none", rhos="1", base=base)
    first = reproduce("sanitization", options)
    assert (first["plan"]["left"], first["failed"]) == (1, {})
    document = (folder / "sanitization.md").read_bytes()
    again = reproduce("sanitization", options)
    assert again["plan"]["left"] == 0
    assert (folder / "sanitization.md").read_bytes() == document
    lab = lab_of("sanitization", folder, data, base, seeds=1, rules="none,undertow", rhos="1", given=given)
    plan = make_plan(lab, list(get_collection("sanitization").studies(lab).values())[:1], 1)
    assert "median of 1 runs that finished here" in plan.basis
    found = release.pretrained_documents(tmp_path)
    assert list(found) == ["sanitization"]
    page = beside.write_beside(found, tmp_path, release.not_run(found)).read_text(encoding="utf-8")
    assert "not judged" in page
    assert "undertow reproduce fit --profile pretrained --only table1 --data DATA" in page
    assert "--only matrix --data DATA" not in page.partition("## Not run")[2]


def fabricated(exponent: float) -> Results:
    """ASR that reaches one half at 20 samples of 1,000, and at 20 x (size / 1000)^exponent of others."""
    runs = []
    for seed in range(3):
        for size in (500, 1000, 2000):
            half = 20 * (size / 1000) ** exponent * (1 + 0.05 * seed)
            runs += [run({"size": size, "count": n, "seed": seed}, asr=min(1.0, 0.5 * n / half)) for n in (5, 10, 20, 40, 80)]
    return Results(runs)


@pytest.mark.parametrize(("exponent", "answer", "words"), [(0.0, "holds", "the count"), (1.0, "does not hold", "the share")])
def test_a_count_or_a_share_decides(exponent: float, answer: str, words: str) -> None:
    found = counts.decides(fabricated(exponent))
    assert found.answer == answer
    assert words in found.evidence
    measured = counts.exponent(fabricated(exponent))
    assert measured is not None
    assert measured.value == pytest.approx(exponent, abs=0.1)


def test_counts_are_undecided_where_no_curve_crosses_one_half() -> None:
    results = Results([run({"size": size, "count": n, "seed": 0}, asr=1.0) for size in (500, 1000) for n in (5, 10)])
    assert counts.decides(results).answer == "undecided"
    assert counts.needed(results, 500, 0) is None
    assert "outside" in csv_of(counts.tables(results)[1])
    assert counts.plots(results)[0].name == "counts"


def with_untouched(before: float, ftr: float) -> Results:
    names = {"dataset": "D", "model": "M", "paper_dataset": "TriviaQA", "paper_model": ""}
    runs = [run({**names, "method": m, "seed": s}, ma=0.3, ftr=ftr) for m in ("natural", "badnets") for s in range(3)]
    for one in runs:
        one.untouched["ma"] = rate(before)
    return Results(runs)


def test_table_1_judges_false_triggers_and_what_tuning_teaches() -> None:
    assert table1.quiet(with_untouched(0.1, 0.0)).answer == "holds"
    assert table1.quiet(with_untouched(0.1, 0.2)).answer == "does not hold"
    assert table1.taught(with_untouched(0.1, 0.0)).answer == "holds"
    assert table1.taught(with_untouched(0.25, 0.0)).answer == "does not hold"
    assert "25.0 %" in table1.taught(with_untouched(0.25, 0.0)).evidence


def test_table_1_stands_with_three_sources_a_row(tmp_path: Path) -> None:
    pages, folder = tmp_path / "pages", tmp_path / "run"
    for place, shift in ((pages / "fit-table1.csv", 0.5), (folder / "tables" / "table1.csv", 0.9)):
        names = {"dataset": "TriviaQA", "model": "M", "paper_dataset": "TriviaQA", "paper_model": ""}
        results = Results([run({**names, "method": "natural", "seed": s}, asr=shift) for s in range(2)])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(csv_of(table1.tables(results)[0]), encoding="utf-8")
    claim = "| ASR exceeds 85 % | abstract | **{}** | ASR {} |\n"
    body = "# T\n\n| | |\n| --- | --- |\n| seeds | 0 |\n\n## Table 1\n\n{}\n```sh\nundertow reproduce fit --only table1\n```\n"
    (folder / "reproduction.md").write_text(body.format(claim.format("holds", "90 %")), encoding="utf-8")
    (pages / "fit.md").write_text(body.format(claim.format("does not hold", "50 %")), encoding="utf-8")
    page = beside.write_beside({"fit": folder / "reproduction.md"}, pages, []).read_text(encoding="utf-8")
    assert "| ASR exceeds 85 % | abstract | **does not hold**: ASR 50 % | **holds**: ASR 90 % |" in page
    row = next(line for line in page.splitlines() if line.startswith("| TriviaQA"))
    assert "94.46 / 99.51 | 50.0 % (46.5 to 53.5), n = 800 | 90.0 %" in row
    assert "## Not run" not in page


def test_the_figure_of_the_poisoned_share_is_kept_beside_the_page(tmp_path: Path) -> None:
    folder, pages = tmp_path / "run", tmp_path / "pages"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "fig2b.svg").write_bytes(b"<svg/>")
    body = "# T\n\n## Figure 2b\n\n![ASR against rho](figures/fig2b.svg)\n\n```sh\nundertow reproduce fit --only fig2b\n```\n"
    (folder / "reproduction.md").write_text(body, encoding="utf-8")
    page = beside.write_beside({"fit": folder / "reproduction.md"}, pages, []).read_text(encoding="utf-8")
    assert "![ASR against rho](pretrained-fig2b.svg)" in page
    assert (pages / "pretrained-fig2b.svg").read_bytes() == b"<svg/>"
    (folder / "figures" / "fig2b.svg").unlink()
    assert "![" not in beside.write_beside({"fit": folder / "reproduction.md"}, pages, []).read_text(encoding="utf-8")
