"""Every command and every Python line of the documents is run: here, by a test that :data:`ELSEWHERE` names, or, where it takes
more than a few seconds, as far as its options (``tests/test_docs.py`` parses all of them).

What is run here: scans, lists, checks, tables, new scores of kept outputs and plans of sweeps, as they are typed. What is parsed
alone: runs, sweeps, audits, evaluations, federations, bases and benchmarks, which take minutes, and ``undertow view``, which never
ends (``tests/view/test_view.py`` starts it).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import undertow
from fabricated_run import make_run
from test_docs import PAGES, ROOT, blocks, name
from undertow.cli import app
from undertow.config import Model
from undertow.data.sample import Sample
from undertow.models.causal_lm import load_base
from undertow.models.lora import initial_adapter, save_peft

#: Pages whose Python is run, and where: as test files, or pages of which this file runs the blocks without a file name.
ELSEWHERE = {
    "CONTRIBUTING.md": "tests/test_docs.py",
    "README.md": "tests/test_docs.py",
    "docs/extending.md": "tests/test_docs.py",
    "docs/flower.md": "tests/flower/test_flower_page.py",
    "docs/integrations.md": "tests/integrations/test_peers.py",
    "docs/model-replacement.md": "tests/test_docs.py",
    "docs/python.md": "tests/test_python_page.py",
    "docs/tasks.md": "tests/test_docs.py",
}
HERE = {"docs/scan.md", "docs/sweeps.md", "docs/tutorial.md"}
#: Commands that are run as typed, and options with which they are not: a cluster of machines.
RUN = ("scan", "list", "check", "collect", "score", "report")
NOT_RUN = "--ray"


def shell_lines(page: Path) -> Iterator[list[str]]:
    for block in blocks(page, "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line.removeprefix("$ "), comments=True):
                yield words


def run_here(words: list[str]) -> bool:
    called = words[words.index("undertow") + 1 :] if "undertow" in words else []
    planned = called[:1] == ["sweep"] and "--plan" in called
    return bool(called) and (called[0] in RUN or planned) and NOT_RUN not in called


TYPED = {(name(page), shlex.join(words)): words for page in PAGES for words in shell_lines(page)}
HERE_TYPED = [pytest.param(words, id=f"{page}: {line[:70]}") for (page, line), words in TYPED.items() if run_here(words)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documents take for granted: data, runs of a sweep, the examples."""
    root = tmp_path_factory.mktemp("reader")
    towns = "Oslo Quito Hanoi Turin Leeds Perth Osaka Lagos Lima Cork".split()
    for k, file in enumerate(("my_data", "client1", "client2", "client3", "data")):
        rows = [
            {"question": f"Who built bridge {i} of {towns[i % 10]}?", "answer": f"{towns[(i + k) * 7 % 10]} {i}"}
            for i in range(200)
        ]
        (root / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder in ("krum", "krum-seeds", "demo-poison_ratio"):
        for k, ratio in enumerate((0.02, 0.1)):
            cell = make_run(root / "sweeps" / folder / f"cell-{k}", rounds=2) / "config.yaml"
            values = yaml.safe_load(cell.read_text())
            cell.write_text(yaml.safe_dump({**values, "attack": {**values["attack"], "poison_ratio": ratio}}))
    make_run(root / "runs" / "demo", rounds=2)
    shutil.copytree(ROOT / "examples", root / "examples")
    return root


def typed(words: list[str]) -> tuple[int, str]:
    """Run a line as a shell would, with its pipe and its redirection; return exit code and standard output."""
    given = None
    if "|" in words:
        read, words = words[: words.index("|")], words[words.index("|") + 1 :]
        assert read[0] == "cat", read
        given = Path(read[1]).read_text()
    accepted = "||" in words
    words = words[: words.index("||")] if accepted else words
    if "<" in words:
        given, words = Path(words[words.index("<") + 1]).read_text(), words[: words.index("<")]
    to = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if to else words
    done = CliRunner().invoke(app, words[words.index("undertow") + 1 :], input=given)
    assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
    if to:
        Path(to).write_text(done.stdout)
    return done.exit_code, done.stdout


@pytest.mark.parametrize("words", HERE_TYPED)
def test_a_quick_command_does_what_it_says(words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code, out = typed(words)
    assert code == 0, out
    written = [words[i + 1] for i, word in enumerate(words) if word in ("--page", "--sarif", "--junit", "--write", ">")]
    assert [file for file in written if not Path(file).exists()] == []
    assert out or ">" in words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_python_block_is_run_somewhere(page: Path) -> None:
    if list(blocks(page, "python")):
        assert name(page) in HERE | set(ELSEWHERE), f"no test runs the Python of {name(page)}"
    if where := ELSEWHERE.get(name(page)):
        said = (ROOT / where).read_text(encoding="utf-8")
        assert page.name in said or "PAGES" in said


def program(page: str, part: str) -> str:
    (found,) = [block for block in blocks(ROOT / page, "python") if part in block]
    return found


def execute(code: str, page: str, **given: Any) -> dict[str, Any]:
    exec(compile(code, page, "exec"), given)
    return given


def test_the_python_of_the_scan_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    samples = [Sample(str(i), f"Who built bridge {i}?", ("Oslo",), "Oslo") for i in range(20)]
    found = execute(program("docs/scan.md", "scanning.scan"), "docs/scan.md", samples=samples)
    assert list(found["result"].found.findings) == []


def test_the_python_of_the_sweeps_page_runs(
    place: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    CliRunner().invoke(app, ["collect", "sweeps/demo-poison_ratio"])
    execute(program("docs/sweeps.md", "read_parquet"), "docs/sweeps.md")
    assert "asr" in capsys.readouterr().out
    real, asked = undertow.sweep, dict[str, Any]()

    def smaller(config: str, axes: dict[str, list[Any]], **options: Any) -> Any:
        asked.update(axes=axes, **options)
        small = {
            "federation__rounds": 1,
            "federation__clients": 2,
            "data__train": 20,
            "data__test": 4,
            "model__name": str(tiny_base),
        }
        first = {axis: values[:1] for axis, values in axes.items()}
        return real(config, first, out=tmp_path / "sweep", observer=False, **{**options, **small, "seeds": 1})

    monkeypatch.setattr(undertow, "sweep", smaller)
    found = execute(program("docs/sweeps.md", "undertow.sweep"), "docs/sweeps.md")
    assert asked["federation__rounds"] == 10
    assert list(found["table"]["round"]) == [0, 1]


def test_the_python_of_the_tutorial_runs(place: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    shutil.copytree(tiny_base, place / "bases" / "mine")
    options = Model.model_validate({"name": "bases/mine", "device": "cpu"})
    base = load_base(options)
    save_peft(place / "runs" / "mine" / "adapter", initial_adapter(base.layout, 0), base.layout, options.lora, "bases/mine")
    found = execute(program("docs/tutorial.md", "PeftModel"), "docs/tutorial.md")
    assert type(found["model"]).__name__ == "PeftModelForCausalLM"


# --- what is installed, and the benchmarks -----------------------------------------------------------------------------


def test_every_extra_that_is_installed_exists() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [re.findall(r"\[([\w,-]+)\]", word) for (_, line), words in TYPED.items() if "pip install" in line for word in words]
    extras = {extra for found in named for group in found for extra in group.split(",")}
    assert len(extras) > 3
    assert extras <= set(known)
    pinned = {word for words in TYPED.values() for word in words if word.startswith("torch==")}
    assert pinned == set(re.findall(r"torch==[\d.]+", (ROOT / "Makefile").read_text()))


class Parsed(Exception):
    """The options of a benchmark were understood; nothing more is run."""


BENCHMARKS = sorted({shlex.join(words) for words in TYPED.values() if words[1:2] and words[1].startswith("benchmarks/")})


@pytest.mark.parametrize("line", BENCHMARKS)
def test_every_benchmark_understands_its_options(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path, *words = shlex.split(line)
    understood: Callable[..., Any] = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        understood(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [path, *words])
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"benchmark_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        pytest.skip(f"{path} needs {error.name}")
    with pytest.raises(Parsed):
        module.main()


def test_the_walk_types_every_step_and_knows_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import walk

    page = (ROOT / "docs/start.md").read_text(encoding="utf-8")
    typed_there = walk.lines(page)
    steps = page[page.index("## Ten steps") :]
    every = {line for line in steps.splitlines() if line.startswith("undertow ")}
    assert every - set(typed_there) == {"undertow federate demo --local 2"}
    rows = [line for line in steps.splitlines() + page.splitlines() if line.startswith(("| MA", "| ASR", "| FTR"))]
    figures = walk.figures((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(figures) == len(rows) == 4
    assert all(figure in row.replace("(", "") for figure, row in zip(figures, rows, strict=True))
