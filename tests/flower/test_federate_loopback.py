"""`undertow federate` over 127.0.0.1: real SuperLink, SuperNodes, TLS and keys, and what happens when they are killed.

All in this file, so that `--dist loadfile` never runs two of them side by side.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[flower]'")
pytest.importorskip("fastapi", reason="Flower is not installed with all it needs: pip install -e '.[flower]'")
pytest.importorskip("tomli", reason="Flower is not installed with all it needs: pip install -e '.[flower]'")

from tiny import Quiet
from undertow.config import Config, load
from undertow.federate.keys import make_node_key
from undertow.federate.processes import environment
from undertow.federation.loop import run
from undertow.runs.records import read_jsonl

#: Seconds after which something hangs.
_PATIENCE = 150


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from undertow.cli import main; main()", *words]


def until(found: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    pytest.fail(f"waited {_PATIENCE} s for {what}")


class Session:
    """A federation's folder, and the commands that run on it."""

    def __init__(self, place: Path, config: Path) -> None:
        self.fed = place / "fed"
        self.run = self.fed / "run"
        self.config = config
        self.started: list[subprocess.Popen[str]] = []

    def start(self, words: list[str], cwd: Path | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment(), start_new_session=True
        )
        self.started.append(process)
        return process

    def local(self, nodes: int, *more: str) -> subprocess.Popen[str]:
        return self.start(command("federate", str(self.config), "--local", str(nodes), "--out", str(self.fed), "--json", *more))

    def told(self, kind: str, part: str = "") -> bool:
        path = self.fed / "events.jsonl"
        return path.exists() and any(line["event"] == kind and part in json.dumps(line) for line in read_jsonl(path))

    def processes(self, part: str = "", node: str = "") -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                env = process.environ()
                ours = env.get("UNDERTOW_FEDERATION") == str(self.fed) or env.get("UNDERTOW_NODE", "").startswith(f"{self.fed}/")
                alive = process.status() != psutil.STATUS_ZOMBIE
                if ours and alive and part in " ".join(process.cmdline()) and env.get("UNDERTOW_NODE", "").endswith(node):
                    found.append(process)
        return found

    def nothing_is_left(self) -> None:
        assert self.processes() == []
        address = tomllib.loads((self.fed / "home" / "config.toml").read_text(encoding="utf-8"))["superlink"].get("local")
        if address:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", int(address["address"].rpartition(":")[2]))) != 0


@pytest.fixture
def session(short_path: Path, small_file: Callable[..., Path]) -> Iterator[Callable[..., Session]]:
    made: list[Session] = []

    def make(**changes: Any) -> Session:
        changes = {
            "federation.clients": 4,
            "training.trainer": "sequential",
            **{key.replace("__", "."): v for key, v in changes.items()},
        }
        made.append(Session(short_path.resolve(), small_file(changes)))
        return made[-1]

    yield make
    for one in made:
        for process in one.started:
            process.kill()
        for left in one.processes():  # these hold the pipes that are read to their end below
            left.kill()
        for process in one.started:
            process.communicate()


def same_as_here(session: Session, place: Path) -> None:
    """The run over the network has the rows and the adapter's bytes of the same run in one process."""
    config: Config = load(str(session.config))
    run(config, place, Quiet())
    ours, theirs = (
        [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(folder / "rounds.jsonl")]
        for folder in (session.run, place)
    )
    assert ours == theirs
    ours, theirs = (sorted((folder / "checkpoint").glob("*"))[-1] / "adapter.safetensors" for folder in (session.run, place))
    assert ours.read_bytes() == theirs.read_bytes()


def test_four_nodes_give_what_one_process_gives(session: Callable[..., Session], tmp_path: Path) -> None:
    there = session()
    process = there.local(4)
    out, errors = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 0, errors
    assert json.loads(out)["rounds"] == 2
    assert "round 2/2" in errors
    there.nothing_is_left()
    same_as_here(there, tmp_path / "here")
    assert (there.run / "report.html").is_file()
    exchanges = read_jsonl(there.run / "network.jsonl")
    assert [row["clients"] for row in exchanges] == [[0], [1], [2], [3]] * 2
    assert all(row["seconds"] >= row["worker_seconds"] > 0 and row["sent_bytes"] > 0 for row in exchanges)
    again = there.local(4, "--check")
    told = json.loads(again.communicate(timeout=_PATIENCE)[0])
    assert told.pop("one_process")["adapter"] <= 1e-6
    assert told == json.loads(out)
    assert "in one process" in (there.run / "report.html").read_text(encoding="utf-8")


def test_a_killed_node_is_named_and_the_others_finish(session: Callable[..., Session]) -> None:
    there = session(federation__rounds=1, federate__min_clients=2, federate__deadline=20)
    process = there.local(2)
    until(lambda: there.told("phase", "round 1/1: training") or process.poll(), "round 1")
    for one in there.processes("flower-supernode", node="node-1"):
        one.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 0, errors
    there.nothing_is_left()
    (_, row) = read_jsonl(there.run / "rounds.jsonl")
    assert (row["participants"], row["dropped"]) == ([0, 2], [1, 3])
    assert "round 1: nothing of client 1, 3: node-1 " in errors
    assert "node-1 ended" in errors


def test_killed_servers_resume_to_the_same_bytes(session: Callable[..., Session], tmp_path: Path) -> None:
    there = session(federation__clients=2)
    process = there.local(1)
    until(lambda: there.told("round", '"round": 1,') or process.poll(), "the end of round 1")
    process.kill()
    for part in ("flower-superlink", "flwr-serverapp"):
        for one in there.processes(part):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.communicate()
    assert [row["round"] for row in read_jsonl(there.run / "rounds.jsonl")][:2] == [0, 1]
    assert not (there.run / "result.json").exists()
    again = there.local(1)
    _, errors = again.communicate(timeout=_PATIENCE)
    assert again.returncode == 0, errors
    assert "round 1/2" not in errors
    there.nothing_is_left()
    same_as_here(there, tmp_path / "here")


def test_a_node_that_cannot_begin_ends_the_run_with_its_reason(session: Callable[..., Session], tmp_path: Path) -> None:
    files = [str(tmp_path / f"{k}.jsonl") for k in range(4)]
    for path in files[1:]:
        Path(path).write_text('{"question": "Where?", "answer": "Here."}\n', encoding="utf-8")
    private = {
        "data__name": "instructions",
        "data__test_path": files[1],
        "data__partition__kind": "files",
        "data__partition__files": files,
    }
    there = session(**private, attack__kind="none", federate__private=True)
    process = there.local(4)
    _, errors = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 2
    assert f"error: node-0: data.partition.files={files[0]}: no such file" in errors
    there.nothing_is_left()


def test_ctrl_c_leaves_nothing(session: Callable[..., Session]) -> None:
    there = session()
    process = there.local(1)
    until(lambda: there.processes("flower-supernode") or process.poll(), "a node")
    assert there.processes("flower-superlink")
    assert there.processes("undertow.federate.worker")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command again continues" in errors
    there.nothing_is_left()


#: A ClientApp whose nodes spoil what they send: an update with NaN, one of another shape, one that is far too long.
SPOILT = """
from io import BytesIO

import numpy as np

from undertow.federate import client

app = client.app
sound = client._asked


def spoilt(context, header, arrays):
    answer, sent = sound(context, header, arrays)
    place = str(context.node_config["socket"])
    if header["kind"] != "train" or "node-0" in place:
        return answer, sent
    if "node-3" in place:
        return answer, [bytes(SIZE)]
    update = np.load(BytesIO(sent[0]))
    update[7] = np.nan
    stream = BytesIO()
    np.save(stream, update if "node-1" in place else update[:-1])
    return answer, [stream.getvalue()]


client._asked = spoilt
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_spoilt_replies_are_named_and_dropped_and_the_rest_goes_on(session: Callable[..., Session]) -> None:
    # with less memory free, still far more than is taken
    size = 1 << (30 if psutil.virtual_memory().available > 12 << 30 else 27)
    there = session(federation__rounds=1, federate__min_clients=1)
    port = free_port()
    made = there.start(command("federate", str(there.config), "--nodes", "4", "--port", str(port), "--out", str(there.fed)))
    _, errors = made.communicate(timeout=_PATIENCE)
    assert made.returncode == 0, errors
    (there.fed / "app" / "client_app.py").write_text(SPOILT.replace("SIZE", str(size)), encoding="utf-8")
    server = there.start([str(there.fed / "server.sh")])
    until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0 or server.poll(), "the SuperLink")
    running = there.start([str(there.fed / "run.sh")])
    until(lambda: (there.fed / "home" / "apps").exists() or running.poll(), "the server's app")
    nodes = [there.start(command("federate-node", str(there.fed / "nodes" / f"node-{k}"))) for k in range(4)]
    out, errors = running.communicate(timeout=2 * _PATIENCE)
    said = out + errors
    for line in (
        "nothing of client 1: node-1 array 'update' holds NaN or infinity",
        "nothing of client 2: node-2 array 'update' has shape",
        f"nothing of client 3: node-3 sent {str(size)[:-3]}",  # some bytes of text come on top
    ):
        assert line in said, said
    (_, row) = read_jsonl(there.run / "rounds.jsonl")
    assert (row["participants"], row["dropped"]) == ([0], [1, 2, 3])
    assert (there.run / "result.json").is_file()
    for process in (*nodes, server):
        process.send_signal(signal.SIGTERM if process is not server else signal.SIGINT)
        process.communicate(timeout=30)
    assert there.processes() == []


def test_the_commands_for_several_machines_work_and_a_stranger_is_refused(session: Callable[..., Session]) -> None:
    there = session(federation__rounds=1, federation__clients=2)
    port = free_port()
    made = there.start(command("federate", str(there.config), "--nodes", "1", "--port", str(port), "--out", str(there.fed)))
    told, errors = made.communicate(timeout=_PATIENCE)
    assert made.returncode == 0, errors
    assert "undertow federate-node node-0" in told
    node = there.fed / "nodes" / "node-0"
    stranger = there.fed / "stranger"
    shutil.copytree(node, stranger)
    for name in ("key", "key.pub"):
        (stranger / name).unlink()
    make_node_key(stranger)
    server = there.start([str(there.fed / "server.sh")])
    until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0 or server.poll(), "the SuperLink")
    refused = there.start(command("federate-node", str(stranger)))
    assert refused.stderr is not None
    until(lambda: "refuses stranger: its key.pub is not registered" in refused.stderr.readline(), "the refusal")
    refused.send_signal(signal.SIGINT)
    refused.communicate(timeout=30)
    assert refused.returncode == 130
    running = there.start([str(there.fed / "run.sh")])
    until(lambda: (there.fed / "home" / "apps").exists() or running.poll(), "the server's app")
    started = there.start(command("federate-node", str(node)))
    out, errors = running.communicate(timeout=_PATIENCE)
    assert "round 1/1" in out + errors
    assert (there.run / "result.json").is_file()
    for process in (started, server):
        process.send_signal(signal.SIGINT if process is server else signal.SIGTERM)
        process.communicate(timeout=30)
    assert there.processes("undertow.federate.worker") == []
    assert there.processes("flower-supernode") == []
    assert started.returncode == 128 + signal.SIGTERM
