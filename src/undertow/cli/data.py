"""Methods: list."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.cli.app import app


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
