"""A node: the resident worker and Flower's SuperNode, which live and die together. ``undertow federate-node DIR``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from undertow.core.errors import UserError
from undertow.federate import processes, wire
from undertow.federate.address import check_address
from undertow.federate.folder import ENVIRONMENT, NodeFolder, held
from undertow.federate.keys import read_key

#: Marks the processes of a node, and those of its SuperNode among them.
NODE, SUPERNODE = "UNDERTOW_NODE", "UNDERTOW_SUPERNODE"
#: What the SuperNode of Flower 1.42 says when the run of a message is over. Its ClientApp runs all the same, and from then on each
#: reply is sent one message late; so it is started anew.
_STALE = b"status. Ignoring message"
#: What it says when the SuperLink refuses its key, and for how many seconds the node tries again: Flower takes a killed node for
#: connected until it has missed some of its signs of life.
_NOT_ACTIVATED, _REFUSED = b"[code: 2004]", 90.0
#: The longest path that a Unix socket may have everywhere.
_PATH = 100


def run_node(path: Path, *, superlink: str | None = None) -> None:
    """Run a node until it is interrupted.

    Args:
        path: its folder.
        superlink: ``host:port`` in place of the one in node.yaml.

    Raises:
        UserError: the key is damaged, the address none, the worker cannot load what the config names, or the SuperLink refuses
            the node.
    """
    node = NodeFolder.read(path)
    address = _address(node, superlink)
    with held(node.path), processes.guarded() as guard, tempfile.TemporaryDirectory(prefix="undertow-") as short:
        processes.stop(NODE, str(node.path))  # left behind by one that was killed
        # A Unix socket's path is short; the folder is this user's alone.
        socket = node.path / "socket" if len(str(node.path / "socket")) < _PATH else Path(short) / "socket"
        socket.unlink(missing_ok=True)
        home = node.path / "home"
        env = processes.environment(**ENVIRONMENT, FLWR_HOME=str(home), **{NODE: str(node.path)}, **guard)
        try:
            with wire.listen(str(socket)) as listener:
                number = listener.fileno()
                command = [sys.executable, "-m", "undertow.federate.worker", str(node.path), str(number)]
                worker = processes.start(command, env, stdin=subprocess.PIPE, piped=True, inherited=[number])
            told = _Echo(worker)
            _say(f"{node.path.name}: clients {', '.join(map(str, node.options.clients))}, SuperLink {address}; Ctrl-C ends it")
            give_up = time.monotonic() + _REFUSED
            while True:
                supernode, began = _supernode(node, address, socket, env), time.monotonic()
                heard = _Echo(supernode)
                while worker.poll() is None and supernode.poll() is None and not heard.stale.is_set():
                    time.sleep(0.2)
                if worker.poll() is not None:
                    told.join()
                    raise UserError(told.error or f"the worker of {node.path.name} ended (exit code {worker.returncode})")
                if heard.stale.is_set():
                    _say("a run ended in the middle of a message; starting the SuperNode anew")
                    processes.stop(SUPERNODE, str(node.path))
                    continue
                heard.join(1)
                if time.monotonic() - began > _REFUSED:  # it was connected for a while
                    give_up = time.monotonic() + _REFUSED
                refused = (
                    f"the SuperLink at {address} refuses {node.path.name}: its key.pub is not registered there (run.sh does), or "
                    "it takes the node for connected, for a minute after a kill"
                )
                if not heard.refused or time.monotonic() > give_up:
                    ended = f"the SuperNode of {node.path.name} ended (exit code {supernode.returncode}); see the lines above"
                    raise UserError(f"{refused}; fix that and start it again" if heard.refused else ended)
                _say(f"{refused}; trying again")
                processes.stop(SUPERNODE, str(node.path))
                time.sleep(5)
        finally:
            processes.stop(NODE, str(node.path))
            socket.unlink(missing_ok=True)


def _address(node: NodeFolder, superlink: str | None) -> str:
    """Return where the server is, the node's key being sound."""
    read_key(node.path / "key")
    try:
        return check_address(superlink or node.options.superlink)
    except ValueError as error:
        raise UserError(f"--superlink {superlink}: {error}") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Echo(threading.Thread):
    """Passes a process's output on to this one's.

    Attributes:
        error: what the process last told as an error.
        refused: whether it is a SuperNode that the SuperLink refused.
        stale: set when it is a SuperNode that gets out of step.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self.error = ""
        self.refused = False
        self.stale = threading.Event()
        self._output = process.stdout
        self.start()

    def run(self) -> None:
        """Read until the process ends."""
        for line in self._output or ():
            if line.startswith(b"error: "):
                self.error = line.decode(errors="replace").removeprefix("error: ").strip()
            else:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
            self.refused = self.refused or _NOT_ACTIVATED in line
            if _STALE in line:
                self.stale.set()


def _supernode(node: NodeFolder, address: str, socket: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    (port,) = processes.free_ports(1)
    command = [
        processes.script("flower-supernode"),
        *("--superlink", address, "--root-certificates", str(node.path / "ca.crt")),
        *("--auth-supernode-private-key", str(node.path / "key")),
        *("--host", "127.0.0.1", "--port", str(port), "--node-config", f'socket="{socket}"'),
    ]
    return processes.start(command, {**env, SUPERNODE: str(node.path)}, cwd=node.path, piped=True)


def main() -> None:
    """Run the node whose folder is the first argument; the second is the SuperLink's address."""
    processes.raise_on_terminate()
    folder, superlink = sys.argv[1:]
    try:
        run_node(Path(folder), superlink=superlink)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
