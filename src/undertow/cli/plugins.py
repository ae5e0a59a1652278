"""Commands of other packages: those that the entry points of the group ``undertow.commands`` name.

The name of an entry point is the command's, and its object the function that typer reads. ``undertow reproduce`` comes this way,
from the package undertow-reproductions; where that is not installed, the command says how to install it.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Annotated

import typer

from undertow.cli.app import app
from undertow.core.errors import UserError

GROUP = "undertow.commands"


def reproduce(arguments: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
    """Reproduce a paper's tables and figures: needs the package undertow-reproductions."""
    raise UserError(
        "`undertow reproduce` is in the package undertow-reproductions, which is not installed; in a clone of the repository: "
        "pip install ./reproductions"
    )


def add_commands() -> None:
    """Add every command that an installed package brings."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name, entry in sorted(found.items()):
        try:
            command = entry.load()
        except ImportError as error:
            raise UserError(f"command '{name}' of {entry.value} cannot be imported: {error}; reinstall its package") from error
        app.command(name)(command)
    if "reproduce" not in found:
        app.command("reproduce", context_settings={"ignore_unknown_options": True})(reproduce)


add_commands()
