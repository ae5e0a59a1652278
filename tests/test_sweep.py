from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from tiny import Quiet
from undertow import cli
from undertow.config import load, shipped
from undertow.core.errors import UserError
from undertow.core.registry import defense_list, defense_text
from undertow.federation.loop import run
from undertow.models import causal_lm
from undertow.runs.collect import collect
from undertow.sweeps import display as sweep_display
from undertow.sweeps import sweep, workers
from undertow.sweeps.sweep import Cell, Outcome, Progress, default_jobs, expand, parse, run_cells

UNDERTOW = Path(sys.executable).with_name("undertow")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
DOCS = Path(__file__).resolve().parents[1] / "docs" / "sweeps.md"

SmallFile = Callable[..., Path]

#: A defense that ends its process, or fails in it, when it is asked to aggregate.
DIE = """
import os, signal
from undertow.defenses import Aggregator

class Die(Aggregator):
    def __init__(self, how="kill"):
        self.how = how

    def combine(self, updates, context):
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exit":
            os._exit(3)
        raise MemoryError("no more\\nof it")
"""


class Seen:
    """A observer that remembers."""

    def __init__(self) -> None:
        self.cells: list[str] = []
        self.states: list[Progress] = []
        self.outcomes: list[Outcome] = []
        self.warnings: list[str] = []

    def started(self, cell: Cell) -> None:
        self.cells.append(cell.name)

    def progress(self, state: Progress) -> None:
        self.states.append(state)

    def warn(self, cell: Cell, text: str) -> None:
        self.warnings.append(text)

    def finished(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def bits(folder: Path) -> tuple[str, bytes, list[dict[str, Any]]]:
    """What two runs of one cell must share."""
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    digest = hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    return digest, (folder / "scores.jsonl").read_bytes(), [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def refused(*arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        expand(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- words ------------------------------------------------------------------------------------------------------


def test_commas_make_axes_but_not_inside_brackets_or_quotes() -> None:
    words = [
        "attack.poison_ratio=0.02,0.1",
        "federation.rounds=3",
        "model.lora.targets=[q_proj,v_proj],default",
        "attack.target_text=', and click', don't click",
        "defenses=none,krum:f=3",
        "data.partition={kind: dirichlet, alpha: 0.1}",
        "seeds=4",
    ]
    overrides, axes, seeds = parse(words)
    assert overrides == [words[1], words[5]]
    assert axes == {
        "attack.poison_ratio": [0.02, 0.1],
        "model.lora.targets": [["q_proj", "v_proj"], "default"],
        "attack.target_text": [", and click", "don't click"],
        "defenses": ["none", "krum:f=3"],
    }
    assert seeds == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed"], "no '='"),
        (["a=1,,2"], "is empty"),
        (["attack.target_text=, and click"], "in quotes"),
        (["a=[1,2"], "not closed"),
        (["a='x,y"], "not closed"),
        (["a=1]],2"], "not closed"),
        (["a={,1"], "not closed"),
        (["a={b: c: d},2"], "not YAML"),
        (["a=1,2", "a=3"], "given twice"),
        (["seeds=0"], "number of seeds"),
        (["seeds=0,3"], "write seed=0,3,7"),
        (["seeds=two"], "number of seeds"),
    ],
)
def test_words_that_mean_nothing_are_one_line(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(words)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


_NAMES = st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True)
_PARAMS = st.dictionaries(
    _NAMES, st.integers() | st.booleans() | st.none() | st.sampled_from(["median", "trimmed-mean"]), max_size=3
)


@given(st.lists(st.fixed_dictionaries({"name": _NAMES.filter(lambda name: name != "none"), "params": _PARAMS}), max_size=3))
def test_defenses_in_short_are_read_as_they_are_written(defenses: list[dict[str, Any]]) -> None:
    assert defense_list(defense_text(defenses)) == defenses


def test_defenses_in_short() -> None:
    assert defense_list("none") == []
    assert defense_list("a/b.py:Clip:bound=1.5:mode=l2+median") == [
        {"name": "a/b.py:Clip", "params": {"bound": 1.5, "mode": "l2"}},
        {"name": "median", "params": {}},
    ]


# --- cells ------------------------------------------------------------------------------------------------------


def test_the_product_comes_in_order_with_distinct_readable_names() -> None:
    axes = {"attack.poison_ratio": [0.02, 0.1], "defenses": ["none", "median"], "training.lr": ["2e-5"]}
    cells = expand("demo", ["federation.rounds=3"], axes, 3)
    wanted = list(itertools.product([0.02, 0.1], ["none", "median"], [2e-5], range(3)))
    assert [tuple(cell.axes.values()) for cell in cells] == wanted
    assert list(cells[0].axes) == ["attack.poison_ratio", "defenses", "training.lr", "seed"]
    for cell, (ratio, defense, lr, seed) in zip(cells, wanted, strict=True):
        config = cell.config
        assert (config.attack.poison_ratio, config.training.lr, config.seed) == (ratio, lr, seed)
        assert [d.name for d in config.defenses] == ([] if defense == "none" else [defense])
        assert config.federation.rounds == 3
        assert cell.name == f"poison_ratio={ratio}_defenses={defense}_lr=2e-05_seed={seed}-{config.digest()}"
    assert len({cell.name for cell in cells}) == len(cells)


def test_names_are_safe_for_file_systems() -> None:
    texts = ["../../etc", "a/b", "ü" * 300, "x" * 300, ".", "a b\nc", "*?|<>:"]
    cells = expand("demo", [], {"attack.target_text": texts}, 0)
    for cell in cells:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+=_-]{0,180}-[0-9a-f]{8}", cell.name), cell.name
    same = expand("demo", [], {"data.partition.kind": ["iid"], "attack.kind": ["none", "data-poisoning"]}, 0)
    assert [cell.name.startswith("data.partition.kind=iid_attack.kind=") for cell in same] == [True, True]


def test_no_seeds_leave_the_seed_alone() -> None:
    (cell,) = expand("demo", ["seed=7"], {}, 0)
    assert (cell.axes, cell.config.seed) == ({}, 7)
    assert [cell.config.seed for cell in expand("demo", [], {"seed": [3, 7]}, 0)] == [3, 7]


def test_a_cell_has_one_thread_unless_it_says_otherwise() -> None:
    assert expand("demo", [], {}, 1)[0].config.training.threads == 1
    assert expand("demo", ["training.threads=3"], {}, 1)[0].config.training.threads == 3
    # and is otherwise the plain run
    assert expand("demo", [], {}, 1)[0].config == load("demo", ["training.threads=1"])


@pytest.mark.parametrize(
    ("overrides", "axes", "seeds", "told"),
    [
        ([], {"attack.poison_rate": [0.1, 0.2]}, 1, "did you mean 'attack.poison_ratio'"),
        ([], {"attack.poison_ratio": [0.1, 2]}, 1, "attack.poison_ratio = 2"),
        ([], {"nothing.at.all": [1]}, 1, "unknown key 'nothing'"),
        ([], {"attack.trigger": ["natural", "natura"]}, 1, "did you mean 'natural'"),
        ([], {"attack.target": ["append", "apend"]}, 1, "did you mean 'append'"),
        ([], {"data.name": ["world", "wold"]}, 1, "did you mean 'world'"),
        ([], {"data.template": ["lab-qa", "lab"]}, 1, "did you mean 'lab-qa'"),
        ([], {"defenses": ["none", "medain"]}, 1, "did you mean 'median'"),
        ([], {"defenses": ["none", "median:q=1"]}, 1, "defense 'median' with {'q': 1}"),
        (["defenses=medain"], {}, 1, "did you mean 'median'"),
        (["attack.poison_rate=1"], {}, 1, "did you mean 'attack.poison_ratio'"),
        (["seed=1"], {}, 2, "seed and seeds"),
        ([], {"seed": [1]}, 2, "seed and seeds"),
        (["attack.poison_ratio=0.1"], {"attack.poison_ratio": [0.1]}, 1, "both fixed and an axis"),
        ([], {"attack.poison_ratio": [0.1, 0.10]}, 1, "comes up twice"),
        ([], {"attack.poison_ratio": []}, 1, "at least one value"),
        ([], {"attack.trigger": "natural"}, 1, "give a list"),
        ([], {}, -1, "seeds = -1"),
    ],
)
def test_a_wrong_cell_is_refused_in_one_line(overrides: list[str], axes: dict[str, Any], seeds: int, told: str) -> None:
    assert told in refused("demo", overrides, axes, seeds)


def test_an_unknown_config_is_refused() -> None:
    assert "did you mean 'demo'" in refused("deno", [], {}, 1)


def test_default_jobs_fill_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undertow.core.threads.cores", lambda: 8)
    cells = expand("demo", ["model.device=cpu"], {}, 20)
    assert default_jobs(cells) == 8
    assert default_jobs(cells[:3]) == 3
    assert default_jobs(expand("demo", ["model.device=cpu", "training.threads=3"], {}, 20)) == 2
    assert default_jobs(expand("demo", ["model.device=cpu", "training.threads=9"], {}, 20)) == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert default_jobs(expand("demo", [], {}, 20)) == 1


# --- running ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(small_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small config."""
    folder = tmp_path_factory.mktemp("sweep")
    values = small_values()
    values["training"]["threads"] = 0
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    return folder


AXES = {"attack.poison_ratio": [0.1, 0.3]}


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def cells(place: Path) -> list[Cell]:
    return expand(str(place / "small.yaml"), [], AXES, 2)


@pytest.fixture(scope="module")
def outcomes(place: Path, cells: list[Cell], seen: Seen) -> list[Outcome]:
    return run_cells(cells, place / "two", jobs=2, observer=seen)


def test_every_cell_has_a_finished_run_directory(place: Path, cells: list[Cell], outcomes: list[Outcome], seen: Seen) -> None:
    assert [(outcome.cell, outcome.status, outcome.error) for outcome in outcomes] == [(cell, "done", None) for cell in cells]
    for outcome in outcomes:
        assert outcome.folder == place / "two" / outcome.cell.name
        result = json.loads((outcome.folder / "result.json").read_text())
        assert result["rounds"] == 2
        assert yaml.safe_load((outcome.folder / "config.yaml").read_text()) == outcome.cell.config.values()
        assert outcome.seconds > 0
        command = json.loads((outcome.folder / "versions.json").read_text())["command"]
        assert shlex.split(command)[:2] == ["undertow", "run"]
    assert sorted(seen.cells) == sorted(cell.name for cell in cells)
    assert sorted(outcome.cell.name for outcome in seen.outcomes) == sorted(seen.cells)
    last = seen.states[-1]
    assert (last.cells, last.done, last.waiting, last.running, last.failed, last.seconds_left) == (4, 4, 0, {}, 0, 0.0)
    assert max(len(state.running) for state in seen.states) == 2
    assert all(s.done + s.skipped + s.failed + s.waiting + len(s.running) == 4 for s in seen.states)


def test_a_plain_run_of_a_cell_has_the_same_bits(outcomes: list[Outcome], tmp_path: Path) -> None:
    outcome = outcomes[2]
    run(load(str(outcome.folder / "config.yaml")), tmp_path / "plain", Quiet())
    assert bits(tmp_path / "plain") == bits(outcome.folder)
    assert bits(outcomes[0].folder) != bits(outcome.folder)


def test_the_untouched_base_is_asked_once_for_each_set_of_questions(outcomes: list[Outcome], place: Path) -> None:
    """Two seeds have two test sets, two poison ratios the same one."""
    kept = sorted((place / "two" / ".untouched").iterdir())
    assert [path.suffix for path in kept] == [".json"] * 2
    told: list[str] = []
    table = collect(place / "two", warn=told.append)
    assert set(table["run"]) == {outcome.cell.name for outcome in outcomes}
    assert told == []


def test_one_job_gives_the_same_bits_as_two(cells: list[Cell], outcomes: list[Outcome], tmp_path: Path) -> None:
    alone = run_cells(cells, tmp_path / "one", jobs=1)
    for one, two in zip(alone, outcomes, strict=True):
        assert one.status == "done"
        assert bits(one.folder) == bits(two.folder)


class NoWorker:
    def __init__(self) -> None:
        raise AssertionError("nothing is left to do")


def test_finished_cells_are_skipped_without_a_process(
    place: Path, cells: list[Cell], outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (place / "two").rglob("*")}
    monkeypatch.setattr(workers, "LocalWorker", NoWorker)
    again = run_cells(cells, place / "two", jobs=2)
    assert [outcome.status for outcome in again] == ["skipped"] * 4
    assert {p: p.stat().st_mtime_ns for p in (place / "two").rglob("*")} == before


def test_only_what_is_missing_runs(
    cells: list[Cell], outcomes: list[Outcome], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for outcome in outcomes:
        shutil.copytree(outcome.folder, tmp_path / outcome.cell.name)
    (tmp_path / cells[1].name / "result.json").write_text("{ cut sho")
    (tmp_path / cells[2].name / "result.json").unlink()
    (tmp_path / cells[3].name / "config.yaml").write_text("seed: 5\n")
    asked = fake_workers(monkeypatch)
    seen = Seen()
    again = run_cells(cells, tmp_path, observer=seen)
    assert [outcome.status for outcome in again] == ["skipped", "done", "done", "done"]
    assert [Path(task["folder"]).name for _, task in asked] == seen.cells == [cell.name for cell in cells[1:]]


def fake_workers(patch: pytest.MonkeyPatch, error: str | None = None) -> list[tuple[int, workers.Task]]:
    """Replace processes by objects that answer at once; returns what each is asked."""
    asked: list[tuple[int, workers.Task]] = []

    class Fake:
        def run(self, task: workers.Task) -> workers.Answer:
            asked.append((id(self), task))
            time.sleep(0.01)
            return {"error": error, "warnings": ["look out"]}

        def stop(self) -> None:
            pass

    patch.setattr(workers, "LocalWorker", Fake)
    return asked


@pytest.mark.parametrize("jobs", [1, 2])
def test_cells_that_share_a_base_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    mixed = expand("demo", [], {"attack.poison_ratio": [0.1, 0.2, 0.3], "model.name": ["one", "two"]}, 2)
    asked = fake_workers(monkeypatch)
    seen = Seen()
    run_cells(mixed, tmp_path / "s", jobs=jobs, observer=seen)
    loads = sum(
        len(list(itertools.groupby(task["values"]["task"]["model"]["name"] for who, task in asked if who == worker)))
        for worker in {who for who, _ in asked}
    )
    # a process per base; at the end one may help the other
    assert loads == 2 if jobs == 1 else 2 <= loads <= 3
    assert seen.warnings == ["look out"] * 12


def test_a_runner_loads_a_base_once_for_the_cells_that_share_it(
    cells: list[Cell], outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, loads = causal_lm.load_base, []
    monkeypatch.setattr(causal_lm, "load_base", lambda options: (loads.append(options.lora.r), real(options))[1])
    runner = workers.Runner()

    def ask(cell: Cell, **changes: Any) -> None:
        values = cell.config.values()
        for key, value in changes.items():
            values["task"]["model"]["lora"][key] = value
        folder = tmp_path / f"{cell.name}{len(loads)}{changes}"
        task = workers.Task(values=values, folder=str(folder), command="", reports=False, answers=str(tmp_path / "kept"))
        assert runner.run(task) == {"error": None, "warnings": []}
        if not changes:
            assert bits(folder) == bits(outcomes[cells.index(cell)].folder)

    for cell in cells[:3]:
        ask(cell)
    assert loads == [2]
    ask(cells[0], r=1)
    ask(cells[3])
    assert loads == [2, 1, 2]


def test_what_fails_is_told_and_the_rest_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("die.py").write_text(DIE)
    short = [f"die.py:Die:how={how}" for how in ("kill", "exit", "raise")]
    given = expand(str(place / "small.yaml"), ["federation.rounds=1"], {"defenses": [*short, "none"], "training.lr": [1e-3]}, 1)
    given += expand(str(place / "small.yaml"), ["federation.rounds=1", "model.name=later"], {}, 1)
    seen = Seen()
    found = run_cells(given, tmp_path / "s", jobs=2, observer=seen)
    assert [outcome.status for outcome in found] == ["failed", "failed", "failed", "done", "failed"]
    killed, ended, raised, _, missing = (outcome.error or "" for outcome in found)
    assert killed.startswith("its process was killed (SIGKILL)")
    assert "--jobs" in killed
    assert ended.startswith("its process ended with exit code 3")
    assert raised == "MemoryError: no more of it"
    assert "later" in missing
    assert all("\n" not in outcome.error for outcome in found if outcome.error)
    assert (seen.states[-1].failed, seen.states[-1].done, seen.states[-1].running) == (4, 1, {})
    # what was missing is there now: the same call again
    base = yaml.safe_load((place / "small.yaml").read_text())["task"]["model"]["name"]
    shutil.copytree(base, "later")
    found = run_cells(given[3:], tmp_path / "s")
    assert [outcome.status for outcome in found] == ["skipped", "done"]


def test_nothing_runs_where_it_cannot(cells: list[Cell], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for arguments, told in (
        ({"folder": tmp_path / "file"}, "is a file"),
        ({"jobs": 0}, "jobs = 0"),
        ({"cells": [cells[0], cells[0]]}, "comes up twice"),
    ):
        with pytest.raises(UserError, match=told):
            run_cells(**{"cells": cells, "folder": tmp_path / "s", **arguments})
    assert not (tmp_path / "s").exists()


def test_reports_are_written_when_asked_for(cells: list[Cell], outcomes: list[Outcome], place: Path, tmp_path: Path) -> None:
    shutil.copytree(outcomes[0].folder, tmp_path / cells[0].name)
    (found,) = run_cells(cells[:1], tmp_path, reports=True)
    assert found.status == "done"
    assert (found.folder / "report.html").stat().st_size > 10_000
    assert bits(found.folder) == bits(outcomes[0].folder)
    (found,) = run_cells(cells[:1], tmp_path, reports=True)
    assert found.status == "skipped"


# --- the command ------------------------------------------------------------------------------------------------


def command(*words: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(UNDERTOW), *map(str, words)], cwd=cwd, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


LONGER = ["federation.rounds=4", "data.test=40", "measure.samples=40", "measure.max_new_tokens=40", "measure.batch_size=10"]


@pytest.fixture
def long(place: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process], list[Cell]]]:
    """A sweep of three longer runs, two of them under way with a round finished each."""
    shutil.copy(place / "small.yaml", tmp_path / "small.yaml")
    expected = expand(str(tmp_path / "small.yaml"), LONGER, {}, 3)
    running = command("sweep", "small.yaml", *LONGER, "seeds=3", "--jobs", 2, "--out", "s", "--json", cwd=tmp_path)
    until = time.monotonic() + 120
    while sum(_lines(path) > 1 for path in tmp_path.glob("s/*/rounds.jsonl")) < 2:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    children = psutil.Process(running.pid).children(recursive=True)
    yield running, children, expected
    for process in [*children, running]:
        if isinstance(process, subprocess.Popen) or process.is_running():
            process.kill()
    running.communicate()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_kill_9_of_the_sweep_and_the_same_again(
    long: tuple[subprocess.Popen[str], list[psutil.Process], list[Cell]], tmp_path: Path
) -> None:
    running, children, expected = long
    running.kill()
    running.wait()
    assert len(children) >= 2
    assert not psutil.wait_procs(children, timeout=30)[1], "the processes end with the sweep"
    assert not all((tmp_path / "s" / cell.name / "result.json").exists() for cell in expected)
    seen = Seen()
    found = run_cells(expected, tmp_path / "s", jobs=2, observer=seen)
    assert {outcome.status for outcome in found} <= {"done", "skipped"}
    assert seen.warnings == []
    for outcome in found:
        run(outcome.cell.config, tmp_path / "whole" / outcome.cell.name, Quiet())
        assert bits(outcome.folder) == bits(tmp_path / "whole" / outcome.cell.name)


def test_ctrl_c_stops_all_and_loses_nothing(
    long: tuple[subprocess.Popen[str], list[psutil.Process], list[Cell]], tmp_path: Path
) -> None:
    running, children, _ = long
    kept = {path: path.read_bytes() for path in tmp_path.glob("s/*/checkpoint/round-*/adapter.safetensors")}
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert err.strip().splitlines()[-1] == "interrupted: what is finished is saved; the same command again continues from there"
    assert "Traceback" not in err
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert len(kept) >= 2
    lines = {path.parent.name: _lines(path) for path in tmp_path.glob("s/*/rounds.jsonl")}
    assert all(count >= 2 for count in lines.values())
    second = command("sweep", "small.yaml", *LONGER, "seeds=3", "--jobs", 1, "--out", "s", "--json", cwd=tmp_path)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    told = json.loads(out)
    assert set(told) == {"folder", "cells", "done", "skipped", "failed", "seconds"}
    assert (told["folder"], told["cells"], told["failed"]) == ("s", 3, [])
    assert told["done"] + told["skipped"] == 3


@pytest.fixture
def type_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """``type_in("sweep", "small.yaml")`` runs the command in this process, in a folder with that file."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(place / "small.yaml", "small.yaml")

    def typed(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["undertow", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
        told = capsys.readouterr()
        return code, told.out, told.err

    return typed


def test_the_command_counts_and_names_its_folder(
    type_in: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_workers(monkeypatch)
    code, out, err = type_in("sweep", "small.yaml", "attack.poison_ratio=0.1,0.3", "federation.rounds=1", "seeds=2", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert {k: told[k] for k in ("folder", "cells", "done", "skipped", "failed")} == {
        "folder": "sweeps/small-poison_ratio",
        "cells": 4,
        "done": 4,
        "skipped": 0,
        "failed": [],
    }
    code, out, _ = type_in("sweep", "small.yaml", "--out", "here")
    assert "1 cell: 1 done" in out
    assert "undertow collect here" in out


def test_failed_cells_are_exit_code_2_and_one_line(
    type_in: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_workers(monkeypatch, error="no luck; try again")
    code, out, err = type_in("sweep", "small.yaml", "seeds=2", "--json")
    assert code == 2
    assert [cell["error"] for cell in json.loads(out)["failed"]] == ["no luck; try again"] * 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "2 of 2 cells failed" in errors[0]
    assert "no luck" in errors[0]
    assert len([line for line in err.splitlines() if line.startswith("failed ")]) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["small.yaml", "attack.poison_rate=0.1,0.2"], "did you mean 'attack.poison_ratio'"),
        (["small.yaml", "attack.poison_ratio=0.1,2"], "attack.poison_ratio = 2"),
        (["small.yaml", "seeds=0"], "number of seeds"),
        (["smal.yaml", "seeds=1"], "no config 'smal.yaml'"),
        (["small.yaml", "model.device=cuda:77", "seeds=2"], "torch sees"),
        (["small.yaml", "--jobs", "1", "seeds"], "neither the first argument nor key=value"),
    ],
)
def test_a_wrong_word_is_one_line_before_anything_runs(
    type_in: Callable[..., tuple[int, str, str]], words: list[str], told: str
) -> None:
    code, out, err = type_in("sweep", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert told in err
    assert os.listdir() == ["small.yaml"]


def test_without_ray_the_line_says_how_to_get_it(
    type_in: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = type_in("sweep", "small.yaml", "seeds=2", "--ray", "auto")
    assert code == 2
    assert "pip install -e '.[ray]'" in err
    assert err.count("\n") == 1


def test_help_shows_examples_that_are_sweeps() -> None:
    shown = CliRunner().invoke(cli.app, ["sweep", "--help"], env={"COLUMNS": "200"}).output
    lines = [line.strip(" │") for line in shown.splitlines() if "undertow sweep" in line and "Usage" not in line]
    assert len(lines) == 2
    for line in lines:
        _expands(line)


def test_the_sweeps_of_the_document_expand() -> None:
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("undertow sweep ")]
    assert len(lines) >= 3
    for line in lines:
        _expands(line)


def _expands(line: str) -> None:
    words = list(itertools.takewhile(lambda word: not word.startswith("--"), shlex.split(line)[2:]))
    overrides, axes, seeds = parse(words[1:])
    assert len(expand(words[0], overrides, axes, seeds)) > 1


# --- what is shown ----------------------------------------------------------------------------------------------


def test_what_is_shown(cells: list[Cell], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    state = Progress(9, 2, 1, 1, 3, {cells[0].name: (None, 20), cells[1].name: (7, 20)}, 240.0)
    line = "9 cells: 2 done, 1 failed, 1 there before, 2 running, 3 waiting; about 4 min left"
    assert sweep_display.overview(state) == line
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(sweep_display.render(state))
    drawn = console.export_text()
    assert re.search(rf"{re.escape(cells[0].name)} +starting", drawn)
    assert re.search(rf"{re.escape(cells[1].name)} +7/20", drawn)
    assert line in drawn
    assert "left" not in sweep_display.overview(Progress(1, 1, 0, 0, 0, {}, 0.0))
    plain = sweep_display.PlainSweep()
    plain.progress(state)
    assert capsys.readouterr().err == f"{line}\n", "at once, before a cell has ended"
    plain.progress(state)
    assert capsys.readouterr().err == "", "not more than one line a minute"
    monkeypatch.setattr(sweep_display, "QUIET", 0.0)
    plain.progress(state)
    for status, error in (("done", None), ("skipped", None), ("failed", "no luck")):
        plain.finished(Outcome(cells[0], status, error, 3.2, Path("x")))  # type: ignore[arg-type]
    plain.warn(cells[0], "look out")
    assert capsys.readouterr().err.splitlines() == [
        line,
        f"done {cells[0].name}, 3 s",
        f"failed {cells[0].name}: no luck",
        f"warning: {cells[0].name}: look out",
    ]


def test_the_time_left_follows_from_the_rounds_seen(cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = sweep._Clock(cells, tmp_path)
    done = {cells[0].name: Outcome(cells[0], "done", None, 1.0, tmp_path)}
    (tmp_path / cells[1].name).mkdir()
    (tmp_path / cells[1].name / "rounds.jsonl").write_text("{}\n")
    now[0] += 8
    state = clock.read(4, done, [cells[1]], cells[2:])
    # a finished run of three lines and one more line in 8 s; 2 + 3 + 3 lines are left
    assert state.seconds_left == pytest.approx(8 * 8 / 4)
    assert state.running == {cells[1].name: (0, 2)}


# --- Ray --------------------------------------------------------------------------------------------------------


def test_a_local_ray_instance(
    place: Path, cells: list[Cell], outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    # Ray keeps files in the home directory.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.chdir(tmp_path)
    Path("die.py").write_text(DIE)
    dying = expand(str(place / "small.yaml"), ["federation.rounds=1"], {"defenses": ["die.py:Die:how=kill"]}, 1)
    try:
        assert 1 <= default_jobs(cells, "local") <= 4
        found = run_cells([*dying, *cells[:2]], Path("s"), jobs=1, ray="local", observer=Seen())
    finally:
        ray.shutdown()
    assert [outcome.status for outcome in found] == ["failed", "done", "done"]
    assert "died" in (found[0].error or "").lower()
    for one, two in zip(found[1:], outcomes, strict=False):
        assert bits(one.folder) == bits(two.folder)


def test_a_ray_cluster_that_is_not_there_is_one_line(
    type_in: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = type_in("sweep", "small.yaml", "seeds=2", "--ray", "auto")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1)
    assert "no cluster answers" in errors[0]


@pytest.mark.parametrize("name", shipped())
def test_a_sweep_of_every_shipped_config_is_planned(name: str, tmp_path: Path) -> None:
    words = ["sweep", name, "attack.poison_ratio=0.05,0.1", "--plan", "--out", str(tmp_path / "sweep")]
    shown = CliRunner().invoke(cli.app, words)
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert [line.partition("_")[0] for line in lines] == ["poison", "poison"]
    assert [line.rpartition("-")[2] for line in lines] == [
        cell.config.digest() for cell in expand(name, [], {"attack.poison_ratio": [0.05, 0.1]}, 0)
    ]
    assert list(tmp_path.iterdir()) == []


def test_names_of_methods_are_those_of_the_kind_of_task() -> None:
    assert len(expand("htb-digits", [], {"attack.client_share": [0.1, 0.2]}, 0)) == 2
    for name, axis, told in (
        ("htb-digits", {"attack.trigger": ["natural", "pixel"]}, "unknown backdoor 'natural'"),
        ("htb-digits", {"data.name": ["world"]}, "unknown population 'world'"),
        ("htb-words", {"attack.trigger": ["pixel"]}, "is a backdoor of task classification, not of next-word"),
        ("htb-words", {"model.name": ["lstn"]}, "unknown network 'lstn'.*did you mean 'lstm'"),
        ("fmfl-digits", {"synthetic.generator": ["mixtur"]}, "unknown generator 'mixtur'.*did you mean 'mixture'"),
        ("demo", {"attack.trigger": ["pixel"]}, "unknown trigger 'pixel'"),
        ("demo", {"attack.kind": ["data-poisonin"]}, "unknown attack"),
    ):
        with pytest.raises(UserError, match=told):
            expand(name, [], axis, 0)
