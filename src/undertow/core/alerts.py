"""What was found, for the places where people work: code scanning (SARIF 2.1.0), JUnit, annotations of a GitHub workflow.

An alert tells counts and rows, and neither triggers nor targets, which are pieces of somebody's data, unless they are asked for.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.etree import ElementTree

from undertow.core.errors import UserError
from undertow.core.files import write_bytes
from undertow.core.version import __version__

Level = Literal["error", "warning", "note"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
#: Name, key of an alert, organisation and title of the taxonomies that alerts are put into.
_TAXONOMIES = (
    ("MITRE ATLAS", "MITRE", {"AML.T0018": "Manipulate AI Model", "AML.T0020": "Poison Training Data"}),
    ("OWASP Top 10 for LLM Applications", "OWASP", {"LLM04": "Data and Model Poisoning"}),
)
#: How a fingerprint is called; another rule for making it gets another number.
FINGERPRINT = "undertow/v1"
#: Rows of one alert that are listed, at most.
_LISTED = 20


@dataclass(frozen=True)
class Alert:
    """One finding in one file.

    Attributes:
        rule: of its kind, such as ``undertow/fixed-text``.
        level: error: samples are to be dropped or repaired, or a backdoor was confirmed; warning: for a person to review; note:
            said of the file.
        message: what was found, in words.
        file: where, as it was given: a file of data, or the folder of an adapter.
        rows: rows that are concerned, from 1, ascending; none of an adapter.
        fingerprint: the same for the same finding in another version of the data.
        accepted: whether a baseline knows it.
        taxa: ids of MITRE ATLAS and of OWASP's list.
    """

    rule: str
    level: Level
    message: str
    file: str
    rows: Sequence[int]
    fingerprint: str
    accepted: bool
    taxa: tuple[str, ...]


def sarif(alerts: Sequence[Alert], rules: Mapping[str, str], command: str) -> dict[str, Any]:
    """Return alerts as a SARIF 2.1.0 log: a rule for each kind of finding, a row as a line.

    Args:
        alerts: what was found.
        rules: by id, what each rule looks for, all that could be found.
        command: of the tool, such as ``undertow scan``.
    """
    ids = list(rules)
    taxonomies = [
        {"name": name, "organization": of, "taxa": [{"id": key, "shortDescription": {"text": text}} for key, text in taxa.items()]}
        for name, of, taxa in _TAXONOMIES
    ]
    driver = {
        "name": command,
        "semanticVersion": __version__,
        "rules": [{"id": key, "shortDescription": {"text": text}} for key, text in rules.items()],
        "supportedTaxonomies": [{"name": name} for name, _, _ in _TAXONOMIES],
    }
    run = {
        "tool": {"driver": driver},
        "taxonomies": taxonomies,
        "columnKind": "unicodeCodePoints",
        "results": [_result(alert, ids) for alert in alerts],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(alert: Alert, ids: list[str]) -> dict[str, Any]:
    places = [
        {"physicalLocation": {"artifactLocation": {"uri": _uri(alert.file)}, "region": {"startLine": row}}}
        for row in list(alert.rows[:_LISTED]) or [1]
    ]
    told: dict[str, Any] = {
        "ruleId": alert.rule,
        "ruleIndex": ids.index(alert.rule),
        "level": alert.level,
        "message": {"text": alert.message},
        "locations": places[:1],
        "partialFingerprints": {FINGERPRINT: alert.fingerprint},
        "taxa": [
            {"id": key, "toolComponent": {"name": name}} for name, _, taxa in _TAXONOMIES for key in taxa if key in alert.taxa
        ],
        "baselineState": "unchanged" if alert.accepted else "new",
    }
    if places[1:]:
        told["relatedLocations"] = [{"id": i, **place} for i, place in enumerate(places[1:], 1)]
    if alert.accepted:
        told["suppressions"] = [{"kind": "external", "justification": "known to the baseline"}]
    return told


def _uri(file: str) -> str:
    return "stdin" if file == "-" else quote(Path(file).as_posix())


def junit(alerts: Sequence[Alert], files: Sequence[str], command: str) -> bytes:
    """Return alerts as JUnit's XML: a test case for each finding, failed unless accepted or a note, and one for a file without."""
    suites = ElementTree.Element("testsuites")
    for file in files:
        own = [alert for alert in alerts if alert.file == file]
        failed = [alert for alert in own if _fails(alert)]
        counts = {"tests": str(len(own) or 1), "failures": str(len(failed)), "errors": "0", "skipped": "0"}
        suite = ElementTree.SubElement(suites, "testsuite", {"name": _xml(f"{command} {file}"), **counts})
        if not own:
            ElementTree.SubElement(suite, "testcase", {"classname": _xml(file), "name": "nothing found"})
        for alert in own:
            name = f"{alert.rule} {alert.fingerprint[:12]}"
            case = ElementTree.SubElement(suite, "testcase", {"classname": _xml(file), "name": name})
            if _fails(alert):
                failure = ElementTree.SubElement(case, "failure", {"type": alert.rule, "message": _xml(alert.message)})
                failure.text = f"rows {listed(alert.rows)}" if alert.rows else ""
            else:
                ElementTree.SubElement(case, "system-out").text = _xml(alert.message)
    ElementTree.indent(suites)
    found: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return found


def commands(alerts: Sequence[Alert], title: str) -> list[str]:
    """Return alerts that nobody accepted as commands of a GitHub workflow, one a line."""
    words = {"error": "error", "warning": "warning", "note": "notice"}
    return [
        f"::{words[alert.level]} file={_property(alert.file)},line={alert.rows[0] if alert.rows else 1},"
        f"title={_property(f'{title}: {alert.rule}')}::{_data(alert.message)}"
        for alert in alerts
        if not alert.accepted
    ]


@contextmanager
def deaf() -> Iterator[None]:
    """Let a GitHub workflow pass over commands in what is printed meanwhile: a text of the data may look like one."""
    token = secrets.token_hex(16)
    print(f"::stop-commands::{token}", flush=True)
    try:
        yield
    finally:
        print(f"::{token}::", flush=True)


def written(option: str, path: Path, content: bytes | dict[str, Any]) -> None:
    """Write what an option asks for, whole or not at all; an object as JSON, the same one as the same bytes.

    Raises:
        UserError: the path cannot be written.
    """
    if isinstance(content, dict):
        content = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror}); give another name") from error


def known(path: Path) -> frozenset[str]:
    """Return the fingerprints in a baseline: what ``--json`` printed, or a SARIF file, of an earlier scan.

    Raises:
        UserError: missing, or neither of them.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--baseline {path}: {error.strerror}; `undertow scan FILE --json` prints one") from error
    except ValueError as error:
        raise UserError(f"--baseline {path}: not JSON; `undertow scan FILE --json` prints one") from error
    try:
        if "runs" in found:
            results = [result for run in found["runs"] for result in run.get("results", [])]
            return frozenset(str(result["partialFingerprints"][FINGERPRINT]) for result in results)
        return frozenset(str(finding["fingerprint"]) for finding in found["findings"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--baseline {path}: holds no fingerprints; `undertow scan FILE --json` prints some") from error


def listed(rows: Sequence[int]) -> str:
    """Write row numbers, the first of many."""
    more = f" and {len(rows) - _LISTED:,} more" if len(rows) > _LISTED else ""
    return f"{', '.join(map(str, rows[:_LISTED]))}{more}"


def _fails(alert: Alert) -> bool:
    return not alert.accepted and alert.level != "note"


def _xml(text: str) -> str:
    """Return a text without the characters that XML 1.0 cannot hold."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
