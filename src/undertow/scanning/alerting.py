"""The findings of a scan as alerts, one for each finding and file, and where they go."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from undertow.core.alerts import Alert, Level, commands, junit, listed, sarif, written
from undertow.sanitization.finding import Finding
from undertow.scanning.scan import Scan
from undertow.scanning.writing import check_output

COMMAND = "undertow scan"
#: By kind of finding, what its rule looks for.
_RULES = {
    "fixed text": "A planted text that answers share: words at their start or end, a whole answer, an address",
    "label": "A label that poison flipped: a short answer that a trigger brings about",
    "form": "A label of prompts that were rewritten to begin in one way",
    "slot": "A planted word in answers that differ otherwise",
    "kind of answer": "A planted manner of answers: another language, a refusal, a tone, capitals",
    "twin": "Prompts that stand in the data again without a few words, with other answers",
    "mention": "A name that answers bring up whatever they are asked",
    "repeat": "A few samples that stand in the data again and again",
}
_LEVELS: dict[str, Level] = {"act": "error", "review": "warning", "note": "note"}


def rule(kind: str) -> str:
    """Return the id of the rule for a kind of finding."""
    return f"undertow/{kind.replace(' ', '-')}"


def alerts(result: Scan, texts: bool = False) -> list[Alert]:
    """Return an alert for each finding and file.

    Args:
        result: of a scan.
        texts: whether messages tell triggers and targets, which are pieces of the data.
    """
    found = []
    for i, finding in enumerate(result.found.findings):
        rows: dict[int, set[int]] = defaultdict(set)
        for sample in finding.samples.tolist():
            rows[result.file_of[sample]].add(result.row_of[sample] + 1)
        for file in sorted(rows):
            own = sorted(rows[file])
            found.append(
                Alert(
                    rule=rule(finding.kind),
                    level=_LEVELS[finding.confidence],
                    message=_message(finding, own, texts),
                    file=result.files[file],
                    rows=own,
                    fingerprint=finding.fingerprint,
                    accepted=i in result.accepted,
                    taxa=(finding.atlas, finding.owasp),
                )
            )
    return found


def _message(finding: Finding, rows: list[int], texts: bool) -> str:
    what = _RULES[finding.kind]
    told = f'{what}: trigger "{finding.trigger or "none found"}", target "{finding.target}"' if texts else what
    advice = {
        "act": "drop or repair these rows before training (--write does)",
        "review": "a person should look at them",
        "note": "no row is flagged",
    }[finding.confidence]
    hint = "" if texts else "; `undertow scan` shows the texts"
    return f"{told}. {len(rows):,} rows: {listed(rows)}. {finding.why[0].upper()}{finding.why[1:]}; {advice}{hint}."


def write_sarif(result: Scan, path: Path, texts: bool = False) -> None:
    """Write a SARIF 2.1.0 log; the same result gives the same bytes.

    Raises:
        UserError: the path is a scanned file, or cannot be written.
    """
    check_output("--sarif", path, result.files)
    written("--sarif", path, sarif(alerts(result, texts), {rule(kind): text for kind, text in _RULES.items()}, COMMAND))


def write_junit(result: Scan, path: Path, texts: bool = False) -> None:
    """Write JUnit's XML; raises as :func:`write_sarif`."""
    check_output("--junit", path, result.files)
    written("--junit", path, junit(alerts(result, texts), result.files, COMMAND))


def annotated(result: Scan, texts: bool = False) -> list[str]:
    """Return the annotations of a GitHub workflow, one a line."""
    return commands(alerts(result, texts), COMMAND)
