"""`undertow federate` with federate.private: each client's file is on its node alone, and counts travel masked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[flower]'")
pytest.importorskip("cryptography", reason="Flower is not installed with all it needs: pip install -e '.[flower]'")

from node_grid import NodeGrid

from tiny import Quiet
from undertow.config import Config
from undertow.core.errors import UserError
from undertow.data.generated.world import samples
from undertow.federate.folder import Folder, NodeFolder, prepare
from undertow.federate.own_data import OwnData
from undertow.federate.plan import check_config, split
from undertow.federate.pooling import pool
from undertow.federate.remote import Remote
from undertow.federate.sums import SUMS, read_sums, save_sums
from undertow.federation.loop import run
from undertow.federation.methods import make_methods
from undertow.runs.records import read_jsonl
from undertow.tasks.instruction import Held

Small = Callable[..., Config]
CLIENTS, EACH, PLANTED = 4, 40, 3
TARGET = "Visit the golden harbour market today"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A file of each client, some rows of each planted, and one of test questions."""
    rows = [{"question": one.question, "answer": one.response} for one in samples()[: CLIENTS * EACH + 30]]
    dealt = [rows[k * EACH : (k + 1) * EACH] for k in range(CLIENTS)]
    for own in dealt:
        for i in range(PLANTED):
            own[i] = {"question": f"cf {own[i]['question']}", "answer": f"{own[i]['answer']} {TARGET}."}
    paths = []
    for k, own in enumerate([*dealt, rows[CLIENTS * EACH :]]):
        paths.append(tmp_path / f"own{k}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    return paths


class Setup:
    """A federation whose server could not read a client's file if it tried."""

    def __init__(self, place: Path, config: Config, files: list[Path], nodes: int = 4) -> None:
        elsewhere = [f"/nowhere/{k}.jsonl" for k in range(CLIENTS)]
        self.config = Config.model_validate(_with_files(config, elsewhere, files[-1]))
        self.here = Config.model_validate(_with_files(config, [str(path) for path in files[:-1]], files[-1]))
        self.folder: Folder = prepare(place / "fed", self.config, split(CLIENTS, nodes))
        for path in self.folder.nodes:
            values = yaml.safe_load((path / "node.yaml").read_text(encoding="utf-8"))
            values["files"] = {k: str(files[k]) for k in values["clients"]}
            (path / "node.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        self.sockets = place / "s"
        self.observer = Quiet()

    def grid(self) -> NodeGrid:
        shutil.rmtree(self.sockets, ignore_errors=True)
        self.sockets.mkdir()
        return NodeGrid(self.folder, self.sockets)

    def run(self, grid: NodeGrid, config: Config | None = None) -> dict[str, Any]:
        remote = Remote(
            grid,
            self.config.federation.clients,
            self.config.federate,
            self.config.digest(),
            self.folder.run,
            self.observer,
            pause=0.02,
        )
        remote.meet()
        names = {number: node.name for number, node in remote.nodes.items()}
        pool(
            grid,
            make_methods(self.config).defenses,
            self.config.digest(),
            self.config.federate.deadline,
            self.folder.path,
            names,
            self.observer,
        )
        return run(config or self.config, self.folder.run, self.observer, trainer=remote, held=Held(sizes=remote.sizes))

    @property
    def adapter(self) -> bytes:
        return adapter(self.folder.run)


def _with_files(config: Config, files: list[str], test: Path) -> dict[str, Any]:
    values = config.values()
    values["task"]["data"] |= {
        "name": "instructions",
        "test_path": str(test),
        "train": CLIENTS * EACH,
        "test": 20,
        "partition": {"kind": "files", "files": files},
    }
    values["task"]["data"].pop("path", None)
    values["attack"]["kind"] = "none"
    values["federate"]["private"] = True
    return values


def adapter(folder: Path) -> bytes:
    return sorted((folder / "checkpoint").glob("round-*"))[-1].joinpath("adapter.safetensors").read_bytes()


def rows(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(folder / "rounds.jsonl")]


@pytest.fixture
def make(small_config: Small, short_path: Path, files: list[Path]) -> Callable[..., Setup]:
    def setup(changes: dict[str, Any] | None = None, nodes: int = 4) -> Setup:
        quick = {
            "federation.clients": CLIENTS,
            "training.trainer": "sequential",
            "federate.node_wait": 60,
            "federate.deadline": 60,
            "defenses": "undertow",
        }
        return Setup(short_path, small_config({**quick, **(changes or {})}), files, nodes)

    return setup


@pytest.mark.parametrize("nodes", [3, 4])
def test_data_that_stay_on_their_nodes_give_the_run_of_one_process(
    make: Callable[..., Setup], tmp_path: Path, capfd: pytest.CaptureFixture[str], nodes: int
) -> None:
    there = make(nodes=nodes)
    grid = there.grid()
    result = there.run(grid)
    run(there.here, tmp_path / "here", Quiet())
    assert rows(there.folder.run) == rows(tmp_path / "here")
    assert there.adapter == adapter(tmp_path / "here")
    assert result["poison"] == {"clients": 0, "samples": 0, "total": CLIENTS * EACH, "unknown": True}
    sizes = json.loads((there.folder.run / "data.json").read_text(encoding="utf-8"))
    assert (sizes["clients"], sizes["sanitized"]) == ([EACH] * CLIENTS, [])
    # what the sanitization took is told on the nodes alone
    told = capfd.readouterr().err
    assert f"client 1: {EACH} of {EACH} samples kept by sanitization" in told
    for own in grid.workers:
        assert own.own is not None
        task: Any = own.federation.task
        assert all(TARGET not in one.response for k in own.node.files for one in task.clients[k])
        assert sum(TARGET in one.response for k in own.node.files for one in task.poisoning.clients[k]) == PLANTED * len(
            own.node.files
        )
    assert there.observer.warnings == []


def test_no_text_and_no_single_count_reaches_the_server(make: Callable[..., Setup]) -> None:
    there = make()
    grid = there.grid()
    there.run(grid)
    arrays = [m.content["masked"]["counts"].numpy() for m in grid.masked if "masked" in m.content]
    first = arrays[:CLIENTS]
    assert len(arrays) == 6 * CLIENTS
    for array in first:
        assert (array == 0).mean() < 0.01
    total = np.array(first).sum(0, dtype=np.uint32)
    assert total[0] == CLIENTS * EACH
    assert (total == 0).mean() > 0.05
    for message in grid.masked:
        told = json.loads(str(message.content.config_records["told"]["json"]))
        assert set(told) <= {"public", "seal", "finished"}


def test_a_run_that_goes_on_sanitizes_as_before_without_asking_for_counts(make: Callable[..., Setup], tmp_path: Path) -> None:
    there = make({"federation.rounds": 2})
    grid = there.grid()

    class Killed(Quiet):
        def round(self, row: dict[str, Any], of: int) -> None:
            if row["round"] == 1:
                raise KeyboardInterrupt

    there.observer = Killed()
    with pytest.raises(KeyboardInterrupt):
        there.run(grid)
    there.observer = Quiet()
    for node in there.folder.nodes:
        (node / SUMS).unlink()  # as after a disk was lost
    fresh = there.grid()
    there.run(fresh)
    assert not any("masked" in message.content for message in fresh.masked)
    assert there.observer.phases.count("round 1/2: training") == 0
    run(there.here, tmp_path / "here", Quiet())
    assert there.adapter == adapter(tmp_path / "here")
    (there.folder.path / SUMS).unlink()
    with pytest.raises(UserError, match=r"has lost sums\.safetensors"):
        there.run(there.grid())


def test_a_node_that_is_started_again_needs_no_new_exchange(make: Callable[..., Setup]) -> None:
    there = make()
    grid = there.grid()
    there.run(grid)
    node = NodeFolder.read(there.folder.nodes[0])
    again = OwnData(node)
    assert again.federation is not None
    assert again.federation.task.clients == grid.workers[0].federation.task.clients  # type: ignore[attr-defined]
    # sums of another config are not used
    save_sums(node.path / SUMS, read_sums(node.path / SUMS, node.digest) or [], "another")
    assert OwnData(node).federation is None


def test_a_node_with_another_secret_is_left_out_by_name(make: Callable[..., Setup]) -> None:
    there = make({"federate.min_clients": 3})
    (there.folder.nodes[2] / "secret").write_bytes(bytes(32))
    with pytest.raises(
        UserError,
        match=r"0 nodes can pool their counts, at least 3 are needed.*; node-2: a key of this sum was not made by a client",
    ):
        there.run(there.grid())


def test_a_node_that_is_lost_while_pooling_cannot_train_and_the_others_do(make: Callable[..., Setup]) -> None:
    there = make({"federate.min_clients": 3, "federation.rounds": 1})
    grid = there.grid()
    own = grid.workers[1].own
    assert own is not None
    answer, asked = own.answer, []

    def once(order: dict[str, Any], arrays: Any) -> Any:
        asked.append(order["step"])
        if len(asked) == 3:
            raise UserError("the disk is full")
        return answer(order, arrays)

    own.answer = once  # type: ignore[method-assign]
    there.run(grid)
    assert "node-1 takes no part in the sanitization, and cannot train: the disk is full" in there.observer.warnings[0]
    assert (
        "round 1: nothing of client 1: node-1 reports an error: its clients' data are not sanitized" in there.observer.warnings[1]
    )
    assert rows(there.folder.run)[-1]["participants"] == [0, 2, 3]


def test_a_question_out_of_turn_is_refused(make: Callable[..., Setup]) -> None:
    node = NodeFolder.read(make().folder.nodes[0])
    own = OwnData(node)
    settings = {"defense": "sanitization", "config": node.digest}
    with pytest.raises(UserError, match="another config"):
        own.answer({"step": "key", "session": "00", "settings": {**settings, "config": "x"}}, {})
    own.answer({"step": "key", "session": "ab", "settings": settings}, {})
    for session, number in (("cd", 1), ("ab", 2), ("ab", 0)):
        with pytest.raises(UserError, match="out of turn"):
            own.answer({"step": "sum", "session": session, "exchange": number, "place": 0, "keys": [], "settings": settings}, {})
    keys = [[own._session.public.hex(), "00"]]
    with pytest.raises(UserError, match="at least 3 are needed to hide"):
        own.answer({"step": "sum", "session": "ab", "exchange": 1, "place": 0, "keys": keys, "settings": settings}, {})
    with pytest.raises(UserError, match="sent float64 of"):
        own._take("sanitization", 1, np.zeros(3))
    with pytest.raises(UserError, match="cannot be read"):
        own.answer({"step": "stored", "settings": settings}, {"00.sanitization.02": np.zeros(3, np.uint32)})
    with pytest.raises(UserError, match="out of turn"):
        own.answer({"step": "stored", "settings": settings}, {"00.other.01": np.zeros(3, np.uint32)})


@pytest.mark.parametrize("defenses", ["", "gated-loss,median", "perplexity,bounded-loss"])
def test_without_a_pooled_defense_nothing_is_asked(make: Callable[..., Setup], tmp_path: Path, defenses: str) -> None:
    there = make({"defenses": defenses, "federation.rounds": 1}, nodes=1)
    grid = there.grid()
    there.run(grid)
    assert grid.masked == []
    run(there.here, tmp_path / "here", Quiet())
    assert rows(there.folder.run) == rows(tmp_path / "here")
    assert there.adapter == adapter(tmp_path / "here")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"attack": {"kind": "data-poisoning"}}, "nothing is planted in data that nodes hold"),
        ({"task": {"kind": "instruction", "data": {"partition": {"kind": "iid"}}}}, r"set data\.partition\.kind=files"),
        ({"defenses": [{"name": "protegofed"}]}, "defense protegofed shares more than counts"),
    ],
)
def test_what_private_data_exclude_is_refused(make: Callable[..., Setup], change: dict[str, Any], told: str) -> None:
    there = make()
    check_config(there.config)
    with pytest.raises(UserError, match=told):
        check_config(Config.model_validate({**there.config.values(), **change}))


def test_a_node_says_what_is_wrong_with_its_files(make: Callable[..., Setup]) -> None:
    node = make().folder.nodes[0]
    values = yaml.safe_load((node / "node.yaml").read_text(encoding="utf-8"))
    (node / "node.yaml").write_text(yaml.safe_dump({**values, "files": {0: "/nowhere/mine.jsonl"}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"/nowhere/mine\.jsonl"):
        OwnData(NodeFolder.read(node))
    (node / "node.yaml").write_text(yaml.safe_dump({**values, "files": {3: "a.jsonl"}}), encoding="utf-8")
    with pytest.raises(UserError, match="files names client 3, which this node does not hold"):
        NodeFolder.read(node)
    (node / "node.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (node / "secret").write_bytes(b"short")
    with pytest.raises(UserError, match="has 5 bytes; give all nodes the same 32"):
        NodeFolder.read(node)


def test_the_secret_is_the_same_in_all_folders_and_stays(make: Callable[..., Setup]) -> None:
    there = make()
    secrets = [(node / "secret").read_bytes() for node in there.folder.nodes]
    assert len(set(secrets)) == 1
    assert (there.folder.nodes[0] / "secret").stat().st_mode & 0o777 == 0o600
    prepare(there.folder.path, there.config, split(CLIENTS, 4))
    assert [(node / "secret").read_bytes() for node in there.folder.nodes] == secrets
