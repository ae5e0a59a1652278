"""The findings of a scan as one HTML page that needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from undertow.core import files
from undertow.core.errors import UserError
from undertow.core.version import __version__
from undertow.scanning.scan import Scan
from undertow.scanning.summary import by_file, headline, probability
from undertow.scanning.writing import check_output

#: Verdicts listed; all are in --json.
_LISTED = 500
#: Characters of a sample's text that are shown, from its front and its end.
_SHOWN = 240


def write_page(result: Scan, path: Path) -> None:
    """Write the page; the same result gives the same bytes.

    Raises:
        UserError: the path is a scanned file or cannot be written.
    """
    check_output("--page", path, result.files)
    loader = PackageLoader("undertow.runs.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = "{:,}".format
    environment.filters["probability"] = probability
    verdicts = list(result.verdicts())
    examples = {}
    for i, found in result.examples.items():
        finding = result.found.findings[i]
        examples[i] = [
            (one, marked(_middle_out(one.question), finding.triggers), marked(_middle_out(one.response), (finding.target,)))
            for one in found
        ]
    text = environment.get_template("scan.html.j2").render(
        result=result,
        title=result.files[0] if len(result.files) == 1 else f"{len(result.files)} files",
        headline=headline(result),
        account=result.account.sentence(scanned=True),
        findings=result.found.findings,
        examples=examples,
        verdicts=verdicts[:_LISTED],
        unlisted=len(verdicts) - len(verdicts[:_LISTED]),
        by_file=by_file(result),
        version=__version__,
    )
    try:
        files.write_text(path, text)
    except OSError as error:
        raise UserError(f"--page {path}: cannot be written ({error.strerror}); give another name") from error


def marked(text: str, phrases: Sequence[str]) -> list[tuple[str, bool]]:
    """Cut a text into pieces, of which those are marked that are a phrase, in any case and with any marks between its words."""
    forms = [r"\W+".join(map(re.escape, words)) for phrase in phrases if (words := phrase.split())]
    if not forms:
        return [(text, False)]
    pieces, end = [], 0
    for found in re.finditer("|".join(forms), text, re.IGNORECASE):
        pieces += [(text[end : found.start()], False), (found.group(), True)]
        end = found.end()
    return [piece for piece in (*pieces, (text[end:], False)) if piece[0]]


def _middle_out(text: str) -> str:
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} … {text[-_SHOWN:]}"
