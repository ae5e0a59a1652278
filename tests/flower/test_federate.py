"""`undertow federate` without a network: folder, keys, events, and the trainer over nodes in this process."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml

pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[flower]'")
pytest.importorskip("cryptography", reason="Flower is not installed with all it needs: pip install -e '.[flower]'")

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message
from node_grid import Change, NodeGrid
from safetensors.torch import load_file, save_file

from tiny import Quiet
from undertow.config import Audit, Config, load
from undertow.core.errors import UserError
from undertow.federate import keys, processes, wire, worker
from undertow.federate.check import check, differences
from undertow.federate.events import Replay, Telling
from undertow.federate.folder import Folder, NodeFolder, prepare
from undertow.federate.keys import make_certificates, make_node_key
from undertow.federate.plan import check_config, fingerprint, split
from undertow.federate.remote import Remote, network_line
from undertow.federation.loop import run
from undertow.runs.records import read_jsonl

Small = Callable[..., Config]
FEDERATED = {"federation.clients": 5, "training.trainer": "sequential", "federate.node_wait": 5, "federate.deadline": 5}


# --- what is planned --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clients", "nodes"), [(1, 1), (5, 2), (7, 7), (10, 4)])
def test_every_client_is_on_one_node(clients: int, nodes: int) -> None:
    dealt = split(clients, nodes)
    assert sorted(k for own in dealt for k in own) == list(range(clients))
    assert all(k % nodes == node for node, own in enumerate(dealt) for k in own)


@pytest.mark.parametrize("nodes", [0, 4])
def test_nodes_without_clients_are_refused(nodes: int) -> None:
    with pytest.raises(UserError, match="from 1 to 3 nodes"):
        split(3, nodes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"attack.kind": "model-replacement"}, "attack.kind"),
        ({"federation.secure_aggregation": True}, "federation.secure_aggregation"),
        ({"defenses": "abl:isolate=1:unlearn=0"}, "defense abl remembers"),
    ],
)
def test_what_nodes_cannot_do_is_refused(small_config: Small, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        check_config(small_config(changes))
    check_config(small_config())


def test_synthetic_data_are_refused() -> None:
    with pytest.raises(UserError, match=r"synthetic\.generator"):
        check_config(load("htb-digits", ["synthetic.generator=mixture", "attack.kind=data-poisoning"]))


def test_how_long_to_wait_makes_no_other_run(small_config: Small) -> None:
    plain, patient = small_config(), small_config({"federate.deadline": 7, "federate.min_clients": 2, "federate.node_wait": 9})
    assert plain.identity() == patient.identity()
    assert plain.digest() == patient.digest()
    assert small_config({"federate.max_norm": 3.0}).digest() != plain.digest()


def test_more_clients_than_there_are_cannot_be_asked_for(small_config: Small) -> None:
    with pytest.raises(UserError, match="min_clients = 4 of 3 clients"):
        small_config({"federate.min_clients": 4})


# --- the folder -------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def handshake(folder: Path, name: str) -> None:
    """Shake hands over TLS as a node that looks for a server of that name would."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    ours, theirs = socket.socketpair()

    def answer() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


def test_the_certificate_is_for_its_hosts_and_no_other(tmp_path: Path) -> None:
    make_certificates(tmp_path, "server.example.org")
    for name in ("server.example.org", "localhost", "127.0.0.1"):
        handshake(tmp_path, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, "other.example.org")
    assert mode(tmp_path / "server.key") == 0o600
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make_certificates(tmp_path, "server.example.org")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(before) == {"ca.crt", "server.pem", "server.key"}
    with pytest.raises(UserError, match=r"not for the host other\.example\.org"):
        make_certificates(tmp_path, "other.example.org")
    (tmp_path / "server.key").unlink()
    with pytest.raises(UserError, match="alone"):
        make_certificates(tmp_path, "server.example.org")


def test_a_certificate_of_another_authority_is_not_trusted(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_certificates(tmp_path / name, "localhost")
    (tmp_path / "one" / "ca.crt").write_bytes((tmp_path / "two" / "ca.crt").read_bytes())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "one", "localhost")


@pytest.mark.parametrize(("days", "message"), [(-1, "is good from .* set the clock"), (4000, "was good until")])
def test_a_certificate_and_a_clock_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, message: str
) -> None:
    class Moved(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=days)

    make_certificates(tmp_path, "localhost")
    monkeypatch.setattr(keys, "datetime", Moved)
    with pytest.raises(UserError, match=message):
        make_certificates(tmp_path, "localhost")


def test_a_node_key_is_read_and_stays(tmp_path: Path) -> None:
    make_node_key(tmp_path)
    key = load_ssh_private_key((tmp_path / "key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "key.pub").read_bytes())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert key.public_key() == public
    assert mode(tmp_path / "key") == 0o600
    before = (tmp_path / "key").read_bytes()
    (tmp_path / "key.pub").unlink()
    make_node_key(tmp_path)
    assert (tmp_path / "key").read_bytes() == before
    assert load_ssh_public_key((tmp_path / "key.pub").read_bytes()) == public
    (tmp_path / "key").unlink()
    with pytest.raises(UserError, match="without key"):
        make_node_key(tmp_path)


def test_the_folder_is_written_once_and_brought_up_to_date(tmp_path: Path, small_config: Small) -> None:
    values = {**FEDERATED, "audit.every": 3}
    config, place = small_config(values), tmp_path / "fed"
    folder = prepare(place, config, split(5, 2), "server.example.org", 8765)
    assert [node.name for node in folder.nodes] == ["node-0", "node-1"]
    assert [NodeFolder.read(node).options.clients for node in folder.nodes] == [[0, 2, 4], [1, 3]]
    assert NodeFolder.read(folder.nodes[0]).options.superlink == "server.example.org:8765"
    assert NodeFolder.read(folder.nodes[0]).digest == config.digest()
    assert NodeFolder.read(folder.nodes[0]).options.audit == config.audit == Audit(every=3, stop=False)
    assert "--host 0.0.0.0 --port 8765" in (place / "server.sh").read_text(encoding="utf-8")
    here = prepare(tmp_path / "here", config, split(5, 2))
    assert "--host 127.0.0.1 --port 9443" in (here.path / "server.sh").read_text(encoding="utf-8")
    own = folder.nodes[1] / "node.yaml"
    own.write_text(own.read_text(encoding="utf-8").replace("overrides: []", "overrides: [model.device=cpu]"), encoding="utf-8")
    keys = {path: path.read_bytes() for path in place.rglob("*") if path.name in ("key", "server.key", "ca.crt", "node.yaml")}
    prepare(place, small_config({**values, "federate.deadline": 77}), split(5, 2), "server.example.org", 8765)
    assert all(path.read_bytes() == before for path, before in keys.items())
    assert NodeFolder.read(folder.nodes[1]).config.federate.deadline == 77
    for other, nodes, told in ((small_config({**values, "seed": 9}), 2, "other values"), (config, 3, "has 2 nodes, not 3")):
        with pytest.raises(UserError, match=told):
            prepare(place, other, split(5, nodes), "server.example.org", 8765)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="no federation"):
        prepare(tmp_path / "full", config, split(5, 2))


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("bad host", "letters, digits"),
        ("http://x:1", "of a page"),
        ("", "it is empty"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("localhost ", "letters, digits"),
        ("x:9443", "--port 9443"),
        ("::1", "IPv4 alone"),
        ("10.0.0.999", "no IPv4 address"),
    ],
)
def test_a_host_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path, small_config: Small, host: str, told: str
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        prepare(tmp_path / "fed", small_config(FEDERATED), split(5, 2), host)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fed").exists()


@pytest.mark.parametrize("last", ["make_certificates", "make_node_key", "_write_scripts"])
def test_a_folder_that_was_never_finished_begins_anew(
    tmp_path: Path, small_config: Small, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"undertow.federate.folder.{last}", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "fed", small_config(FEDERATED), split(5, 2), "wrong.example")
    folder = prepare(tmp_path / "fed", small_config(FEDERATED), split(5, 2), "right.example")
    assert folder.superlink == "right.example:9443"
    assert not (tmp_path / "fed" / ".begun").exists()


def test_another_address_and_other_folders_are_refused(tmp_path: Path, small_config: Small) -> None:
    config, place = small_config(FEDERATED), tmp_path / "fed"
    folder = prepare(place, config, split(5, 2), "server.example.org", 8765)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for host, port in ((None, 9443), ("localhost", None), ("other.example.org", 8765)):
        with pytest.raises(UserError, match=r"reach the server as server\.example\.org:8765, not .*; give another --out"):
            prepare(place, config, split(5, 2), host, port)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert prepare(place, config, split(5, 2)).superlink == "server.example.org:8765"
    (folder.nodes[1] / "key").write_bytes(b"x")
    with pytest.raises(UserError, match=r"node-1/key cannot be read as a key") as caught:
        prepare(place, config, split(5, 2))
    assert "\n" not in str(caught.value)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config.values()), encoding="utf-8")
    with pytest.raises(UserError, match="no federation"):
        prepare(tmp_path / "run", config, split(5, 2))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clients: [0]\n", "superlink"),
        ("superlink: there\nclients: [0]\n", "superlink = 'there': give HOST:PORT"),
        ("superlink: there:1\nclients: [7]\n", "client 7 of 5"),
        ("superlink: there:1\nclients: [0]\noverrides: [model.devise=cpu]\n", "model.devise"),
        ("superlink: there:1\nclients: [0]\noverrides: [seed=9]\n", r"node\.yaml: overrides change seed, .* same on all machines"),
        ("superlink: there:1\nclients: [0]\noverrides: [federation.clients=1]\n", r"overrides change federation\.clients"),
        ("superlink: there:1\nclients: [0]\noverrides: [defenses=krum:f=1]\n", "overrides change defenses"),
        ("superlink: there:1\nclients: [0]\noverrides: [model.device=cpu, attack.poison_ratio=0]\n", r"attack\.poison_ratio"),
        ("superlink: [\n", "correct it"),
        ("superlink: there:1\nclients: [0]\naudit: {every: -1}\n", r"audit\.every = -1"),
        ("superlink: there:1\nclients: [0]\naudit: {stop: true}\n", "no round is audited"),
    ],
)
def test_a_wrong_node_yaml_is_told(tmp_path: Path, small_config: Small, text: str, told: str) -> None:
    folder = prepare(tmp_path / "fed", small_config(FEDERATED), split(5, 2))
    (folder.nodes[0] / "node.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        NodeFolder.read(folder.nodes[0])


def test_what_belongs_to_a_machine_may_differ_there(tmp_path: Path, small_config: Small) -> None:
    folder = prepare(tmp_path / "fed", small_config(FEDERATED), split(5, 2))
    own = "model.device=cpu, model.dtype=float64, data.path=/here, training.threads=1, training.client_chunk=2, federate.deadline=9"
    (folder.nodes[0] / "node.yaml").write_text(f"superlink: there:1\nclients: [0]\noverrides: [{own}]\n", encoding="utf-8")
    config = NodeFolder.read(folder.nodes[0]).config
    assert (config.instruction.model.dtype, config.data.path, config.training.threads) == ("float64", "/here", 1)


# --- between processes ------------------------------------------------------------------------------------------------


def test_what_one_process_tells_another_shows(tmp_path: Path) -> None:
    there, here = Quiet(), Quiet()
    telling, replay = Telling(tmp_path / "events.jsonl", there), Replay(tmp_path / "events.jsonl", here)
    replay.catch_up()
    telling.phase("loading")
    telling.warn("a warning – with a dash")
    replay.catch_up()
    with open(tmp_path / "events.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "round", ')
        file.flush()
        replay.catch_up()
        assert here.rounds == []
        file.write('"row": {"round": 1}, "of": 2}\n')
    replay.catch_up()
    assert (here.phases, here.warnings, here.rounds) == (["loading"], ["a warning – with a dash"], [{"round": 1}])
    assert there.phases == here.phases
    assert not replay.ended
    telling.failed("no node")
    replay.catch_up()
    assert replay.ended
    assert replay.error == "no node"


def test_messages_cross_the_socket_whole() -> None:
    ours, theirs = socket.socketpair()
    arrays = [os.urandom(3_000_000), b"", b"x"]
    thread = threading.Thread(target=wire.send, args=(ours, {"kind": "é", "n": [1]}, arrays))
    thread.start()
    assert wire.receive(theirs) == ({"kind": "é", "n": [1]}, arrays)
    thread.join()
    ours.sendall(b"\xff" * 8)
    with pytest.raises(ConnectionError, match="at most"):
        wire.receive(theirs)
    ours.close()
    with pytest.raises(ConnectionError, match="closed"):
        wire.receive(theirs)


def test_without_a_worker_the_client_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="no worker"):
        wire.ask(str(tmp_path / "none"), {})


def test_processes_that_detached_themselves_are_stopped_too(tmp_path: Path) -> None:
    inner = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    outer = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True); "
        f"f = open({str(tmp_path / 'pid')!r}, 'w'); f.write(str(p.pid)); f.close(); p.wait()"
    )
    mark = str(tmp_path)
    started = processes.start([sys.executable, "-c", outer], {**os.environ, "A_MARK": mark}, log=tmp_path / "log")
    end = time.monotonic() + 20
    while time.monotonic() < end and not (
        "up" in (tmp_path / "log").read_text(encoding="utf-8") and (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()
    ):
        time.sleep(0.05)
    child = psutil.Process(int((tmp_path / "pid").read_text(encoding="utf-8")))
    processes.stop("A_MARK", mark, patience=0.5)
    started.wait(5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("Linux alone tells a child of its parent's death")
    code = (
        "import os, sys, time; from undertow.federate.processes import start; "
        "p = start([sys.executable, '-c', 'import time; time.sleep(60)'], os.environ); print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        child.wait(10)
    assert not child.is_running()


def test_what_detached_itself_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    detached = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path / "pid")!r} + sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)"""
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {detached!r}, '2'], start_new_session=True)"
    code = f"""
import os, subprocess, sys, time
from undertow.federate import processes
with processes.guarded() as guard:
    env = dict(os.environ) | guard
    processes.start([sys.executable, "-c", {detached!r}, "1"], env)
    processes.start([sys.executable, "-c", {child!r}], env).wait()
    time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        pids = [tmp_path / "pid1", tmp_path / "pid2"]
        until = time.monotonic() + 30
        while not all(file.exists() and file.read_text() for file in pids) and time.monotonic() < until:
            time.sleep(0.05)
        left = [psutil.Process(int(file.read_text())) for file in pids]
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs(left, timeout=20)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


# --- the trainer ------------------------------------------------------------------------------------------------------


class Setup:
    """A federation of five clients on three nodes of this process."""

    def __init__(self, place: Path, config: Config, change: Change) -> None:
        (place / "s").mkdir()
        self.config = config
        self.folder: Folder = prepare(place / "fed", config, split(5, 3))
        self.grid = NodeGrid(self.folder, place / "s", change)
        self.observer = Quiet()

    def run(self) -> dict[str, Any]:
        remote = Remote(
            self.grid,
            self.config.federation.clients,
            self.config.federate,
            self.config.digest(),
            self.folder.run,
            self.observer,
            pause=0.02,
        )
        remote.meet()
        return run(self.config, self.folder.run, self.observer, trainer=remote)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return without_times(self.folder.run)


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(folder / "rounds.jsonl")]


def adapter(folder: Path) -> bytes:
    return sorted((folder / "checkpoint").glob("round-*"))[-1].joinpath("adapter.safetensors").read_bytes()


@pytest.fixture
def make(small_config: Small, short_path: Path) -> Callable[..., Setup]:
    def setup(changes: dict[str, Any] | None = None, change: Change = lambda index, reply: reply) -> Setup:
        return Setup(short_path, small_config({**FEDERATED, **(changes or {})}), change)

    return setup


@pytest.mark.parametrize("defenses", ["", "krum:f=1", "gated-loss"])
def test_over_nodes_a_run_is_the_same(make: Callable[..., Setup], tmp_path: Path, defenses: str) -> None:
    there = make({"defenses": defenses, "federation.participation": 1.0})
    there.run()
    here = tmp_path / "here"
    run(there.config, here, Quiet())
    assert there.rows == without_times(here)
    assert adapter(there.folder.run) == adapter(here)
    exchanges = read_jsonl(there.folder.run / "network.jsonl")
    assert [(row["round"], row["node"], row["clients"]) for row in exchanges[:3]] == [
        (1, "node-0", [0, 3]),
        (1, "node-1", [1, 4]),
        (1, "node-2", [2]),
    ]
    assert len(exchanges) == 6
    assert exchanges[0]["received_bytes"] > 1.9 * exchanges[0]["sent_bytes"]  # two clients' updates for one state
    assert str(network_line(there.folder.run)).startswith("network: 6 exchanges, ")


def test_a_node_audits_what_it_is_sent_as_its_owner_says(make: Callable[..., Setup], short_path: Path, tmp_path: Path) -> None:
    options = {"federation.participation": 1.0, "data.test": 20}
    folder = prepare(short_path / "fed", make(options).config, split(5, 3))
    own = folder.nodes[1] / "node.yaml"
    own.write_text(own.read_text(encoding="utf-8").replace("every: 0", "every: 1"), encoding="utf-8")
    (short_path / "s").rename(short_path / "before")
    there = make(options)
    there.run()
    assert [(node / "audits.jsonl").exists() for node in folder.nodes] == [False, True, False]
    (row,) = read_jsonl(folder.nodes[1] / "audits.jsonl")
    assert (row["round"], row["audit"]["verdict"] in ("nothing found", "inconclusive")) == (1, True)
    here = tmp_path / "here"
    run(there.config, here, Quiet())
    assert there.rows == without_times(here), "an audit changes nothing of what is trained"


def test_check_says_how_near_the_network_is_to_one_process(make: Callable[..., Setup]) -> None:
    there = make({"defenses": "krum:f=1", "federation.participation": 1.0})
    there.run()
    found = check(there.folder, Quiet())
    rounds = there.config.federation.rounds
    assert {key: found[key] for key in ("adapter", "same_bytes")} == {"adapter": 0.0, "same_bytes": True}
    assert [found[key] for key in ("rounds", "same_clients", "same_decisions", "same_rows")] == [rounds] * 4
    assert json.loads((there.folder.run / "one-process.json").read_text(encoding="utf-8")) == {"format": 1, **found}
    assert "equal to the last bit" in (there.folder.run / "report.html").read_text(encoding="utf-8")
    # a run that chose otherwise and ended elsewhere is told as such
    path = there.folder.path / "one-process" / "rounds.jsonl"
    rows = read_jsonl(path)
    rows[-1]["defenses"][0]["chosen"] = [(rows[-1]["defenses"][0]["chosen"][0] + 1) % 5]
    rows[-1]["participants"] = rows[-1]["participants"][1:]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    last = sorted((there.folder.run / "checkpoint").glob("round-*"))[-1] / "adapter.safetensors"
    state = load_file(last)["adapter"]
    save_file({"adapter": 1.25 * state}, last)
    found = differences(there.folder.run, there.folder.path / "one-process")
    assert found["adapter"] == pytest.approx(0.25)
    assert not found["same_bytes"]
    assert [found[key] for key in ("rounds", "same_clients", "same_decisions", "same_rows")] == [rounds, *[rounds - 1] * 3]


HALF = """
from undertow.defenses import LossDefense


class Half(LossDefense):
    def select(self, data, adapter, context):
        return [i % 2 == context.client % 2 for i in range(len(data))], {"norm": float(adapter.norm())}
"""


def test_what_defenses_report_of_the_clients_is_the_same(make: Callable[..., Setup], tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(HALF, encoding="utf-8")
    there = make({"defenses": f"{tmp_path / 'half.py'}:Half"})
    there.run()
    run(there.config, tmp_path / "here", Quiet())
    assert there.rows == without_times(tmp_path / "here")
    (report,) = there.rows[1]["defenses"]
    assert [own["client"] for own in report["clients"]] == [0, 1, 2, 3, 4]


def test_participants_in_part_and_networks_of_images(tmp_path: Path, short_path: Path) -> None:
    values = ["federation.clients=5", "federation.participation=0.6", "federation.rounds=2", "attack.rounds=[]", "model.device=cpu"]
    more = [
        "attack.kind=data-poisoning",
        "attack.client_share=0.4",
        "training.trainer=sequential",
        "defenses=[]",
        "measure.samples=20",
    ]
    there = Setup(short_path, load("htb-digits", [*values, *more, "training.local_epochs=1"]), lambda index, reply: reply)
    there.run()
    run(there.config, tmp_path / "here", Quiet())
    assert there.rows == without_times(tmp_path / "here")
    assert adapter(there.folder.run) == adapter(tmp_path / "here")
    assert len(there.rows[1]["participants"]) == 3


def test_batched_training_differs_by_rounding_alone(make: Callable[..., Setup], tmp_path: Path) -> None:
    there = make({"training.trainer": "batched"})
    there.run()
    run(there.config, tmp_path / "here", Quiet())
    from safetensors.numpy import load

    ours, theirs = load(adapter(there.folder.run))["adapter"], load(adapter(tmp_path / "here"))["adapter"]
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)


def replaced(reply: Message, client: int, edit: Callable[[np.ndarray], np.ndarray]) -> Message:
    """The reply with every array of one client's update changed."""
    record = reply.content[f"update-{client}"]
    reply.content[f"update-{client}"] = ArrayRecord({name: Array(edit(array.numpy().copy())) for name, array in record.items()})
    return reply


def nan(value: np.ndarray) -> np.ndarray:
    value.flat[-1] = np.nan
    return value


def told(reply: Message, **changes: Any) -> Message:
    answer = json.loads(str(reply.content["told"]["json"])) | changes
    reply.content["told"] = ConfigRecord({"json": json.dumps(answer)})
    return reply


def without(reply: Message, name: str) -> Message:
    del reply.content[name]
    return reply


def raised(reply: Message) -> Message:
    """As Flower 1.42 passes on what a ClientApp raised."""
    message = Message(Error(code=3, reason="<class 'RuntimeError'>:<'no room on this node's disk'>"), reply_to=reply)
    message.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return message


def failed(reply: Message) -> Message:
    message = Message(Error(code=0, reason="ZeroDivisionError\n: division\x1b by zero"), reply_to=reply)
    message.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return message


def huge(reply: Message) -> Message:
    reply.content["more"] = ArrayRecord({"more": Array(np.zeros(3_000_000))})
    return reply


# node 1 holds clients 1 and 4
BAD: list[tuple[str, Callable[[Message], Message | None], list[int], str]] = [
    ("nan", lambda reply: replaced(reply, 4, nan), [4], "holds NaN or infinity"),
    ("shape", lambda reply: replaced(reply, 1, lambda value: value[:1]), [1], "has shape"),
    ("kind", lambda reply: replaced(reply, 1, lambda value: value.astype(np.int64)), [1], "holds int64"),
    ("norm", lambda reply: replaced(reply, 4, lambda value: value + 1e5), [4], "federate.max_norm"),
    ("names", lambda reply: without(reply, "update-1"), [1], "no update of client 1"),
    ("count", lambda reply: told(reply, clients=[{"client": 1, "count": 0, "loss": 1.0}]), [1, 4], "give more than 0"),
    ("others", lambda reply: told(reply, clients=[{"client": 2, "count": 9, "loss": 1.0}]), [1, 4], "other clients"),
    ("silent", lambda reply: without(reply, "told"), [1, 4], "does not say"),
    ("error", failed, [1, 4], "ZeroDivisionError"),
    ("raised", raised, [1, 4], "reports an error: no room on this node's disk"),
    ("size", huge, [1, 4], "bytes, at most"),
    ("late", lambda reply: None, [1, 4], "no answer within 0.3 s"),
]


@pytest.mark.parametrize(("change", "lost", "reason"), [item[1:] for item in BAD], ids=[item[0] for item in BAD])
def test_a_bad_reply_is_dropped_named_and_counted(
    make: Callable[..., Setup], change: Callable[[Message], Message | None], lost: list[int], reason: str
) -> None:
    def once(index: int, reply: Message) -> Message | None:
        first = len([kind for _, kind in setup.grid.asked if kind == "train"]) <= 3
        return change(reply) if index == 1 and first else reply

    changes = {"federate.min_clients": 3, "federate.max_norm": 1000.0}
    if reason.startswith("no answer"):
        changes["federate.deadline"] = 0.3
    setup = make(changes, once)
    setup.run()
    assert [row.get("dropped") for row in setup.rows] == [None, lost, []]
    assert setup.rows[1]["participants"] == [k for k in range(5) if k not in lost]
    (warning,) = setup.observer.warnings
    assert warning.startswith(f"round 1: nothing of client {', '.join(map(str, lost))}: node-1 ")
    assert reason in warning
    assert "\n" not in warning
    assert "\x1b" not in warning
    exchange = read_jsonl(setup.folder.run / "network.jsonl")[1]
    assert [one["clients"] for one in exchange["dropped"]] == [lost]


def test_with_too_few_sound_replies_the_run_stops_and_resumes_as_if_it_had_not(make: Callable[..., Setup], tmp_path: Path) -> None:
    def second_round(index: int, reply: Message) -> Message | None:
        asked = len([kind for _, kind in setup.grid.asked if kind == "train"])
        return failed(reply) if broken and index == 2 and asked > 3 else reply

    broken = True
    setup = make({}, second_round)
    with pytest.raises(UserError, match=r"round 2: 4 sound updates, 5 are asked for .*node-2 reports an error"):
        setup.run()
    assert [row["round"] for row in setup.rows] == [0, 1]
    broken = False
    setup.run()
    run(setup.config, tmp_path / "here", Quiet())
    assert setup.rows == without_times(tmp_path / "here")
    assert adapter(setup.folder.run) == adapter(tmp_path / "here")
    assert [row["round"] for row in read_jsonl(setup.folder.run / "network.jsonl")] == [1, 1, 1, 2, 2, 2]


def test_a_rule_that_is_left_too_few_clients_says_so(make: Callable[..., Setup]) -> None:
    setup = make({"defenses": "krum:f=1", "federate.min_clients": 2}, lambda index, reply: failed(reply) if index == 2 else reply)
    with pytest.raises(UserError, match=r"round 1: 4 sound updates: .*krum"):
        setup.run()


def test_who_is_away_is_not_waited_for_where_the_others_are_enough(make: Callable[..., Setup]) -> None:
    setup = make({"federate.min_clients": 4, "federate.deadline": 1000})
    remote = Remote(
        setup.grid,
        setup.config.federation.clients,
        setup.config.federate,
        setup.config.digest(),
        setup.folder.run,
        setup.observer,
        pause=0.02,
    )
    remote.meet()
    setup.grid.away.add(setup.grid.numbers[2])
    run(setup.config, setup.folder.run, setup.observer, trainer=remote)
    assert [row.get("dropped") for row in setup.rows] == [None, [2], [2]]
    assert all("node-2 is not connected" in warning for warning in setup.observer.warnings)


def test_clients_that_no_node_holds_stop_the_run_before_it_begins(make: Callable[..., Setup]) -> None:
    setup = make({"federate.node_wait": 0.5})
    setup.grid.away.add(setup.grid.numbers[1])
    with pytest.raises(UserError, match=r"no node holds client 1, 4; start the nodes"):
        setup.run()
    assert not setup.folder.run.exists()


def test_a_node_that_lost_the_first_question_is_asked_again(make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undertow.federate.remote._ASK_AGAIN", 0.1)
    setup = make({"federate.node_wait": 30})
    answers, pushed = setup.grid.push_messages, []

    def lose_the_first(messages: Any) -> Any:
        found = answers(messages)
        pushed.extend(found)
        if len(pushed) == 1:
            setup.grid.lose(pushed[0])
        return found

    monkeypatch.setattr(setup.grid, "push_messages", lose_the_first)
    setup.run()
    assert [row["round"] for row in setup.rows] == [0, 1, 2]
    assert [kind for _, kind in setup.grid.asked].count("query") >= 4


def test_two_nodes_that_hold_one_client_are_refused(make: Callable[..., Setup], small_config: Small, short_path: Path) -> None:
    folder = prepare(short_path / "fed", small_config(FEDERATED), split(5, 3))
    values = yaml.safe_load((folder.nodes[2] / "node.yaml").read_text(encoding="utf-8")) | {"clients": [2, 4]}
    (folder.nodes[2] / "node.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(UserError, match="client 4 is claimed by node-"):
        make().run()


def test_a_node_set_up_for_other_values_is_refused(make: Callable[..., Setup], small_config: Small, short_path: Path) -> None:
    folder = prepare(short_path / "fed", small_config(FEDERATED), split(5, 3))
    other = yaml.safe_dump(small_config({**FEDERATED, "seed": 5}).values())
    setup = make({"federate.node_wait": 0.5})
    (folder.nodes[1] / "config.yaml").write_text(other, encoding="utf-8")
    (short_path / "s2").mkdir()
    setup.grid = NodeGrid(folder, short_path / "s2")
    with pytest.raises(UserError, match=r"no node holds client 1, 4; node \d+ was set up for other values"):
        setup.run()


def test_what_a_worker_cannot_do_it_answers(make: Callable[..., Setup]) -> None:
    setup = make()
    path = setup.grid.paths[setup.grid.numbers[0]]
    layout = setup.grid.federation.task.layout
    order = {"round": 1, "clients": [1], "acting": [], "layout": fingerprint(layout)}
    for changes, state, told in (
        ({}, [], "holds no client 1"),
        ({"clients": [0], "layout": "other"}, [], "other names or shapes"),
        ({"clients": [0]}, [b"no array"], "cannot be read"),
        ({"clients": [0]}, [worker.packed(torch.zeros(3))], "has shape [3]"),
        ({"clients": [0]}, [worker.packed(torch.full((layout.size,), torch.nan))], "finite"),
    ):
        answer, _ = wire.ask(path, {"kind": "train", "order": order | changes}, state)
        assert told in answer["error"]
    answer, _ = wire.ask(path, {"kind": "query"})
    assert answer["clients"] == [0, 3]
    assert mode(Path(path)) == 0o600
