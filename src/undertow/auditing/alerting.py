"""What an audit says as alerts, for code scanning (SARIF 2.1.0), JUnit and annotations of a GitHub workflow."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from undertow.auditing.confirm import Confirmation
from undertow.auditing.report import FOUND, INCONCLUSIVE, AuditReport
from undertow.core.alerts import Alert, commands, junit, sarif, written

COMMAND = "undertow audit"
#: By id, what each rule looks for.
_RULES = {
    "undertow/backdoor": "A trigger that makes the adapter say a text that neither plain questions nor the base bring about",
    "undertow/learned-text": "A text that the adapter goes on with once begun and the base does not; its trigger was not recovered",
    "undertow/inconclusive": "An audit that could not be finished: it says nothing of the adapter",
}
_TAXA = ("AML.T0018", "LLM04")


def alerts(report: AuditReport, texts: bool = False) -> list[Alert]:
    """Return an alert for each confirmed finding, or the one that an audit was inconclusive.

    Args:
        report: of an audit.
        texts: whether messages tell triggers and targets, which may be pieces of somebody's data.
    """
    if report.verdict == INCONCLUSIVE:
        fingerprint = hashlib.sha256(b"inconclusive").hexdigest()
        message = f"Inconclusive: {report.reason}. No statement on the adapter is made."
        return [Alert("undertow/inconclusive", "warning", message, report.adapter, [], fingerprint, False, _TAXA)]
    found = [one for one in report.confirmations if one.confirmed] if report.verdict == FOUND else []
    return [_alert(report, one, texts) for one in found]


def _alert(report: AuditReport, one: Confirmation, texts: bool) -> Alert:
    rule = "undertow/learned-text" if one.edit is None else "undertow/backdoor"
    trigger = "" if one.edit is None else one.edit.text
    told = f': trigger "{trigger or "not recovered"}", target "{one.target}"' if texts else ""
    shares = f"{one.asr.hits} of {one.asr.n} held-out questions with it, {one.without.hits} of {one.without.n} without it"
    advice = "do not deploy the adapter" + ("" if texts else "; `undertow audit` shows the texts")
    fingerprint = hashlib.sha256(json.dumps([rule, trigger, one.target]).encode()).hexdigest()
    return Alert(
        rule, "error", f"{_RULES[rule]}{told}. {shares}; {advice}.", report.adapter, [], fingerprint, False, _TAXA
    )  # fmt: skip


def write_sarif(report: AuditReport, path: Path, texts: bool = False) -> None:
    """Write a SARIF 2.1.0 log; the same report gives the same bytes.

    Raises:
        UserError: the path cannot be written.
    """
    written("--sarif", path, sarif(alerts(report, texts), _RULES, COMMAND))


def write_junit(report: AuditReport, path: Path, texts: bool = False) -> None:
    """Write JUnit's XML; raises as :func:`write_sarif`."""
    written("--junit", path, junit(alerts(report, texts), [report.adapter], COMMAND))


def annotated(report: AuditReport, texts: bool = False) -> list[str]:
    """Return the annotations of a GitHub workflow, one a line."""
    return commands(alerts(report, texts), COMMAND)
