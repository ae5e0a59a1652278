"""What ``undertow scan`` prints on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.scanning.scan import Scan

#: Findings that are printed; all are in --json and on the page.
_SHOWN = 20


def print_summary(result: Scan, page: Path | None = None) -> None:
    """Print findings and counts in a few lines."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    found = result.found
    files = result.files[0] if len(result.files) == 1 else f"{len(result.files)} files"
    console.print(f"{escape(files)}: {headline(result)}", soft_wrap=True)
    console.print(escape(result.account.sentence(scanned=True)), soft_wrap=True, highlight=False)
    if found.findings:
        table = Table(box=None, pad_edge=False)
        for column in ("trigger", "target", "where", "kind", "verdict"):
            table.add_column(column, overflow="fold")
        for column in ("samples", "with both / trigger / target", "p (corrected)"):
            table.add_column(column, justify="right")
        for finding in found.findings[:_SHOWN]:
            table.add_row(
                escape(finding.trigger or "none found"),
                escape(finding.target),
                finding.place,
                finding.kind,
                "drop or repair" if finding.certain else finding.confidence,
                f"{len(finding.samples):,}",
                f"{finding.both:,} / {finding.with_trigger:,} / {finding.with_target:,}",
                probability(finding.log10_p),
            )
        console.print(table)
        if len(found.findings) > _SHOWN:
            console.print(f"and {len(found.findings) - _SHOWN} more; see --json or --page")
    for i, evidence in list(result.evidence.items())[:_SHOWN]:
        console.print(f"{escape(found.findings[i].target)}: {evidence.sentence()}", soft_wrap=True)
    if len(result.files) > 1 and found.verdicts:
        for name, flagged in by_file(result).items():
            console.print(f"{escape(name)}: {flagged:,} flagged", soft_wrap=True)
    for path, rows in result.written.items():
        console.print(f"written: {escape(path)}, {rows:,} rows; left out: {result.left_out[path]:,}", soft_wrap=True)
    if page:
        console.print(f"page: {escape(str(page))}", soft_wrap=True)


def headline(result: Scan) -> str:
    """Return the outcome in one sentence."""
    found = result.found
    if not found.verdicts:
        return f"nothing found in {found.samples:,} samples"
    acts = [verdict.act for verdict in found.verdicts]
    parts = [f"{acts.count(act):,} to {act}" for act in ("drop", "repair", "review") if act in acts]
    return f"{len(acts):,} of {found.samples:,} samples flagged ({', '.join(parts)})"


def by_file(result: Scan) -> dict[str, int]:
    """Return the flagged samples of each file."""
    counts = [0] * len(result.files)
    for verdict in found_samples(result):
        counts[result.file_of[verdict]] += 1
    return dict(zip(result.files, counts, strict=True))


def found_samples(result: Scan) -> list[int]:
    """Return the indices of the flagged samples."""
    return [verdict.sample for verdict in result.found.verdicts]


def probability(log10_p: float | None) -> str:
    """Show a corrected p-value given by its logarithm."""
    if log10_p is None:
        return "–"
    return f"{10**log10_p:.2g}" if log10_p > -4 else f"1e{log10_p:.0f}"
