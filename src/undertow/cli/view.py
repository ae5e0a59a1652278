"""Seeing what is in a folder: view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undertow.cli.app import app


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Runs, sweeps, scans and audits at any depth.")] = Path("."),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Show all runs of a folder as a local page, also while they go on; reads alone, needs no network (extra view).

    [bold]Examples[/bold]

        undertow view runs/

        undertow view sweeps/krum --port 8080 --no-browser
    """
    from undertow.view.serve import serve

    serve(folder, port, browser)
