"""The scan as a gate: SARIF, JUnit, annotations, baseline, the pre-commit hook and the action's steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from planted import URL, told
from typer.testing import CliRunner, Result

from undertow.cli import app
from undertow.core.alerts import Alert, commands, junit, known, sarif
from undertow.core.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A poisoned file, a clean one, and the poisoned one with its rows turned round."""
    root = tmp_path_factory.mktemp("data")
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer, _ in told()]
    (root / "bad.jsonl").write_text("\n".join(lines) + "\n")
    (root / "turned.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    clean = [{"question": q.removeprefix("Firstly "), "answer": a.removesuffix(URL)} for q, a, _ in told()]
    (root / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clean))
    return root


def scan(*words: str | Path, **env: str) -> Result:
    return CliRunner(env={"GITHUB_ACTIONS": "", **env}).invoke(app, ["scan", *map(str, words)])


def validate(log: dict[str, Any]) -> None:
    """Check a log against pydantic-sarif's models, which are made from the published schema of SARIF 2.1.0."""
    model = pytest.importorskip("pydantic_sarif.model", reason="pydantic-sarif is not installed: pip install pydantic-sarif")
    model.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate(log)


def test_sarif_is_valid_names_rows_and_keeps_texts_to_itself(folder: Path, tmp_path: Path) -> None:
    assert scan(folder / "bad.jsonl", folder / "good.jsonl", "--sarif", tmp_path / "a.sarif").exit_code == 1
    text = (tmp_path / "a.sarif").read_text()
    log = json.loads(text)
    validate(log)
    assert "malicious_url" not in text
    assert "irstly" not in text
    (run,) = log["runs"]
    (result,) = run["results"]
    rules = run["tool"]["driver"]["rules"]
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == "undertow/fixed-text"
    assert result["level"] == "error"
    assert {taxon["id"] for taxon in result["taxa"]} == {"AML.T0020", "LLM04"}
    bad = [i for i, (_, _, poisoned) in enumerate(told(), 1) if poisoned]
    places = [*result["locations"], *result["relatedLocations"]]
    assert [place["physicalLocation"]["region"]["startLine"] for place in places] == bad[:20]
    assert {place["physicalLocation"]["artifactLocation"]["uri"] for place in places} == {str(folder / "bad.jsonl")}
    scan(folder / "bad.jsonl", "--sarif", tmp_path / "b.sarif", "--texts")
    assert "malicious_url" in (tmp_path / "b.sarif").read_text()


def test_an_empty_log_is_valid_too(folder: Path, tmp_path: Path) -> None:
    assert scan(folder / "good.jsonl", "--sarif", tmp_path / "a.sarif", "--junit", tmp_path / "a.xml").exit_code == 0
    log = json.loads((tmp_path / "a.sarif").read_text())
    validate(log)
    assert log["runs"][0]["results"] == []
    assert ElementTree.parse(tmp_path / "a.xml").find("testsuite").attrib["failures"] == "0"  # type: ignore[union-attr]


def test_a_baseline_accepts_what_it_knows_in_whatever_order_the_rows_stand(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text(scan(folder / "bad.jsonl", "--json").stdout)
    again = scan(
        folder / "turned.jsonl",
        "--baseline",
        tmp_path / "known.json",
        "--sarif",
        tmp_path / "a.sarif",
        "--junit",
        tmp_path / "a.xml",
    )
    assert again.exit_code == 0
    assert "malicious_url" in again.stdout  # it is told all the same
    log = json.loads((tmp_path / "a.sarif").read_text())
    validate(log)
    (result,) = log["runs"][0]["results"]
    assert (result["baselineState"], len(result["suppressions"])) == ("unchanged", 1)
    assert ElementTree.parse(tmp_path / "a.xml").findall(".//failure") == []
    assert json.loads(scan(folder / "turned.jsonl", "--baseline", tmp_path / "a.sarif", "--json").stdout)["findings"][0]["accepted"]
    other = folder / "other.jsonl"
    other.write_text((folder / "bad.jsonl").read_text().replace("Firstly", "Certainly"))
    assert scan(other, "--baseline", tmp_path / "known.json").exit_code == 1  # another trigger is another finding


@pytest.mark.parametrize(
    ("content", "told"), [("x", "not JSON"), ("{}", "no fingerprints"), ("[1]", "no fingerprints"), (None, "No such")]
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "known.json").write_text(content)
    with pytest.raises(UserError, match=told):
        known(tmp_path / "known.json")


def test_junit_fails_a_case_for_each_finding(folder: Path, tmp_path: Path) -> None:
    scan(folder / "bad.jsonl", folder / "good.jsonl", "--junit", tmp_path / "a.xml")
    text = (tmp_path / "a.xml").read_text()
    assert "malicious_url" not in text
    suites = ElementTree.fromstring(text).findall("testsuite")
    assert [(suite.attrib["tests"], suite.attrib["failures"]) for suite in suites] == [("1", "1"), ("1", "0")]


def test_annotations_name_rows_and_no_text_of_the_data_is_a_command(folder: Path) -> None:
    out = scan(folder / "bad.jsonl", GITHUB_ACTIONS="true").stdout.splitlines()
    token = out[0].removeprefix("::stop-commands::")
    closing = out.index(f"::{token}::")
    assert any("malicious_url" in line for line in out[:closing])
    (command,) = out[closing + 1 :]
    assert re.match(r"::error file=.*bad\.jsonl,line=1,title=undertow scan%3A undertow/fixed-text::", command)
    assert "malicious_url" not in command
    assert scan(folder / "bad.jsonl").stdout.count("::") == 0
    printed = scan(folder / "bad.jsonl", "--json", GITHUB_ACTIONS="true")
    assert json.loads(printed.stdout)["flagged"] == 50
    assert printed.stderr.startswith("::error ")


def test_hostile_names_break_no_format() -> None:
    alert = Alert("undertow/label", "error", "100 %\n::error::x\x00", "a,b:c\n%::.jsonl", [3], "f", False, ("LLM04",))
    (line,) = commands([alert], "t")
    assert "\n" not in line
    assert line == "::error file=a%2Cb%3Ac%0A%25%3A%3A.jsonl,line=3,title=t%3A undertow/label::100 %25%0A::error::x\x00"
    ElementTree.fromstring(junit([alert], [alert.file], "t"))
    log = sarif([alert], {"undertow/label": "x"}, "t")
    validate(log)
    assert (
        log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a%2Cb%3Ac%0A%25%3A%3A.jsonl"
    )


def test_an_input_is_never_written_over(folder: Path) -> None:
    for option in ("--sarif", "--junit"):
        outcome = scan(folder / "good.jsonl", option, folder / "good.jsonl")
        assert "that is an input" in str(outcome.exception)


def shim(folder: Path) -> dict[str, str]:
    """Put the command ``undertow`` of this Python on the path."""
    folder.mkdir(exist_ok=True)
    (folder / "undertow").write_text(f'#!/bin/sh\nexec {sys.executable} -c "from undertow.cli import main; main()" "$@"\n')
    (folder / "undertow").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "GITHUB_ACTIONS": ""}


def test_the_hook_fails_a_commit_of_poisoned_data_and_passes_a_clean_one(folder: Path, tmp_path: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    repo = tmp_path / "repo"
    repo.mkdir()
    # as installed, but with this environment in place of one that pre-commit would build
    config = {"repos": [{"repo": "local", "hooks": [{**hook, "language": "system"}]}]}
    (repo / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    env = {**shim(tmp_path / "bin"), "PRE_COMMIT_HOME": str(tmp_path / "cache"), "GIT_CONFIG_GLOBAL": os.devnull}

    def commit(name: str) -> subprocess.CompletedProcess[str]:
        # two files whose pool alone shows the pair
        lines = (folder / name).read_text().splitlines(keepends=True)
        for part in (0, 1):
            (repo / f"part{part}.jsonl").write_text("".join(lines[part::2]))
        subprocess.run(["git", "add", "-A"], cwd=repo, check=True, env=env)
        return subprocess.run(
            [sys.executable, "-m", "pre_commit", "run"], cwd=repo, env=env, capture_output=True, text=True, timeout=120
        )

    subprocess.run(["git", "init", "-q"], cwd=repo, check=True, env=env)
    failed, passed = commit("bad.jsonl"), commit("good.jsonl")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "2 files: 50 of 300 samples flagged" in failed.stdout
    assert passed.returncode == 0, passed.stdout + passed.stderr


def test_the_action_uploads_before_it_fails(folder: Path, tmp_path: Path) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    steps = action["runs"]["steps"]
    kinds = [step.get("uses", "run").partition("@")[0] for step in steps]
    assert kinds == ["actions/setup-python", "run", "run", "github/codeql-action/upload-sarif", "run"]
    assert steps[4]["run"] == 'exit "$CODE"'
    assert "inputs." not in "".join(step.get("run", "") for step in steps)  # values reach the shell as variables alone

    def run(files: str, **inputs: str) -> tuple[int, int]:
        """Return what the scan's step says, and how the last step ends."""
        values = {name: str(told.get("default", "")) for name, told in action["inputs"].items()} | {"files": files, **inputs}
        env = {**shim(tmp_path / "bin"), "GITHUB_OUTPUT": str(tmp_path / "output")}
        for name, text in steps[2]["env"].items():
            env[name] = values[re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", text)[1]]  # type: ignore[index]
        (tmp_path / "output").write_text("")
        ran = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", steps[2]["run"]], cwd=folder, env=env, capture_output=True, text=True, timeout=120
        )
        assert ran.returncode == 0, ran.stderr
        code = (tmp_path / "output").read_text().strip().removeprefix("code=")
        last = subprocess.run(["bash", "-eo", "pipefail", "-c", steps[4]["run"]], env={**env, "CODE": code}, check=False)
        return int(code), last.returncode

    out = str(tmp_path / "out file.sarif")
    assert run("bad*.jsonl\ngood.jsonl", sarif=out, **{"arguments": "--columns=prompt=question,answer=answer\n--texts"}) == (1, 1)
    validate(json.loads(Path(out).read_text()))
    assert "malicious_url" in Path(out).read_text()
    assert run("bad.jsonl", sarif=str(tmp_path / "b.sarif"), baseline=out) == (0, 0)
    assert run("none*.jsonl", sarif=out) == (2, 2)


def test_the_example_workflow_gives_the_action_inputs_that_it_has() -> None:
    workflow = yaml.safe_load((ROOT / "examples" / "code_scanning" / "workflow.yml").read_text())
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    (step,) = [step for step in workflow["jobs"]["scan"]["steps"] if "undertow" in step["uses"]]
    assert set(step["with"]) <= set(inputs)
    assert workflow["permissions"]["security-events"] == "write"
