"""Processes that end with the one that started them, however that ends, with all that they start themselves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from undertow.core.errors import FLOWER, UserError

#: Environment variable of everything that is started within :func:`guarded`.
_GUARDED = "UNDERTOW_GUARDED"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def script(name: str) -> str:
    """Return the path of a console script of Flower.

    Raises:
        UserError: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UserError(f"{name} is not installed; {FLOWER}")
    return found


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment with ``more``, where scripts beside this Python are found first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **more}


def start(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    piped: bool = False,
    inherited: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which Ctrl-C does not reach; on Linux it is asked to end when this process dies.

    Args:
        command: program and arguments.
        env: its whole environment.
        log: where its output goes; None = where this process's goes.
        cwd: where it runs.
        stdin: as in :class:`subprocess.Popen`.
        piped: whether its output is for this process to read, as ``stdout``.
        inherited: descriptors that it gets under the same numbers.
    """
    with contextlib.ExitStack() as stack:
        output: IO[bytes] | None = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context(open(log, "wb"))
        return subprocess.Popen(
            list(command),
            env=dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=subprocess.PIPE if piped else output,
            stderr=subprocess.STDOUT if piped or output else None,
            start_new_session=True,
            pass_fds=list(inherited),
            preexec_fn=_end_with_parent if _LIBC is not None else None,
        )


@contextlib.contextmanager
def guarded() -> Iterator[dict[str, str]]:
    """Yield an environment variable by which all that has it ends when this process does, however: by SIGKILL too.

    A watcher, a process of its own, reads a pipe that nobody writes to. The pipe ends with this process, and then the watcher stops
    what has the variable: children in sessions of their own and those whose parent was killed before them. The value is new each
    time, so that a federation that is started again at once is left alone.
    """
    value = uuid.uuid4().hex
    read, write = os.pipe()
    unmarked = {key: text for key, text in os.environ.items() if not key.startswith("UNDERTOW_")}  # what stops by mark spares it
    with os.fdopen(write, "wb"):
        with os.fdopen(read, "rb") as until:
            subprocess.Popen(
                [sys.executable, "-m", "undertow.federate.processes", value],
                env=unmarked,
                stdin=until,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        yield {_GUARDED: value}


def stop(mark: str, value: str, patience: float = 2.0) -> None:
    """End all processes of this user whose environment has ``mark`` = ``value``, but this one.

    Flower starts children in sessions of their own, and leaves some behind when it is killed: their environment is what tells them.

    Args:
        mark: name of the environment variable.
        value: of it.
        patience: seconds between asking and killing.
    """
    found = _marked(mark, value)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(found, timeout=patience)
    for _ in range(50):
        found = _marked(mark, value)
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for_port(port: int, seconds: float) -> bool:
    """Wait until something listens on a port of 127.0.0.1; False when it did not in that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


def last_line(log: Path) -> str:
    """Return the last line of a log that says something, without colours; an empty string without any."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip()]
    errors = [line for line in told if line.startswith("error: ")]
    return (errors or told or [""])[-1][:300]


def raise_on_terminate() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that what it started is stopped."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _marked(mark: str, value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(mark) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    os.read(0, 1)
    stop(_GUARDED, sys.argv[1])
