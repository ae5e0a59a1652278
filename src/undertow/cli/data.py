"""Data and methods: scan, list."""

from __future__ import annotations

import sys
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.cli.app import app, print_json
from undertow.core.errors import UserError

if TYPE_CHECKING:
    from undertow.scanning.scan import Scan


class FailOn(StrEnum):
    """From which verdict on a scan ends with exit code 1."""

    ACT = "act"
    REVIEW = "review"
    NEVER = "never"


@app.command()
def scan(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Instruction files, or - for standard input.")],
    write: Annotated[
        Path | None, typer.Option(help="Write clean and repaired samples here: a file, or a folder for several files.")
    ] = None,
    drop_review: Annotated[bool, typer.Option("--drop-review", help="Leave the samples to review out of what is written.")] = False,
    keep_review: Annotated[bool, typer.Option("--keep-review", hidden=True, help="The default now.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write the findings as one HTML page.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Ask a base how surprising each target is: builtin, a folder or a hub id. No verdict changes."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with findings and verdicts on stdout, and nothing else.")
    ] = False,
    columns: Annotated[
        str | None,
        typer.Option(metavar="prompt=COLUMN,answer=COLUMN", help="What columns hold; also context=, system= and history=."),
    ] = None,
    max_bad: Annotated[
        float, typer.Option(help="Share of a file's rows that may be unreadable; they are reported and skipped.")
    ] = 0.01,
    fail_on: Annotated[
        FailOn,
        typer.Option(help="Exit with code 1 for samples to drop or repair (act), for any flagged sample (review), or never."),
    ] = FailOn.ACT,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 2 if a field that holds text was not understood, or a row was skipped.")
    ] = False,
) -> None:
    """Look for planted trigger and target pairs in instruction data; exit code 0: none, 1: found (--fail-on), 2: error.

    [bold]Examples[/bold]

        undertow scan my_data.jsonl

        undertow scan client1.jsonl client2.jsonl --write clean/ --page scan.html

        cat my_data.jsonl | undertow scan - --json --fail-on review
    """
    from undertow.data.rows.columns import mapping
    from undertow.scanning.scan import scan as scan_files

    result = scan_files(
        files,
        write=write,
        drop_review=drop_review and not keep_review,
        examples=page is not None,
        base=base,
        columns=mapping(columns) if columns else None,
        max_bad=max_bad,
    )
    _tell(result, page, as_json)
    if strict and not result.account.complete:
        raise UserError(f"--strict: {result.account.sentence(scanned=True)}; name columns with --columns, or scan without --strict")
    failed = fail_on is not FailOn.NEVER and result.reaches("act" if fail_on is FailOn.ACT else "review")
    raise typer.Exit(int(failed))


def _tell(result: Scan, page: Path | None, as_json: bool) -> None:
    """Write the page, and print what was found."""
    if page:
        from undertow.scanning.page import write_page

        write_page(result, page)
    if as_json:
        print_json(result.to_json())
    else:
        from undertow.scanning.summary import print_summary

        print_summary(result, page)


@app.command("list")
def list_methods(
    kind: Annotated[
        str | None,
        typer.Argument(
            help=(
                "configs, datasets, populations, networks, templates, generators, attacks, triggers, targets, backdoors, "
                "predicates, scorings, defenses or fields."
            )
        ),
    ] = None,
) -> None:
    """List what is registered, one line each with its source.

    [bold]Examples[/bold]

        undertow list

        undertow list triggers

        undertow list fields
    """
    from undertow.api import list_methods as find

    console = Console(width=None if sys.stdout.isatty() else 200)
    for title, methods in groupby(find(kind), key=lambda method: method.kind):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column()
        for method in methods:
            table.add_row(escape(method.name), escape(f"{method.summary} [{method.source}]" if method.source else method.summary))
        console.print(table)
        console.print()
