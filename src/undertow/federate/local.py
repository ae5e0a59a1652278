"""A whole federation on this machine: SuperLink, nodes and run, over TLS with authenticated nodes, and nothing left afterwards."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undertow.config import load
from undertow.core.errors import FLOWER, UserError
from undertow.core.observer import Observer
from undertow.core.threads import cores
from undertow.federate import processes
from undertow.federate.events import Replay
from undertow.federate.folder import ENVIRONMENT, FEDERATION, Folder
from undertow.runs.records import read_json
from undertow.runs.report.page import write_report


def run_local(folder: Folder, observer: Observer, compare: Path | None = None) -> dict[str, Any]:
    """Run the experiment of a folder with all its nodes on this machine, and return its final figures.

    Args:
        folder: as :func:`~undertow.federate.folder.prepare` left it.
        observer: is told what happens.
        compare: a finished run shown beside this one in the report.

    Raises:
        UserError: anything the user can fix; finished rounds are kept.
    """
    mark = (FEDERATION, str(folder.path))
    with folder.held():
        if (folder.run / "result.json").exists():
            observer.phase(f"nothing left to do: {folder.run} is finished")
            if not (folder.run / "report.html").exists():
                write_report(folder.run, compare)
            return read_json(folder.run / "result.json")
        processes.stop(*mark)  # left behind by one that was killed
        try:
            with processes.guarded() as guard:
                return _run(folder, observer, guard)
        finally:
            observer.phase("stopping server and nodes")
            processes.stop(*mark)


def _run(folder: Folder, observer: Observer, guard: Mapping[str, str]) -> dict[str, Any]:
    logs = folder.path / "logs"
    (port,) = processes.free_ports(1)
    folder.connections(port)
    folder.events.unlink(missing_ok=True)
    command = shlex.join(["undertow", *sys.argv[1:]])
    env = processes.environment(
        **ENVIRONMENT, FLWR_HOME=str(folder.home), UNDERTOW_COMMAND=command, **{FEDERATION: str(folder.path)}, **guard
    )
    observer.phase("starting the SuperLink")
    link = processes.start(
        [
            processes.script("flower-superlink"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--ssl-ca-certfile", str(folder.path / "ca.crt")),
            *("--ssl-certfile", str(folder.path / "server.pem"), "--ssl-keyfile", str(folder.path / "server.key")),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        ],
        env,
        log=logs / "superlink.log",  # in this directory, from which the config's relative paths go
    )
    keys = [str(node / "key.pub") for node in folder.nodes]
    registering = processes.start(
        [sys.executable, "-m", "undertow.federate.keys", "local", str(port), *keys], env, log=logs / "register.log"
    )
    while registering.poll() is None:
        if link.poll() is not None:
            log = logs / "superlink.log"
            told = processes.last_line(log)
            more = FLOWER if "ModuleNotFoundError" in told else f"see {log}"
            raise UserError(f"the SuperLink could not start ({told}); {more}")
        time.sleep(0.1)
    if registering.returncode != 0:
        log = logs / "register.log"
        raise UserError(f"the nodes' keys could not be registered ({processes.last_line(log)}); see {log}")
    observer.phase(f"starting {len(keys)} nodes")
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // len(keys)))
    nodes = {
        node: processes.start(
            [sys.executable, "-m", "undertow.federate.node", str(node), f"127.0.0.1:{port}"],
            {**env, "OMP_NUM_THREADS": threads},
            log=logs / f"{node.name}.log",
        )
        for node in folder.nodes
    }
    running = processes.start(
        [processes.script("flwr"), "run", str(folder.path / "app"), "local", "--stream"], env, log=logs / "run.log"
    )
    return _watch(folder, observer, logs, link, nodes, running)


def _watch(
    folder: Folder,
    observer: Observer,
    logs: Path,
    link: subprocess.Popen[bytes],
    nodes: dict[Path, subprocess.Popen[bytes]],
    running: subprocess.Popen[bytes],
) -> dict[str, Any]:
    """Show what the ServerApp tells until it is done."""
    replay = Replay(folder.events, observer)
    min_clients = load(str(folder.path / "config.yaml")).federate.min_clients
    while True:
        over = running.poll() is not None
        replay.catch_up()
        if replay.error is not None:
            raise UserError(replay.error)
        if replay.ended:
            return read_json(folder.run / "result.json")
        if link.poll() is not None:
            raise UserError(
                f"the SuperLink ended ({link.returncode}); see {logs / 'superlink.log'}; the same command again resumes"
            )
        if over:
            last = processes.last_line(logs / "run.log")
            raise UserError(f"the run ended without a result ({last}); see {logs / 'run.log'}; the same command again resumes")
        for node in [node for node, process in nodes.items() if process.poll() is not None]:
            nodes.pop(node)
            told = processes.last_line(logs / f"{node.name}.log").removeprefix("error: ")
            if not nodes:
                raise UserError(f"no node is left; the last one, {node.name}: {told}")
            if not replay.met and min_clients is None:  # all are waited for, and this one will not come
                raise UserError(f"{node.name}: {told}")
            observer.warn(f"{node.name} ended: {told}")
        time.sleep(0.1)
