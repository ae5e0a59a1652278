"""The report of an audit as one HTML page that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from undertow.core import files
from undertow.core.errors import UserError
from undertow.core.version import __version__
from undertow.metrics.intervals import Rate


def write_page(report: Any, path: Path) -> None:
    """Write the page of an :class:`~undertow.auditing.report.AuditReport`.

    Raises:
        UserError: the path cannot be written.
    """
    loader = PackageLoader("undertow.runs.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["share"] = _share
    text = environment.get_template("audit.html.j2").render(report=report, steps=report.steps, version=__version__)
    try:
        files.write_text(path, text)
    except OSError as error:
        raise UserError(f"--page {path}: cannot be written ({error.strerror}); give another name") from error


def _share(rate: Rate) -> str:
    if rate.value is None:
        return "–"
    return f"{100 * rate.value:.0f} % ({100 * (rate.low or 0):.0f} to {100 * (rate.high or 0):.0f}), n = {rate.n}"
