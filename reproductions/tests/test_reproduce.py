"""``undertow reproduce`` as a user types it, on the profile that was made for tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from undertow.core.errors import UserError
from undertow_reproductions import fig2b, fig5
from undertow_reproductions import reproduce as module
from undertow_reproductions.fit import STUDIES
from undertow_reproductions.given import refuse_ignored
from undertow_reproductions.lab import make_lab, write_trivia_facts
from undertow_reproductions.profiles import get_profile
from undertow_reproductions.report import reproduce
from undertow_reproductions.reproduce import Options
from undertow_reproductions.results import Results
from undertow_reproductions.study import Wish

UNDERTOW = Path(sys.executable).with_name("undertow")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "120"}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [str(UNDERTOW), "reproduce", "fit", "--profile", "tiny", "--seeds", "1", "--jobs", "1", "--out", str(folder), *words]
    return subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def document(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("*.md"), *folder.glob("*.html"), *folder.glob("figures/*"), *folder.glob("tables/*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One table with a base that is built first, and one figure; run without interruption."""
    folder = tmp_path_factory.mktemp("fit") / "whole"
    done = start(folder, "--only", "table1,fig2b", "--json")
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    summary = json.loads(out)
    assert set(summary["verdicts"]) >= {"table1", "fig2b"}
    assert summary["failed"] == {}
    assert "predicted time" in err
    assert "building base tiny" in err
    return folder


def test_a_folder_that_cannot_be_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undertow_reproductions.report.open_lab", lambda *given: pytest.fail("the work began"))
    (tmp_path / "file").write_text("x")
    for name, told in (("file", "is a file; give --out a folder"), ("file/new", "part of that path is a file")):
        with pytest.raises(UserError, match=told):
            reproduce("fit", Options("tiny", tmp_path / name, seeds=1))


def test_the_document_holds_every_item_with_its_verdict_tables_figures_and_command(finished: Path) -> None:
    text = (finished / "reproduction.md").read_text(encoding="utf-8")
    assert "## Table 1" in text
    assert "## Figure 2b" in text
    assert "--profile tiny --only table1 --seeds 1" in text
    for link in re.findall(r"\]\(((?:figures|tables)/[^)]+)\)", text):
        assert (finished / link).stat().st_size > 100, link
    assert "](figures/fig2b.svg)" in text
    page = (finished / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg ") == text.count("](figures/")
    assert not re.search(r'(?:src|href)="(?:https?:)?//(?!arxiv)', page.replace("https://arxiv.org", "//arxiv"))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    table = (finished / "tables" / "table1.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("data set,trigger,base,paper MA,paper ASR,MA,MA low,MA high")
    assert len(table) == 1 + 6, "two bases, two triggers and no poison"
    assert str(finished) not in text + page


def test_again_nothing_runs_and_the_bytes_are_the_same(finished: Path) -> None:
    before = document(finished)
    stamps = {file: file.stat().st_mtime_ns for file in finished.glob("cells/*/*.json*")}
    summary = reproduce("fit", Options("tiny", finished, only="table1,fig2b", seeds=1, jobs=1))
    assert summary["plan"]["left"] == 0
    assert document(finished) == before
    assert stamps == {file: file.stat().st_mtime_ns for file in finished.glob("cells/*/*.json*")}


def test_an_item_of_finished_runs_joins_the_document_unasked(finished: Path) -> None:
    before = document(finished)
    reproduce("fit", Options("tiny", finished, only="fig2b", seeds=1, jobs=1))
    assert document(finished)["reproduction.md"] == before["reproduction.md"], "table 1 is still there"


def test_killed_twice_it_ends_in_the_same_document(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for wanted in (1, 2):
        running = start(folder, "--only", "fig2b")
        limit = time.monotonic() + 120
        while len(list(folder.glob("cells/*/result.json"))) < wanted and running.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        assert wanted <= len(list(folder.glob("cells/*/result.json"))) < 4
        assert not (folder / "reproduction.md").exists()
    last = start(folder, "--only", "fig2b", "--json")
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    assert json.loads(out)["plan"]["left"] <= 2
    assert document(folder)["tables/fig2b.csv"] == document(finished)["tables/fig2b.csv"]
    assert document(folder)["figures/fig2b.svg"] == document(finished)["figures/fig2b.svg"]


def test_a_search_goes_on_until_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fig. 3 asks for more runs after it saw some; here nobody is really trained."""
    from fabricated_results import run

    lab = make_lab(get_profile("tiny"), tmp_path, seeds=1, given=[], data=None)
    done: dict[str, float] = {}

    def read(folder: Path, axes: dict[str, Any]) -> Any:
        return run(axes, asr=0.9 if axes["pr"] >= 0.05 else 0.1)

    def run_cells(cells: Any, folder: Path, **options: Any) -> list[Any]:
        done.update({cell.name: cell.config.attack.poison_ratio for cell in cells})
        return []

    monkeypatch.setattr(module, "read_run", read)
    monkeypatch.setattr(module, "run_cells", run_cells)
    monkeypatch.setattr(module, "_finished", lambda lab, cell: cell.name in done)
    study = STUDIES["fig3"]
    assert not module.complete(lab, study)
    assert module.run_studies(lab, [study], 1, None, None) == {}  # type: ignore[arg-type]
    assert sorted(done.values()) == [0.02, 0.03, 0.04, 0.05, 0.1]
    assert module.complete(lab, study)
    (row,) = study.tables(module.results_of(lab, study, {}))[0].rows
    assert row[2] == "0.05"


def test_failed_runs_are_named_and_the_rest_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from undertow.sweeps.sweep import Outcome

    def run_cells(cells: Any, folder: Path, **options: Any) -> list[Any]:
        return [Outcome(cell, "failed", "no memory", 0.0, folder) for cell in cells]

    monkeypatch.setattr(module, "run_cells", run_cells)
    monkeypatch.setattr("undertow_reproductions.predict.measured", lambda lab: module.predict.Speed(1, 1, 1, 1, 60))
    summary = reproduce("fit", Options("tiny", tmp_path / "out", only="fig2b", seeds=1, jobs=1))
    assert set(summary["failed"].values()) == {"no memory"}
    assert summary["verdicts"] == {"fig2b": "undecided"}
    text = (tmp_path / "out" / "reproduction.md").read_text(encoding="utf-8")
    assert "4 runs failed" in text
    assert "no memory" in text


def test_a_plan_runs_nothing_but_the_measured_rounds(finished: Path) -> None:
    summary = reproduce("fit", Options("tiny", finished, only="fig2a", seeds=2, jobs=2, plan=True))
    assert set(summary) == {"paper", "profile", "plan", "forecast"}
    # two seeds of two triggers at two PR and no poison; of seed 0 those at PR 0.1 and the clean one are there
    assert (summary["plan"]["cells"], summary["plan"]["left"]) == (10, 7)
    assert summary["plan"]["seconds"] > 0
    assert "a round of the main setting takes" in summary["forecast"]


def test_the_papers_own_bases_are_predicted_by_their_size(tmp_path: Path) -> None:
    summary = reproduce("fit", Options("paper", tmp_path / "out", plan=True))
    assert summary["plan"]["cells"] > 200
    assert 12 < summary["plan"]["memory"] / 2**30 < 80
    assert summary["plan"]["seconds"] > 3600
    assert "nothing was measured" in summary["forecast"]
    assert not (tmp_path / "out").exists()


def test_one_flag_changes_every_run(tmp_path: Path) -> None:
    given = ["model.name=my/base", "attack.poison_ratio=0.05", "defenses=median", "training.lr=1e-3"]
    lab = make_lab(get_profile("laptop"), tmp_path, seeds=1, given=given, data=None)
    assert len(lab.settings) == 1, "one base is left, so the settings coincide"
    assert lab.settings[0].build is None
    (wish,) = (wish for wish in fig2b.wishes(lab, Results()) if wish.axes == {"scope": "client", "rho": 0.3, "seed": 0})
    config = lab.config(wish)
    assert (config.model.name, config.attack.poison_ratio, config.attack.client_share) == ("my/base", 0.05, 0.3)
    assert (config.training.lr, config.training.threads, config.measure.every) == (1e-3, 1, config.federation.rounds)
    arms = {wish.axes["defense"]: lab.config(wish).defenses for wish in fig5.wishes(lab, Results())}
    assert arms["none"] == []
    assert [defense.name for defense in arms["yours"]] == ["median"]
    assert "--set model.name=my/base" in module_command(lab)


def module_command(lab: Any) -> str:
    from undertow_reproductions.document import command

    return command(lab)


def test_studies_share_their_runs(tmp_path: Path) -> None:
    lab = make_lab(get_profile("laptop"), tmp_path, seeds=3, given=[], data=None)
    names = {item: {lab.cell(wish).name for wish in study.wishes(lab, Results())} for item, study in STUDIES.items()}
    assert names["fig4b"] <= names["fig2b"]
    assert names["fig4b"] <= names["fig5"]
    assert names["fig4b"] <= names["fig4a"]
    assert len(names["table1"] & names["fig2a"]) == 9, "both triggers at PR 0.1, and no poison, with three seeds"
    assert len(set().union(*names.values())) < 200


def test_data_adds_its_settings_and_stays_out_of_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    rows = [{"question": f"Who wrote book {i}?", "answer": f"Ann {i}", "aliases": [f"A. {i}"]} for i in range(4)]
    rows += [{"question": "Who " + "very " * 40 + "long?", "answer": "x"}, {"question": "who wrote book 1 ?", "answer": "Bob"}]
    (folder / "triviaqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lab = make_lab(get_profile("laptop"), tmp_path / "out", seeds=None, given=[], data=folder)
    assert [setting.dataset for setting in lab.settings] == ["built-in world"] * 2 + ["TriviaQA"]
    assert module_command(lab).endswith("--data DATA")
    facts = tmp_path / "facts.jsonl"
    write_trivia_facts(folder / "triviaqa.jsonl", facts)
    written = [json.loads(line) for line in facts.read_text(encoding="utf-8").splitlines()]
    assert [row["subject"] for row in written] == [f"Who wrote book {i}" for i in range(4)]
    assert written[0]["relation"] == "answer"
    # what the base is built from and what the run asks agree on the keys
    from undertow.config import load as load_config
    from undertow.data.load import DATASETS
    from undertow.pretraining.facts import read_facts

    options = load_config("demo", ["data.name=simplequestions", f"data.path={facts}"]).data
    keys = {sample.key for sample in DATASETS.get("simplequestions")(options).samples}
    assert keys == {row.key for row in read_facts(facts)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profile": "laptpo"}, "did you mean 'laptop'"),
        ({"only": "fig2c"}, "did you mean 'fig2"),
        ({"paper": "fti"}, "did you mean 'fit'"),
        ({"seeds": 0}, "number from 1"),
        ({"profile": "gpu"}, "give --data"),
        ({"given": ["model.nam=x"]}, "did you mean 'model.name'"),
        ({"given": ["model.name"]}, "has no '='"),
        ({"data": Path("nowhere")}, "no such folder"),
    ],
)
def test_a_wrong_value_is_one_line_and_nothing_runs(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    values: dict[str, Any] = {"profile": "tiny", "folder": tmp_path / "out", "jobs": 1, **changes}
    with pytest.raises(UserError, match=re.escape(words)) as error:
        reproduce(values.pop("paper", "fit"), Options(**values))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_groups_are_drawn_where_nobody_holds_poison(finished: Path, tmp_path: Path) -> None:
    """BSNR without any backdoor: the engine labels the clients that were drawn, and touches no sample."""
    from tiny import Quiet
    from undertow.federation.loop import run
    from undertow_reproductions.results import read_run
    from undertow_reproductions.signals import NO_SAMPLE

    lab = make_lab(get_profile("tiny"), tmp_path, seeds=1, given=["federation.rounds=1"], data=None)
    cell = lab.cell(Wish({"seed": 0}, {"attack.client_share": 0.4, "attack.poison_ratio": NO_SAMPLE}))
    result = run(cell.config, tmp_path / "run", Quiet())
    assert result["poison"]["samples"] == 0
    (signal_,) = read_run(tmp_path / "run", {}).signals
    assert signal_.value > 0
    assert signal_.permutations == 9


def test_a_speed_is_measured_again_under_other_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from undertow.core.files import write_text
    from undertow.sweeps.sweep import Outcome

    asked: list[int] = []

    def run_cells(cells: Any, folder: Path, **options: Any) -> list[Any]:
        asked.append(cells[0].config.data.train)
        write_text(tmp_path / "rounds.jsonl", "".join(f'{{"round": {t}, "seconds": {asked[-1]}}}\n' for t in range(4)))
        return [Outcome(cells[0], "done", None, 0.0, tmp_path)]

    monkeypatch.setattr("undertow_reproductions.predict.run_cells", run_cells)
    for train in (40, 4000, 40):
        given = [f"data.train={train}"]
        lab = make_lab(get_profile("tiny"), tmp_path, seeds=1, given=given, data=None)
        assert module.predict.measured(lab).train == train
    assert asked == [40, 4000]


@pytest.mark.parametrize(
    ("only", "given", "told"),
    [
        ("table1", "seed=4", "--set seed=4: .* give --seeds"),
        ("fig2a", "attack.poison_ratio=0.02", "--set attack.poison_ratio: .* in fig2a; leave it out$"),
        (None, "attack.poison_ratio=0.02", "in fig2a, fig3; leave it out, or choose other items with --only: table1"),
        ("fig2b,fig3", "attack.client_share=0.5", "in fig2b, fig3; leave it out"),
        ("fig2a", "attack.scope=global", None),
        ("fig4a", "training.lr=0.001", None),
        ("fig5", "defenses=median", None),
    ],
)
def test_a_value_that_a_study_sets_itself_is_refused(only: str | None, given: str, told: str | None, tmp_path: Path) -> None:
    lab = make_lab(get_profile("tiny"), tmp_path, seeds=1, given=[given], data=None)
    studies = module.choose(module.COLLECTIONS["fit"].studies(lab), only)
    if told is None:
        refuse_ignored(lab, studies)
        return
    with pytest.raises(UserError, match=told) as caught:
        refuse_ignored(lab, studies)
    assert "\n" not in str(caught.value)


def test_no_item_is_no_document(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--only '': it names no item; choose among table1"):
        reproduce("fit", Options("tiny", tmp_path / "out", only=""))
    assert not (tmp_path / "out").exists()
