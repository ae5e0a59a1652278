"""Methods: check, list."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.cli.app import app, changes


@app.command()
def check(
    method: Annotated[
        str, typer.Argument(metavar="FILE.py:NAME", help="A method of yours, with parameters as NAME:parameter=value.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="What a dataset or target is asked with: data.path=FILE.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="defense, trigger, target, dataset, generator or template; default: told by its class or arguments."),
    ] = None,
) -> None:
    """Call a defense, trigger, target, dataset, generator or template of yours as a run would, on a few samples.

    [bold]Examples[/bold]

        undertow check norm_clipping.py:NormClipping

        undertow check cards.py:flashcards data.path=cards.txt

        undertow check krum:f=2 --kind defense
    """
    from undertow.api import load_config
    from undertow.federation.checking import check_method

    config = load_config("demo", **changes(overrides or []))
    for line in check_method(method, kind, config):
        print(f"ok: {line}")


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
