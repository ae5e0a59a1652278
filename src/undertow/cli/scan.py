"""Data before training: scan."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.app import app, print_json
from undertow.core.errors import UserError
from undertow.core.files import check_files

if TYPE_CHECKING:
    from undertow.scanning.scan import Scan


class FailOn(StrEnum):
    """From which verdict on a scan ends with exit code 1."""

    ACT = "act"
    REVIEW = "review"
    NEVER = "never"


Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Instruction files, or - for standard input.")]
Write = Annotated[Path | None, typer.Option(help="Write clean and repaired samples here: a file, or a folder for several files.")]
DropReview = Annotated[bool, typer.Option("--drop-review", help="Leave the samples to review out of what is written.")]
KeepReview = Annotated[bool, typer.Option("--keep-review", hidden=True, help="The default now.")]
Page = Annotated[Path | None, typer.Option(help="Write the findings as one HTML page.")]
Sarif = Annotated[Path | None, typer.Option(help="Write the findings as SARIF 2.1.0, for code scanning.")]
Junit = Annotated[Path | None, typer.Option(help="Write the findings as JUnit's XML.")]
Texts = Annotated[
    bool, typer.Option("--texts", help="Tell triggers and targets, pieces of your data, in SARIF, JUnit and annotations too.")
]
Baseline = Annotated[
    Path | None,
    typer.Option(help="Accept the findings of an earlier scan (its --json or SARIF): only others count for the exit code."),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Ask a base how surprising each target is: builtin, a folder or a hub id. No verdict changes."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object with findings and verdicts on stdout, and nothing else.")
]
Columns = Annotated[
    str | None, typer.Option(metavar="prompt=COLUMN,answer=COLUMN", help="What columns hold; also context=, system= and history=.")
]
Ray = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Count on a Ray cluster that sees the files: auto, local or ray://host:port.")
]
MaxBad = Annotated[float, typer.Option(help="Share of a file's rows that may be unreadable; they are reported and skipped.")]
FailOnOption = Annotated[
    FailOn, typer.Option(help="Exit with code 1 for samples to drop or repair (act), for any flagged sample (review), or never.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with code 2 if a field that holds text was not understood, or a row was skipped.")
]


@app.command()
def scan(
    files: Files,
    write: Write = None,
    drop_review: DropReview = False,
    keep_review: KeepReview = False,
    page: Page = None,
    sarif: Sarif = None,
    junit: Junit = None,
    texts: Texts = False,
    baseline: Baseline = None,
    base: Base = None,
    as_json: AsJson = False,
    columns: Columns = None,
    max_bad: MaxBad = 0.01,
    ray: Ray = None,
    fail_on: FailOnOption = FailOn.ACT,
    strict: Strict = False,
) -> None:
    """Look for planted trigger and target pairs in instruction data; exit code 0: none, 1: found (--fail-on), 2: error.

    [bold]Examples[/bold]

        undertow scan my_data.jsonl

        undertow scan client1.jsonl client2.jsonl --write clean/ --page scan.html

        undertow scan my_data.jsonl --sarif scan.sarif --baseline accepted.json

        cat my_data.jsonl | undertow scan - --json --fail-on review
    """
    from undertow.core.alerts import known
    from undertow.data.rows.columns import mapping
    from undertow.scanning.scan import scan as scan_files

    check_files(
        {"--page": page, "--sarif": sarif, "--junit": junit, "--write": write if len(files) == 1 else None}, [*files, baseline]
    )
    accepted = known(baseline) if baseline else frozenset()
    result = scan_files(
        files,
        write=write,
        drop_review=drop_review and not keep_review,
        examples=page is not None,
        base=base,
        columns=mapping(columns) if columns else None,
        max_bad=max_bad,
        ray=ray,
    ).accept(accepted)
    _write(result, page, sarif, junit, texts)
    _tell(result, page, as_json, texts)
    if strict and not result.account.complete:
        raise UserError(f"--strict: {result.account.sentence(scanned=True)}; name columns with --columns, or scan without --strict")
    failed = fail_on is not FailOn.NEVER and result.reaches("act" if fail_on is FailOn.ACT else "review")
    raise typer.Exit(int(failed))


def _write(result: Scan, page: Path | None, sarif: Path | None, junit: Path | None, texts: bool) -> None:
    """Write the files that were asked for."""
    from undertow.scanning.alerting import write_junit, write_sarif

    if page:
        from undertow.scanning.page import write_page

        write_page(result, page)
    if sarif:
        write_sarif(result, sarif, texts)
    if junit:
        write_junit(result, junit, texts)


def _tell(result: Scan, page: Path | None, as_json: bool, texts: bool) -> None:
    """Print what was found; in a GitHub workflow as annotations too."""
    from undertow.core.alerts import deaf
    from undertow.scanning.alerting import annotated

    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    if as_json:
        print_json(result.to_json())
    else:
        from undertow.scanning.summary import print_summary

        with deaf() if on_github else nullcontext():
            print_summary(result, page)
    if on_github:
        # the standard output of --json is one object and nothing else
        print(*annotated(result, texts), sep="\n", file=sys.stderr if as_json else sys.stdout)
