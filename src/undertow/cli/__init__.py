"""The command line: parses and prints, nothing else. Each module holds the commands of one kind; :func:`main` runs them."""

from __future__ import annotations

# The order of the imports is that of the commands in the help.
# isort: off
from undertow.cli import runs, view, federate, plugins
from undertow.cli import scan, audit, data, base
from undertow.cli.app import app, main
# isort: on

__all__ = ["app", "audit", "base", "data", "federate", "main", "plugins", "runs", "scan", "view"]
