"""The ServerApp: it runs the experiment of the server's federation folder, with the nodes as its clients' trainers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from undertow.config import load
from undertow.core.errors import UserError
from undertow.federate.events import Telling
from undertow.federate.folder import FEDERATION, Folder
from undertow.federate.plan import check_config
from undertow.federate.pooling import pool
from undertow.federate.remote import Remote, network_line
from undertow.federation.loop import run
from undertow.federation.methods import make_methods
from undertow.runs.display import Plain
from undertow.runs.report.page import write_report
from undertow.runs.tracking.watch import tracked
from undertow.tasks.instruction import Held

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run what is left of the experiment, and write its report."""
    place = os.environ.get(FEDERATION)
    if not place:
        sys.exit(f"error: {FEDERATION} is not set; start the SuperLink with server.sh of a folder that `undertow federate` wrote")
    conduct(grid, Folder(Path(place)))


def conduct(grid: Grid, folder: Folder) -> None:
    """Run the experiment of a folder over a grid; an error is told in ``events.jsonl``, and raised for Flower to see."""
    observer = Telling(folder.events, Plain())
    try:
        config = load(str(folder.path / "config.yaml"))
        check_config(config)
        remote = Remote(grid, config.federation.clients, config.federate, config.digest(), folder.run, observer)
        held = None
        if not (folder.run / "result.json").exists():
            remote.meet()
            if config.federate.private:
                names = {number: node.name for number, node in remote.nodes.items()}
                defenses, deadline = make_methods(config).defenses, config.federate.deadline
                pool(grid, defenses, config.digest(), deadline, folder.path, names, observer)
                held = Held(sizes=remote.sizes)
        command = os.environ.get("UNDERTOW_COMMAND", "flwr run")
        with tracked(config, folder.run, observer) as looking:
            run(config, folder.run, looking, command=command, trainer=remote, held=held)
            observer.phase("writing the report")
            write_report(folder.run, Path(config.compare) if config.compare else None)
        if told := network_line(folder.run):
            print(told, file=sys.stderr)
    except UserError as error:
        observer.failed(str(error))
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise
    except Exception as error:
        observer.failed(f"the server stopped: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise
    observer.done()
