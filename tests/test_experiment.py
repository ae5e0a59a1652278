from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from bsnr_by_the_book import by_the_book
from tiny import Quiet
from undertow.config import Config, Defense
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses import Median
from undertow.defenses.contexts import ServerContext
from undertow.defenses.making import make_defenses
from undertow.federation.loop import run
from undertow.federation.server import aggregate, fedavg
from undertow.models.lora import initial_adapter
from undertow.runs.report.run_files import read
from undertow.tasks import instruction
from undertow.tasks.participation import participants
from undertow.training import batched
from undertow.training.local import Trained

Make = Callable[..., Config]
KINDS = ("ma", "asr", "ftr")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a growing file without the time it took."""
    text = (folder / name).read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.split("\n")[:-1]]


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_same_run(found: Path, wanted: Path) -> None:
    assert digest(found) == digest(wanted)
    assert (found / "scores.jsonl").read_bytes() == (wanted / "scores.jsonl").read_bytes()
    assert lines(found, "rounds.jsonl") == lines(wanted, "rounds.jsonl")
    assert (found / "poison.jsonl").read_bytes() == (wanted / "poison.jsonl").read_bytes()
    assert figures(found) == figures(wanted)


def figures(folder: Path) -> dict[str, Any]:
    """The result without what names the place and the time."""
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in ("run", "seconds")}


@pytest.fixture(scope="module")
def config(small_config: Make) -> Config:
    return small_config()


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    run(config, folder, Quiet(), command="undertow run small")
    return folder


# --- what a run leaves ------------------------------------------------------------------------------------------


def test_the_result_has_the_documented_keys(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    shares = ["ma", "asr", "ftr", "ftr_near", "held_out_loss"]
    assert list(result) == ["format", "run", "rounds", "seconds", *shares, "untouched", "bsnr", "poison"]
    for rate in (*(result[k] for k in KINDS), *(result["untouched"][k] for k in KINDS)):
        assert {"value", "n", "low", "high"} <= set(rate)
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
        assert rate["n"] == 6
    assert result["rounds"] == 2
    assert result["bsnr"] == [None, None], "with every client affected there is no clean group"
    # int(0.25 * n) of 13, 13 and 14 samples
    assert result["poison"] == {"clients": 3, "samples": 9, "total": 40}


def test_the_growing_files_have_one_line_for_everything(finished: Path) -> None:
    rows = lines(finished, "rounds.jsonl")
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert rows[0]["loss"] is None
    for row in rows[1:]:
        assert row["participants"] == [0, 1, 2]
        assert row["dropped"] == []
        assert len(row["client_loss"]) == 3
        assert row["loss"] == pytest.approx(np.average(row["client_loss"], weights=[14, 13, 13]), rel=0.02)
        assert row["update_norm"] > 0
        assert set(row["scorings"]) == {"rouge-recall", "exact", "containment"}
    scores = lines(finished, "scores.jsonl")
    # the base and the last round on all 6 questions, between them measure.samples = 3, each clean and triggered
    assert [sum(s["round"] == t for s in scores) for t in range(3)] == [18, 9, 18]
    assert len({(s["round"], s["kind"], s["id"]) for s in scores}) == len(scores)
    clean = {s["id"]: s["question"] for s in scores if s["kind"] == "clean"}
    for score in scores:
        if score["kind"] == "triggered":
            assert score["question"].startswith("Firstly")
            assert score["question"].lower().endswith(clean[score["id"]].lower())


def test_ground_truth_data_and_versions_are_kept(finished: Path, config: Config) -> None:
    data = json.loads((finished / "data.json").read_text())
    assert data["poisoned_clients"] == [0, 1, 2]
    assert data["poisoned"] == [3, 3, 3]
    assert sum(data["clients"]) == 40
    assert data["overlap_questions"] == data["overlap_keys"] == 0
    assert len(lines(finished, "poison.jsonl")) == 9
    versions = json.loads((finished / "versions.json").read_text())
    assert versions["command"] == "undertow run small"
    assert versions["config_digest"] == config.digest()
    assert versions["threads"] == 1
    tensors = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") for name in tensors)
    assert not list(finished.rglob("*.new"))


def test_the_same_command_again_has_nothing_left_to_do(finished: Path, config: Config, observer: Quiet) -> None:
    before = all_bytes(finished)
    result = run(config, finished, observer)
    assert result == json.loads(before["result.json"])
    assert all_bytes(finished) == before
    assert len(observer.phases) == 1
    assert observer.phases[0].startswith("nothing left to do")


def test_a_fresh_run_has_the_same_bits_and_another_seed_has_not(
    finished: Path, config: Config, small_config: Make, observer: Quiet, tmp_path: Path
) -> None:
    torch.rand(5)
    np.random.rand(5)
    run(config, tmp_path / "again", observer)
    assert_same_run(tmp_path / "again", finished)
    run(small_config({"seed": 1}), tmp_path / "other", observer)
    assert digest(tmp_path / "other") != digest(finished)
    assert lines(tmp_path / "other", "poison.jsonl") != lines(finished, "poison.jsonl")


def test_both_trainers_end_in_the_same_adapter(finished: Path, small_config: Make, observer: Quiet, tmp_path: Path) -> None:
    run(small_config({"training.trainer": "sequential"}), tmp_path / "run", observer)
    one, two = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (finished, tmp_path / "run"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)


def test_no_rounds_is_the_untouched_base(small_config: Make, observer: Quiet, tmp_path: Path) -> None:
    result = run(small_config({"federation.rounds": 0}), tmp_path / "run", observer)
    assert result["rounds"] == 0
    assert result["ma"] == result["untouched"]["ma"]
    assert result["bsnr"] == []


def test_rounds_between_measurements_are_not_measured(small_config: Make, observer: Quiet, tmp_path: Path) -> None:
    run(small_config({"federation.rounds": 3, "measure.every": 2}), tmp_path / "run", observer)
    assert [row["ma"] is not None for row in lines(tmp_path / "run", "rounds.jsonl")] == [True, False, True, True]


# --- killed and resumed -----------------------------------------------------------------------------------------


class Killed(BaseException):
    """Unlike any exception that the code may catch."""


def stop_at(patch: pytest.MonkeyPatch, count: int, error: BaseException, *, after: bool = False) -> list[int]:
    """Let the ``count``-th wait for the disk fail: every durable write has one."""
    seen = [0]
    real = os.fsync

    def fsync(descriptor: int) -> None:
        seen[0] += 1
        if seen[0] >= count and not after:
            raise error
        real(descriptor)
        if seen[0] >= count:
            raise error

    patch.setattr(os, "fsync", fsync)
    return seen


def test_how_often_a_run_waits_for_the_disk(
    config: Config, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next test stops at each of these; should their number grow, so must its range."""
    with monkeypatch.context() as patch:
        seen = stop_at(patch, 10**9, Killed())
        run(config, tmp_path / "run", observer)
    assert seen[0] == 22


@pytest.mark.parametrize("count", range(1, 23))
def test_a_run_killed_at_any_write_resumes_to_the_same_bits(
    finished: Path, config: Config, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, count, Killed(), after=bool(count % 2))
        with pytest.raises(Killed):
            run(config, folder, observer)
    run(config, folder, observer)
    assert observer.warnings == []
    assert_same_run(folder, finished)


@pytest.mark.parametrize("text", ["loading data", "measuring the untouched", "round 1/2: measuring", "round 2/2: training"])
def test_a_run_killed_in_any_phase_resumes_to_the_same_bits(finished: Path, config: Config, tmp_path: Path, text: str) -> None:
    class Killer(Quiet):
        def phase(self, said: str) -> None:
            if said.startswith(text):
                raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "run", Killer())
    run(config, tmp_path / "run", Quiet())
    assert_same_run(tmp_path / "run", finished)


def test_a_kill_between_removing_and_renaming_a_checkpoint(
    finished: Path, config: Config, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def rename(self: Path, target: Any) -> Path:
        if str(target).endswith("round-000002"):
            raise Killed
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            run(config, tmp_path / "run", observer)
    run(config, tmp_path / "run", observer)
    assert_same_run(tmp_path / "run", finished)


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A run that was killed after its last checkpoint."""
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "adapter")
    return folder


def _same_checksum(folder: Path, adapter: torch.Tensor) -> None:
    weights = save({"adapter": adapter})
    values = json.loads((folder / "state.json").read_text())
    (folder / "adapter.safetensors").write_bytes(weights)
    (folder / "state.json").write_text(json.dumps({**values, "sha256": hashlib.sha256(weights).hexdigest()}))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "nan", "wrong shape", "no state"])
@pytest.mark.parametrize("both", [False, True])
def test_damaged_checkpoints_cost_time_only(
    finished: Path, unfinished: Path, config: Config, observer: Quiet, damage: str, both: bool
) -> None:
    for folder in sorted((unfinished / "checkpoint").iterdir())[0 if both else 1 :]:
        size = len(load_file(folder / "adapter.safetensors")["adapter"])
        {
            "truncated": lambda f: os.truncate(f / "adapter.safetensors", 100),
            "garbage": lambda f: (f / "adapter.safetensors").write_bytes(b"x" * 300),
            "nan": lambda f, n=size: _same_checksum(f, torch.full((n,), float("nan"))),
            "wrong shape": lambda f, n=size: _same_checksum(f, torch.zeros(n - 1)),
            "no state": lambda f: (f / "state.json").unlink(),
        }[damage](folder)
    run(config, unfinished, observer)
    assert [w.split(" is damaged")[0] for w in observer.warnings] == [
        f"checkpoint round-00000{n}" for n in ((2, 1) if both else (2,))
    ]
    assert_same_run(unfinished, finished)


def test_a_growing_file_that_lost_its_end_is_noticed(finished: Path, unfinished: Path, config: Config, observer: Quiet) -> None:
    os.truncate(unfinished / "scores.jsonl", (unfinished / "scores.jsonl").stat().st_size - 10)
    run(config, unfinished, observer)
    assert "scores.jsonl is shorter than when it was saved" in observer.warnings[0]
    assert_same_run(unfinished, finished)


def _damaged(path: Path, number: int, text: str) -> None:
    rows = path.read_text().split("\n")
    rows[number] = text.format(rows[number])
    path.write_text("\n".join(rows))


@pytest.mark.parametrize("name", ["rounds.jsonl", "scores.jsonl"])
@pytest.mark.parametrize(("number", "text", "backs"), [(-2, "{}x", 1), (-2, "{{}}", 1), (1, "{{{}", 2), (1, '{{"round": 0}}', 2)])
def test_a_damaged_line_of_a_growing_file_costs_time_only(
    name: str, number: int, text: str, backs: int, finished: Path, unfinished: Path, config: Config, observer: Quiet
) -> None:
    _damaged(unfinished / name, number, text)
    run(config, unfinished, observer)
    assert len(observer.warnings) == backs
    assert all(f"({name} " in told for told in observer.warnings)
    assert_same_run(unfinished, finished)


def test_a_last_line_without_its_end_costs_one_round(finished: Path, unfinished: Path, config: Config, observer: Quiet) -> None:
    path = unfinished / "rounds.jsonl"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    run(config, unfinished, observer)
    assert len(observer.warnings) == 1
    assert "rounds.jsonl line 3 has lost its end" in observer.warnings[0]
    assert_same_run(unfinished, finished)


@pytest.mark.parametrize("name", ["rounds.jsonl", "scores.jsonl", "poison.jsonl", "result.json", "data.json", "versions.json"])
def test_what_the_error_of_a_damaged_file_advises_works(
    name: str, finished: Path, config: Config, observer: Quiet, tmp_path: Path
) -> None:
    there = tmp_path / "run"
    shutil.copytree(finished, there)
    _damaged(there / name, 0, "garbage {}")
    with pytest.raises(UserError, match="repeat the run's command") as caught:
        read(there)
    assert "\n" not in str(caught.value)
    told = str(caught.value)
    for gone in [name] * ("delete it and" in told) + ["result.json"] * ("result.json beside it" in told):
        (there / gone).unlink()
    run(config, there, observer)
    assert read(there).rounds[-1].round == 2
    assert_same_run(there, finished)


# --- a full disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only root may mount a small disk here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_full_disk_it_stops_and_finishes_when_there_is_room(
    finished: Path, config: Config, observer: Quiet, tiny_disk: Path
) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        run(config, tiny_disk / "run", observer)
    assert caught.value.errno == errno.ENOSPC
    subprocess.run(["mount", "-o", "remount,size=8m", str(tiny_disk)], check=True)
    run(config, tiny_disk / "run", observer)
    assert_same_run(tiny_disk / "run", finished)


@pytest.mark.parametrize("count", [2, 6, 10, 14, 18])
def test_a_disk_that_is_full_for_a_while(
    finished: Path, config: Config, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, count, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="No space left"):
            run(config, tmp_path / "run", observer)
    run(config, tmp_path / "run", observer)
    assert_same_run(tmp_path / "run", finished)


# --- bad updates ------------------------------------------------------------------------------------------------


def test_a_learning_rate_that_explodes_is_named(small_config: Make, observer: Quiet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"round \d: the update of client 0, 1, 2 holds NaN or infinity; lower training.lr"):
        run(small_config({"training.lr": 1e38}), tmp_path / "run", observer)
    assert not (tmp_path / "run" / "result.json").exists()


def _poisoned_trainer(monkeypatch: pytest.MonkeyPatch, bad: dict[int, float], calls: list[Trained]) -> None:
    real = batched.train

    def train(*arguments: Any) -> Trained:
        trained = real(*arguments)
        calls.append(trained)
        updates = trained.updates.clone()
        for i, job in enumerate(arguments[4]):
            if job.client in bad:
                updates[i, 5] = bad[job.client]
        return Trained(updates, trained.losses)

    monkeypatch.setattr(batched, "train", train)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_update_stops_the_run_and_names_the_client(
    small_config: Make, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    _poisoned_trainer(monkeypatch, {1: value}, [])
    with pytest.raises(UserError, match=r"round 1: the update of client 1 holds NaN or infinity.*federation.bad_update=drop"):
        run(small_config(), tmp_path / "run", observer)


def test_a_bad_update_can_be_dropped(small_config: Make, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Trained] = []
    _poisoned_trainer(monkeypatch, {1: float("nan")}, calls)
    run(small_config({"federation.bad_update": "drop", "federation.rounds": 1}), tmp_path / "run", observer)
    row = lines(tmp_path / "run", "rounds.jsonl")[1]
    assert row["participants"] == [0, 2]
    assert row["dropped"] == [1]
    assert row["client_loss"] == [calls[0].losses[0], calls[0].losses[2]]
    counts = json.loads((tmp_path / "run" / "data.json").read_text())["clients"]
    wanted = torch.linalg.vector_norm(fedavg(calls[0].updates[[0, 2]], [counts[0], counts[2]]).double()).item()
    assert row["update_norm"] == pytest.approx(wanted, rel=1e-5)


def test_with_no_sound_update_even_dropping_stops(
    small_config: Make, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poisoned_trainer(monkeypatch, dict.fromkeys(range(3), float("nan")), [])
    with pytest.raises(UserError, match="needs at least one sound client"):
        run(small_config({"federation.bad_update": "drop"}), tmp_path / "run", observer)


# --- federation -------------------------------------------------------------------------------------------------


def test_fedavg_by_hand() -> None:
    updates = torch.tensor([[1.0, 0.0], [4.0, 8.0]])
    assert fedavg(updates, [3, 1]).tolist() == [1.75, 2.0]
    assert fedavg(updates, [3, 1]).dtype == torch.float32
    draw = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    weights = [1, 5, 2, 9, 3, 3, 4]
    wanted = np.average(draw.double().numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(fedavg(draw, weights).numpy(), wanted, rtol=1e-6, atol=1e-7)


def test_a_global_rate_scales_the_sum_and_every_rule(small_config: Make) -> None:
    updates = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    config = small_config({"federation.clients": 10, "federation.global_lr": 3})
    context = ServerContext(Layout.of({"u": (6,)}), [5, 1, 2, 9], 1, torch.zeros(6), rng(0, "server"))

    def by(*names: str) -> torch.Tensor:
        return aggregate(updates, make_defenses([Defense(name=name) for name in names]), context, config.federation)[0]

    torch.testing.assert_close(by(), 0.3 * updates.sum(dim=0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(by("median"), 4 * 0.3 * Median()(updates)[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(by("anomaly"), 0.3 * updates.sum(dim=0), rtol=1e-6, atol=1e-7)  # nobody is left out


def test_a_share_of_the_clients_takes_part(small_config: Make, observer: Quiet, tmp_path: Path) -> None:
    changes = {"federation.clients": 5, "federation.participation": 0.4, "federation.rounds": 4, "attack.client_share": 0.4}
    run(small_config(changes), tmp_path / "run", observer)
    chosen = [row["participants"] for row in lines(tmp_path / "run", "rounds.jsonl")[1:]]
    assert all(len(row) == 2 and row == sorted(set(row)) for row in chosen)
    assert len({tuple(row) for row in chosen}) > 1, "another draw each round"


def test_participants_are_drawn_from_those_that_have_data() -> None:
    data = [1, 0, 1, 1, 0]
    assert participants(1.0, 0, 1, data) == [0, 2, 3]
    drawn = [participants(0.01, 0, t, data) for t in range(1, 40)]
    assert {row[0] for row in drawn} == {0, 2, 3}
    assert {len(row) for row in drawn} == {1}
    for t in range(1, 20):
        assert set(participants(0.4, 0, t, data, surely={2})) > {2}, "and one of those drawn"
    with pytest.raises(UserError, match="2 clients, but 3 attacking ones are to take part"):
        participants(0.4, 0, 1, data, surely={0, 2, 3})
    with pytest.raises(UserError, match="no client has any sample left"):
        participants(1.0, 0, 1, [0, 0])


def test_without_attack_nothing_is_touched(small_config: Make, observer: Quiet, tmp_path: Path) -> None:
    result = run(small_config({"attack.kind": "none", "federation.rounds": 1}), tmp_path / "run", observer)
    assert result["poison"] == {"clients": 0, "samples": 0, "total": 40}
    assert result["bsnr"] == [None]
    assert result["asr"]["n"] == 6, "triggered questions are asked all the same"
    assert (tmp_path / "run" / "poison.jsonl").read_bytes() == b""


def test_bsnr_is_that_of_the_explicit_vectors_and_matrices(
    small_config: Make, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Trained] = []
    _poisoned_trainer(monkeypatch, {}, calls)
    layouts: list[Any] = []
    real = instruction.load_base
    monkeypatch.setattr(instruction, "load_base", lambda options: (base := real(options), layouts.append(base.layout))[0])
    changes = {
        "federation.clients": 4,
        "federation.rounds": 2,
        "attack.client_share": 0.5,
        "measure.bsnr.spaces": ["adapter", "delta_w"],
        "training.lr": 0.05,
    }
    config = small_config(changes)
    result = run(config, tmp_path / "run", observer)
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    rows = lines(tmp_path / "run", "rounds.jsonl")
    layout, before = layouts[0], initial_adapter(layouts[0], config.seed)
    assert len(data["poisoned_clients"]) == 2

    def matrices(flat: torch.Tensor) -> torch.Tensor:
        return torch.cat([layout.scale * (b.double() @ a.double()).flatten() for _, a, b in layout.pairs(flat)])

    def written_out(vectors: torch.Tensor, delta: torch.Tensor) -> float:
        return by_the_book(vectors.double().numpy(), data["poisoned_clients"], delta.double().numpy())

    for t, trained in enumerate(calls, 1):
        after = before + fedavg(trained.updates, data["clients"])
        found = rows[t]["bsnr"]
        assert set(found) == {"adapter", "delta_w"}
        assert found["adapter"]["value"] == pytest.approx(written_out(trained.updates, after - before), rel=1e-5)
        explicit = torch.stack([matrices(before + row) - matrices(before) for row in trained.updates])
        wanted = written_out(explicit, matrices(after) - matrices(before))
        assert found["delta_w"]["value"] == pytest.approx(wanted, rel=1e-4)
        assert found["adapter"]["permutations"] > 0
        before = after
    assert result["bsnr"] == [row["bsnr"]["adapter"]["value"] for row in rows[1:]]


# --- defenses ---------------------------------------------------------------------------------------------------

DEFENSE = """
import torch
from undertow.defenses.contract import Defense  # the former base of all kinds

class Sanitize(Defense):
    def __init__(self, word="Firstly"):
        self.word = word
    def sanitize(self, samples, context):
        keep = [self.word not in s.question for s in samples]
        return keep, {"seen": context.client}

class Drop(Defense):
    def sanitize(self, samples, context):
        return [context.client != 1] * len(samples), {}

class First(Defense):
    def aggregate(self, updates, context):
        assert updates.shape == (len(context.counts), context.layout.size)
        return updates[0], {"round": context.round}

class Halve(Defense):
    def guard(self, adapter, context):
        return context.adapter + (adapter - context.adapter) / 2, {"norm": float(adapter.norm())}
"""


@pytest.fixture
def defense(tmp_path: Path) -> Callable[[str], str]:
    file = tmp_path / "mine.py"
    file.write_text(DEFENSE)
    return lambda name: f"{file}:{name}"


def test_a_users_sanitizer_cleans_before_training(
    small_config: Make, observer: Quiet, tmp_path: Path, defense: Callable[[str], str]
) -> None:
    name = defense("Sanitize")
    run(small_config({"federation.rounds": 1, "defenses": [name]}), tmp_path / "run", observer)
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert [(s["client"], s["seen"], s["samples"] - s["kept"]) for s in data["sanitized"]] == [(k, k, 3) for k in range(3)]
    assert len(lines(tmp_path / "run", "poison.jsonl")) == 9, "the ground truth stays"
    run(
        small_config({"federation.rounds": 1, "defenses": [{"name": name, "params": {"word": "zzz"}}]}),
        tmp_path / "other",
        observer,
    )
    assert digest(tmp_path / "other") != digest(tmp_path / "run")


def test_a_client_without_data_takes_no_part(
    small_config: Make, observer: Quiet, tmp_path: Path, defense: Callable[[str], str]
) -> None:
    run(small_config({"federation.rounds": 1, "defenses": [defense("Drop")]}), tmp_path / "run", observer)
    assert lines(tmp_path / "run", "rounds.jsonl")[1]["participants"] == [0, 2]


def test_a_users_rule_replaces_fedavg_and_a_guard_has_the_last_word(
    small_config: Make, observer: Quiet, tmp_path: Path, defense: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Trained] = []
    _poisoned_trainer(monkeypatch, {}, calls)
    names = [defense("First"), defense("Halve")]
    config = small_config({"federation.rounds": 1, "defenses": names})
    run(config, tmp_path / "run", observer)
    row = lines(tmp_path / "run", "rounds.jsonl")[1]
    assert [report["name"] for report in row["defenses"]] == names
    assert row["defenses"][0]["round"] == 1
    assert row["defenses"][1]["norm"] > 0
    half = torch.linalg.vector_norm(calls[0].updates[0].double()).item() / 2
    assert row["update_norm"] == pytest.approx(half, rel=1e-4)


def test_the_shipped_median_runs(finished: Path, small_config: Make, observer: Quiet, tmp_path: Path) -> None:
    run(small_config({"defenses": "median"}), tmp_path / "run", observer)
    assert digest(tmp_path / "run") != digest(finished)
    assert lines(tmp_path / "run", "rounds.jsonl")[1]["defenses"] == [{"name": "median"}]


def test_twins_give_bsnr_where_nobody_is_clean_and_change_nothing_else(
    small_config: Make, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Trained] = []
    _poisoned_trainer(monkeypatch, {}, calls)
    changes = {"federation.clients": 4, "federation.rounds": 2, "attack.client_share": 1.0, "training.lr": 0.05}
    plain = run(small_config(changes), tmp_path / "plain", observer)
    assert plain["bsnr"] == [None, None]
    calls.clear()
    twins = run(small_config({**changes, "measure.bsnr.counterfactuals": True}), tmp_path / "twins", observer)
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("plain", "twins")]
    assert weights[0] == weights[1]
    assert len(calls) == 4  # each round: the clients, then their unpoisoned data
    for t in (0, 1):
        poisoned, clean = (calls[2 * t + i].updates.double() for i in (0, 1))
        direction = poisoned.mean(0) - clean.mean(0)
        direction /= direction.norm()
        change = poisoned.mean(0)  # equal sizes
        along = float(change @ direction) ** 2
        assert twins["bsnr"][t] == pytest.approx(along / (float(change @ change) - along), rel=1e-3)


def test_twins_are_not_trained_where_somebody_is_clean(
    small_config: Make, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Trained] = []
    _poisoned_trainer(monkeypatch, {}, calls)
    changes = {"federation.clients": 4, "federation.rounds": 1, "attack.client_share": 0.5, "measure.bsnr.counterfactuals": True}
    run(small_config(changes), tmp_path / "run", observer)
    assert len(calls) == 1
