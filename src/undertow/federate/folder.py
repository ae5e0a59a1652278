"""The folder of a federation: what the server keeps, and a folder for each node to be copied to its machine.

config.yaml   effective values            app/            the Flower app, two lines of code
ca.crt        what nodes trust            home/           Flower's own settings (FLWR_HOME)
server.pem, server.key                    nodes/node-K/   config.yaml, node.yaml, ca.crt, key, key.pub
server.sh     starts the SuperLink        run/            the ordinary run directory
run.sh        registers keys and runs     events.jsonl    what happened, for the display
sums.safetensors  of the pooled sanitization, where federate.private is set; there each node's folder has a file secret
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from undertow.config import Audit, Config, InstructionTask, load
from undertow.core.errors import UserError
from undertow.core.files import check_folder, write_bytes, write_text
from undertow.core.rules import first_rule
from undertow.federate.address import check_address, check_host
from undertow.federate.keys import CERTIFICATES, make_certificates, make_node_key, write_new
from undertow.federate.machine import overridden

#: Environment of every process of Flower: no telemetry, no look for updates, quick to see that there is work.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
#: What the nodes share and a server must not know, where their data are private.
SECRET = "secret"
#: In a folder that is being written for the first time.
_BEGUN = ".begun"
#: Names of this machine that no other one can use.
_HERE = ("localhost", "127.0.0.1")
#: Where the ServerApp finds its federation.
FEDERATION = "UNDERTOW_FEDERATION"

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "undertow-federation"
version = "1.0.0"
description = "An experiment of Undertow over Flower."
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "undertow"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
"""
_APP = {
    "pyproject.toml": _PYPROJECT,
    "server_app.py": (
        '"""Runs the experiment of the federation folder that the server was started in."""\n\n'
        "from undertow.federate import server\n\napp = server.app\n"
    ),
    "client_app.py": (
        '"""Hands each message to the resident worker of its node."""\n\nfrom undertow.federate import client\n\napp = client.app\n'
    ),
}
_EXPORTS = "".join(f"export {key}={value}\n" for key, value in ENVIRONMENT.items())
_SERVER = """\
#!/bin/sh
# The SuperLink: nodes and the server's app meet here. Ends with Ctrl-C. Relative paths of the config go from where it is started.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
{exports}export FLWR_HOME="$here/home" {federation}="$here"
exec flower-superlink --host {bind} --port {port} --ssl-ca-certfile "$here/ca.crt" --ssl-certfile "$here/server.pem" \\
  --ssl-keyfile "$here/server.key" --enable-supernode-auth --disable-runtime-dependency-installation --database "$here/state.db"
"""
_RUN = """\
#!/bin/sh
# Registers the nodes' keys with the running SuperLink (one registered already is refused, which does no harm), then runs the
# experiment. The same command again resumes.
cd "$(dirname "$0")" || exit 1
{exports}export FLWR_HOME="$PWD/home"
for key in nodes/*/key.pub; do flwr supernode register "$key" server; done
exec flwr run app server --stream
"""


class NodeOptions(BaseModel):
    """What ``node.yaml`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    superlink: Annotated[str, AfterValidator(check_address)]
    clients: list[int] = Field(min_length=1)
    overrides: list[str] = Field(default_factory=list)
    files: dict[int, str] = Field(default_factory=dict)
    audit: Audit = Field(default_factory=lambda: Audit.model_validate({}))


@dataclass(frozen=True)
class NodeFolder:
    """The folder of one node, on the node's machine.

    Attributes:
        path: absolute.
        options: of ``node.yaml``.
        config: with the machine's overrides.
        digest: of the config as the server wrote it; the server compares it.
        files: of the node's clients, where ``federate.private`` is set.
        secret: of the clients, 32 bytes, where the folder has a file ``secret``.
    """

    path: Path
    options: NodeOptions
    config: Config
    digest: str
    files: dict[int, str]
    secret: bytes | None

    @classmethod
    def read(cls, path: Path) -> NodeFolder:
        """Read and check a node's folder.

        Raises:
            UserError: a file is missing or damaged, or a client does not exist.
        """
        path = path.resolve()
        for name in ("node.yaml", "config.yaml", "ca.crt", "key"):
            if not (path / name).is_file():
                raise UserError(f"{path} has no {name}; copy a whole folder nodes/node-K that `undertow federate` wrote")
        file = path / "node.yaml"
        try:
            options = NodeOptions.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        except ValidationError as error:
            raise UserError(f"{file}: {first_rule(error)}; correct it") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: {' '.join(str(error).split())}; correct it") from error
        plain = load(str(path / "config.yaml"))
        if odd := [k for k in options.clients if not 0 <= k < plain.federation.clients]:
            raise UserError(f"{file}: client {odd[0]} of {plain.federation.clients}; name clients from 0")
        config = overridden(path / "config.yaml", plain, options.overrides, file)
        if options.audit.every and not isinstance(config.task, InstructionTask):
            raise UserError(
                f"{file}: audit.every = {options.audit.every}: only adapters of task=instruction are audited; set it to 0"
            )
        files: dict[int, str] = {}
        if config.federate.private:
            if odd := [k for k in options.files if k not in options.clients]:
                raise UserError(f"{file}: files names client {odd[0]}, which this node does not hold; name those of `clients`")
            files = {k: options.files.get(k, config.instruction.data.partition.files[k]) for k in options.clients}
        secret = (path / SECRET).read_bytes() if (path / SECRET).exists() else None
        if secret is not None and len(secret) != 32:
            raise UserError(
                f"{path / SECRET} has {len(secret)} bytes; give all nodes the same 32, as `head -c 32 /dev/urandom` makes them"
            )
        return cls(path, options, config, plain.digest(), files, secret)


@dataclass(frozen=True)
class Folder:
    """A federation's folder on the server's machine; ``path`` is absolute."""

    path: Path

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.path / "run"

    @property
    def events(self) -> Path:
        """What the ServerApp tells."""
        return self.path / "events.jsonl"

    @property
    def home(self) -> Path:
        """Flower's settings."""
        return self.path / "home"

    @property
    def nodes(self) -> list[Path]:
        """The nodes' folders in their order."""
        return sorted((self.path / "nodes").glob("node-*"), key=lambda path: (len(path.name), path.name))

    def connections(self, local: int | None = None) -> None:
        """Write Flower's settings: how to reach the server, and a SuperLink on port ``local`` of this machine."""
        port = self.port
        addresses = {"server": f"127.0.0.1:{port}", **({"local": f"127.0.0.1:{local}"} if local else {})}
        lines = ['[superlink]\ndefault = "server"\n']
        for name, address in addresses.items():
            # a JSON string is a TOML string
            lines.append(
                f"[superlink.{name}]\naddress = {json.dumps(address)}\nroot-certificates = "
                f"{json.dumps(str(self.path / 'ca.crt'))}\n"
            )
        write_text(self.home / "config.toml", "\n".join(lines))

    @property
    def port(self) -> int:
        """Of the server."""
        return int(self.superlink.rpartition(":")[2])

    @property
    def superlink(self) -> str:
        """Where the nodes reach the server, host and port."""
        return NodeFolder.read(self.nodes[0]).options.superlink

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running this federation.

        Raises:
            UserError: one does.
        """
        with held(self.path):
            yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a folder while the block runs.

    Raises:
        UserError: another process holds it.
    """
    with open(path / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{path} is in use by another process; wait for it, or stop it") from error
        yield


def prepare(path: Path, config: Config, clients: list[list[int]], host: str | None = None, port: int | None = None) -> Folder:
    """Write the folder of a federation, or bring one up to date; keys and ``node.yaml`` files that exist stay as they are.

    Args:
        path: the folder.
        config: what to do.
        clients: of each node.
        host: name or address by which nodes reach the server; None for what the folder says, localhost for a new one.
        port: of the server; None for what the folder says, 9443 for a new one.

    Raises:
        UserError: a host that is none; or the folder holds something else, other values, another number of nodes or another
            server's address, or cannot be written.
    """
    if host is not None:
        check_host(host)
    check_folder("--out", path)
    path = path.resolve()
    folder = Folder(path)
    _take(folder, config, len(clients), host, port)
    host, port = host or "localhost", port or 9443
    text = yaml.safe_dump(config.values(), sort_keys=False, allow_unicode=True)
    make_certificates(path, host)
    first = path / "nodes" / "node-0" / SECRET
    secret = first.read_bytes() if first.exists() else os.urandom(32)
    write_text(path / "config.yaml", text)
    for name, content in _APP.items():
        write_text(path / "app" / name, content)
    for node, own in enumerate(clients):
        place = path / "nodes" / f"node-{node}"
        make_node_key(place)
        write_bytes(place / "ca.crt", (path / "ca.crt").read_bytes())
        write_text(place / "config.yaml", text)
        if config.federate.private and not (place / SECRET).exists():
            write_new(place / SECRET, secret, 0o600)
        if not (place / "node.yaml").exists():
            write_text(place / "node.yaml", _node_yaml(config, own, f"{host}:{port}"))
    _write_scripts(folder)
    folder.connections()
    (path / _BEGUN).unlink(missing_ok=True)
    return folder


def _take(folder: Folder, config: Config, nodes: int, host: str | None, port: int | None) -> None:
    """Make a federation's folder, or take one that is there; one that was never finished begins anew.

    Raises:
        UserError: it holds something else, or other values.
    """
    path, effective = folder.path, folder.path / "config.yaml"
    if (path / _BEGUN).exists():  # nobody has had a key or a certificate of it
        for name in (*CERTIFICATES, effective.name):
            (path / name).unlink(missing_ok=True)
        shutil.rmtree(path / "nodes", ignore_errors=True)
    elif effective.exists() and (path / "server.pem").exists():
        if load(str(effective)).identity() != config.identity():
            raise UserError(f"{path} is a federation with other values; give another --out, or the same values")
        if len(folder.nodes) not in (0, nodes):
            raise UserError(f"{path} has {len(folder.nodes)} nodes, not {nodes}; give the same number, or another --out")
        if folder.nodes:
            _refuse_other_address(folder, host, port)
        return
    elif path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} holds files but no federation; give --out an empty or new folder")
    path.mkdir(parents=True, exist_ok=True)
    (path / _BEGUN).touch()


def _refuse_other_address(folder: Folder, host: str | None, port: int | None) -> None:
    there = folder.superlink
    wanted = f"{host or there.rpartition(':')[0]}:{port or folder.port}"
    if wanted != there:
        raise UserError(
            f"{folder.path} is a federation whose nodes reach the server as {there}, not {wanted}; give another --out, or leave "
            "--host and --port out"
        )


def _node_yaml(config: Config, own: list[int], superlink: str) -> str:
    files = {k: config.instruction.data.partition.files[k] for k in own} if config.federate.private else {}
    options = NodeOptions(superlink=superlink, clients=own, files=files, audit=config.audit)
    about = "# overrides: values of this machine, such as model.device=cuda or data.path=/data/here\n"
    about += "# audit: this node's own, of the adapter that it is sent; stop: it trains no more once one has a backdoor\n"
    if config.federate.private:
        about += "# files: where this machine has its clients' data\n"
    return about + yaml.safe_dump(options.model_dump(), sort_keys=False)


def _write_scripts(folder: Folder) -> None:
    superlink = folder.superlink.rpartition(":")[0]
    # Flower's commands come in by the same port as the nodes, from anybody who reaches it.
    bind = "127.0.0.1" if superlink in _HERE else "0.0.0.0"
    scripts = {
        "server.sh": _SERVER.format(exports=_EXPORTS, federation=FEDERATION, bind=bind, port=folder.port),
        "run.sh": _RUN.format(exports=_EXPORTS),
    }
    for name, script in scripts.items():
        write_text(folder.path / name, script)
        os.chmod(folder.path / name, 0o755)
