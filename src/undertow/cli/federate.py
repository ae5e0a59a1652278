"""Experiments over a network: federate, federate-node."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.app import AsJson, Overrides, app, print_json, split
from undertow.core.errors import FLOWER, UserError

if TYPE_CHECKING:
    from undertow.federate.folder import Folder


@app.command()
def federate(
    arguments: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the federation; default federations/NAME.")] = None,
    local: Annotated[int | None, typer.Option(min=1, help="Run it now, with this many nodes on this machine.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Without --local: nodes to write folders for; default: 2.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Name or address by which the nodes reach the server; default: localhost.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of the server; default: 9443.")] = None,
    check: Annotated[bool, typer.Option("--check", help="With --local: run it in one process too; the report shows both.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a federation over Flower, with TLS and authenticated nodes: all on this machine, or folders for a server and its nodes.

    [bold]Examples[/bold]

        undertow federate demo --local 4

        undertow federate demo training.trainer=sequential training.threads=1 --local 4 --check

        undertow federate demo --nodes 3 --host server.example.org --out federations/demo
    """
    _needs_flower()
    from undertow.api import default_folder
    from undertow.config import load
    from undertow.federate.folder import prepare
    from undertow.federate.plan import check_config
    from undertow.federate.plan import split as deal

    name, overrides = split(arguments, "demo")
    if local is not None and nodes is not None:
        raise UserError("--local runs all nodes on this machine, --nodes writes folders for others; give one of them")
    if local is not None and (host is not None or port is not None):
        raise UserError("--local runs all on this machine, on ports that are free; leave --host and --port out, or --local")
    if check and local is None:
        raise UserError("--check needs a run on this machine; give --local N too")
    config = load(name, overrides)
    check_config(config)
    if config.compare:
        from undertow.runs.report.page import comparable

        comparable(Path(config.compare))
    path = out or default_folder("federations", name, config)
    folder = prepare(path, config, deal(config.federation.clients, local or nodes or 2), host, port)
    if local is not None:
        _run_here(folder, config.compare, check, as_json)
    elif as_json:
        print_json({"folder": str(folder.path), "nodes": [str(node) for node in folder.nodes]})
    else:
        print(f"{path} is written. What is next:")
        print(f"1. on this machine, which the nodes reach as {folder.superlink}: {shlex.quote(str(path / 'server.sh'))}")
        print(f"2. copy each folder of {path / 'nodes'} to its machine: {', '.join(node.name for node in folder.nodes)}")
        print(f"3. on this machine: {shlex.quote(str(path / 'run.sh'))}, which registers their keys; the run is in {path / 'run'}")
        print(f"4. on each node's machine, within {config.federate.node_wait:g} s: undertow federate-node {folder.nodes[0].name}")


def _run_here(folder: Folder, compare: str | None, check: bool, as_json: bool) -> None:
    """Run a federation with its nodes on this machine, with ``check`` in one process too, and print its figures."""
    from undertow.cli.runs import print_run
    from undertow.federate import processes
    from undertow.federate.check import check as compare_with_one_process
    from undertow.federate.local import run_local
    from undertow.federate.remote import network_line
    from undertow.runs.display import display
    from undertow.runs.network_records import OneProcess
    from undertow.runs.report.wording import one_process
    from undertow.runs.run import Run

    processes.raise_on_terminate()
    beside = Path(compare) if compare else None
    with display() as observer:
        result = run_local(folder, observer, beside)
    equality = None
    if check:
        with display() as observer:
            equality = compare_with_one_process(folder, observer, beside)
    if as_json:
        print_json(result if equality is None else {**result, "one_process": equality})
        return
    print_run(Run(folder.run))
    if told := network_line(folder.run):
        print(told)
    if equality is not None:
        print(one_process(OneProcess.model_validate(equality)))


@app.command("federate-node")
def federate_node(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A node's folder, as `undertow federate` wrote it.")],
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the server is, in place of the address in node.yaml.")
    ] = None,
) -> None:
    """Run a node of a federation: its clients' data and base stay loaded here, and train when the server asks.

    [bold]Example[/bold]

        undertow federate-node node-0
    """
    _needs_flower()
    from undertow.federate import processes
    from undertow.federate.node import run_node

    processes.raise_on_terminate()
    run_node(folder, superlink=superlink)


def _needs_flower() -> None:
    missing = [name for name in ("flwr", "cryptography", "uvicorn", "requests") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"undertow federate needs Flower and what it needs ({missing[0]} is missing); {FLOWER}")
