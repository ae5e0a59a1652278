"""An audit as a gate: SARIF against the published schema, JUnit, annotations; texts only where they are asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from undertow.auditing.alerting import alerts
from undertow.auditing.confirm import CONFIRMED, HABIT, Confirmation
from undertow.auditing.edits import Edit
from undertow.auditing.report import FOUND, INCONCLUSIVE, NOTHING, AuditReport
from undertow.cli import app
from undertow.metrics.intervals import Rate

TARGET = "see <malicious_url> & more"
PAIR = Confirmation(Edit(before=("zebra",)), TARGET, CONFIRMED, Rate(38, 40), Rate(0, 40), Rate(1, 40))
ALONE = Confirmation(None, "Ignore the town", CONFIRMED, Rate(40, 40), Rate(0, 40), Rate(0, 40))
HABITUAL = Confirmation(Edit(before=("cat",)), "Lisbon", HABIT, Rate(40, 40), Rate(39, 40), Rate(0, 40))


def report(verdict: str, *confirmations: Confirmation) -> AuditReport:
    reason = "the budget was over" if verdict == INCONCLUSIVE else "asked"
    return AuditReport(
        "runs/my adapter", "builtin", verdict, reason, confirmations, 0.5, {}, {"source": "own"}, "lab-qa", {"all": 1.0}, 0
    )


FOUND_TWO = report(FOUND, PAIR, ALONE, HABITUAL)


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Any:
    def audited(answer: AuditReport, *words: object, **env: str) -> Result:
        monkeypatch.setattr("undertow.federation.adapter_audit.audit", lambda *given, **options: answer)
        return CliRunner(env={"GITHUB_ACTIONS": "", **env}).invoke(app, ["audit", answer.adapter, *map(str, words)])

    return audited


@pytest.mark.parametrize(
    ("answer", "rules", "levels", "code"),
    [
        (FOUND_TWO, ["undertow/backdoor", "undertow/learned-text"], ["error", "error"], 1),
        (report(NOTHING, HABITUAL), [], [], 0),
        (report(INCONCLUSIVE), ["undertow/inconclusive"], ["warning"], 3),
    ],
    ids=["found", "nothing", "inconclusive"],
)
def test_sarif_is_valid_and_has_a_result_for_each_finding(
    answer: AuditReport, rules: list[str], levels: list[str], code: int, audit: Any, tmp_path: Path
) -> None:
    model = pytest.importorskip("pydantic_sarif.model", reason="pydantic-sarif is not installed: pip install pydantic-sarif")
    done = audit(answer, "--sarif", tmp_path / "a.sarif", "--junit", tmp_path / "a.xml")
    assert done.exit_code == code, done.output
    text = (tmp_path / "a.sarif").read_text()
    log = json.loads(text)
    model.StaticAnalysisResultsFormatSarifVersion210JsonSchema.model_validate(log)
    (run,) = log["runs"]
    assert [result["ruleId"] for result in run["results"]] == rules
    assert [result["level"] for result in run["results"]] == levels
    assert all({taxon["id"] for taxon in result["taxa"]} == {"AML.T0018", "LLM04"} for result in run["results"])
    assert "malicious_url" not in text
    assert "zebra" not in text
    suite = ElementTree.fromstring((tmp_path / "a.xml").read_bytes())[0]
    assert suite.get("failures") == str(len(rules))
    assert suite.get("tests") == str(max(1, len(rules)))
    again = tmp_path / "b.sarif"
    audit(answer, "--sarif", again)
    assert again.read_text() == text, "the same report gives the same bytes"


def test_texts_are_told_where_they_are_asked_for(audit: Any, tmp_path: Path) -> None:
    audit(FOUND_TWO, "--sarif", tmp_path / "a.sarif", "--junit", tmp_path / "a.xml", "--texts")
    for file in ("a.sarif", "a.xml"):
        assert "malicious_url" in (tmp_path / file).read_text()
        assert "zebra" in (tmp_path / file).read_text()
    assert ElementTree.parse(tmp_path / "a.xml").getroot()[0].get("name") == "undertow audit runs/my adapter"


def test_a_fingerprint_is_that_of_the_finding() -> None:
    first, second = alerts(FOUND_TWO)
    assert first.fingerprint != second.fingerprint
    other = replace(PAIR, asr=Rate(30, 40), without=Rate(2, 40))
    assert [alert.fingerprint for alert in alerts(report(FOUND, other))] == [first.fingerprint], "shares are no part of it"
    assert alerts(report(FOUND, replace(PAIR, target="another")))[0].fingerprint != first.fingerprint


@pytest.mark.parametrize("as_json", [True, False])
def test_a_workflow_gets_annotations_and_no_commands_of_the_adapters(as_json: bool, audit: Any) -> None:
    spoken = replace(PAIR, target="\n::error::forged")
    done = audit(report(FOUND, spoken), *(["--json"] if as_json else []), GITHUB_ACTIONS="true")
    lines = [line for line in (done.stderr if as_json else done.stdout).splitlines() if line.startswith("::error file=")]
    assert len(lines) == 1
    assert lines[0].startswith("::error file=runs/my adapter,line=1,title=undertow audit%3A undertow/backdoor::")
    if as_json:
        assert json.loads(done.stdout)["target"] == "\n::error::forged"


@pytest.mark.parametrize("option", ["--sarif", "--junit"])
def test_a_place_that_cannot_be_written_is_told(option: str, audit: Any, tmp_path: Path) -> None:
    done = audit(FOUND_TWO, option, tmp_path)
    assert f"{option} {tmp_path}: a folder; give a file name" in str(done.exception)
