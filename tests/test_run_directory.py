from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save

from tiny import Quiet
from undertow.config import Config, validate
from undertow.core.errors import UserError
from undertow.federation.evaluate import score_again
from undertow.federation.loop import run
from undertow.runs.collect import collect
from undertow.runs.directory import RunDirectory, State
from undertow.runs.records import read_json, read_jsonl
from undertow.runs.report.page import write_report
from undertow.runs.run import read_config
from undertow.runs.summary import summarise

D = 6


@pytest.fixture
def config() -> Config:
    return validate({"federation": {"rounds": 3}}, "x")


@pytest.fixture
def directory(tmp_path: Path, config: Config) -> RunDirectory:
    return RunDirectory.open(tmp_path / "run", config)


def state(round: int) -> State:
    return State(round, torch.full((D,), float(round)), 1.5 * round)


def score(round: int, output: str = "") -> dict[str, Any]:
    return {"round": round, "kind": "clean", "id": "a", "question": "q", "answers": [], "output": output}


def filled(directory: RunDirectory, rounds: int) -> None:
    for t in range(rounds + 1):
        directory.append("scores.jsonl", [score(t, "ü\u2028x"), score(t)])
        directory.append("rounds.jsonl", [{"round": t}])
        directory.checkpoint(state(t))


def refused(folder: Path, config: Config) -> str:
    with pytest.raises(UserError) as caught:
        RunDirectory.open(folder, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_effective_values_are_written(directory: RunDirectory, config: Config) -> None:
    assert yaml.safe_load((directory.folder / "config.yaml").read_text()) == config.values()
    assert directory.result() is None


def test_places_that_are_no_run(tmp_path: Path, config: Config) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file; give --out a folder" in refused(tmp_path / "file", config)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    assert "holds files but no run" in refused(tmp_path / "foreign", config)
    assert [p.name for p in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    RunDirectory.open(tmp_path / "empty", config).close()


def test_a_folder_left_by_a_kill_in_the_first_moment_is_taken(tmp_path: Path, config: Config) -> None:
    for name in ("lock", ".config.yaml.new"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("half")
    RunDirectory.open(tmp_path / "run", config).close()


def test_other_values_are_refused_with_the_lines_that_differ(directory: RunDirectory, config: Config) -> None:
    filled(directory, 0)
    directory.close()
    other = validate({"federation": {"rounds": 3}, "attack": {"poison_ratio": 0.25}, "seed": 4}, "x")
    told = refused(directory.folder, other)
    assert "holds a run with other values" in told
    for line in ("- poison_ratio: 0.1", "+ poison_ratio: 0.25", "-seed: 0", "+seed: 4"):
        assert line in told
    assert "give another --out" in told
    RunDirectory.open(directory.folder, config.model_copy(update={"compare": "runs/clean"})).close()


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"", b"- 1", b"5"])
def test_a_damaged_config_is_refused(directory: RunDirectory, config: Config, content: bytes) -> None:
    directory.close()
    (directory.folder / "config.yaml").write_bytes(content)
    refused(directory.folder, config)


def test_a_config_of_another_program_is_not_overwritten(tmp_path: Path, config: Config) -> None:
    (tmp_path / "config.yaml").write_text("server: {port: 80}\n")
    refused(tmp_path, config)
    assert (tmp_path / "config.yaml").read_text() == "server: {port: 80}\n"


def test_one_process_at_a_time(directory: RunDirectory, config: Config) -> None:
    assert "is in use by another process" in refused(directory.folder, config)
    code = (
        "import fcntl, sys\ntry:\n    fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError:\n    sys.exit(7)\n"
    )
    other = [sys.executable, "-c", code, str(directory.folder / "lock")]
    assert subprocess.run(other, check=False).returncode == 7
    directory.close()
    assert subprocess.run(other, check=False).returncode == 0
    RunDirectory.open(directory.folder, config).close()


def test_resume_from_the_newest_and_keep_two(directory: RunDirectory) -> None:
    assert directory.resume(D) == (None, [])
    filled(directory, 3)
    assert sorted(p.name for p in (directory.folder / "checkpoint").iterdir()) == ["round-000002", "round-000003"]
    found, warnings = directory.resume(D)
    assert warnings == []
    assert found is not None
    assert (found.round, found.seconds) == (3, 4.5)
    assert torch.equal(found.adapter, state(3).adapter)
    assert [row["round"] for row in directory.rounds()] == [0, 1, 2, 3]


def test_lines_beyond_the_checkpoint_are_cut(directory: RunDirectory) -> None:
    filled(directory, 2)
    before = {name: (directory.folder / name).read_bytes() for name in ("rounds.jsonl", "scores.jsonl")}
    directory.append("scores.jsonl", [score(3)])
    with open(directory.folder / "rounds.jsonl", "a") as file:
        file.write('{"round": 3, "lo')
    directory.resume(D)
    assert {name: (directory.folder / name).read_bytes() for name in before} == before


def test_without_a_checkpoint_the_growing_files_start_over(directory: RunDirectory) -> None:
    directory.append("scores.jsonl", [score(0)])
    assert directory.resume(D) == (None, [])
    assert (directory.folder / "scores.jsonl").read_bytes() == b""


Damage = Callable[[Path], Any]


def _rewritten(adapter: torch.Tensor) -> Damage:
    """A checkpoint whose checksum is right and whose content is not."""

    def write(folder: Path) -> None:
        weights = save({"adapter": adapter})
        values = json.loads((folder / "state.json").read_text())
        (folder / "adapter.safetensors").write_bytes(weights)
        (folder / "state.json").write_text(json.dumps({**values, "sha256": hashlib.sha256(weights).hexdigest()}))

    return write


def _state(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def write(folder: Path) -> None:
        values = json.loads((folder / "state.json").read_text())
        change(values)
        (folder / "state.json").write_text(json.dumps(values))

    return write


DAMAGE: dict[str, Damage] = {
    "weights missing": lambda f: (f / "adapter.safetensors").unlink(),
    "weights truncated": lambda f: os.truncate(f / "adapter.safetensors", 20),
    "weights empty": lambda f: os.truncate(f / "adapter.safetensors", 0),
    "one bit": lambda f: (f / "adapter.safetensors").write_bytes((f / "adapter.safetensors").read_bytes()[:-1] + b"\x7f"),
    "state missing": lambda f: (f / "state.json").unlink(),
    "state garbage": lambda f: (f / "state.json").write_bytes(b"\x00\xff{"),
    "state a list": lambda f: (f / "state.json").write_text("[1, 2]"),
    "state without offsets": _state(lambda v: v.pop("offsets")),
    "offsets no object": _state(lambda v: v.update(offsets=3)),
    "offsets incomplete": _state(lambda v: v["offsets"].pop("rounds.jsonl")),
    "offset beyond the file": _state(lambda v: v["offsets"].update({"scores.jsonl": 10**9})),
    "nan": _rewritten(torch.full((D,), float("nan"))),
    "wrong shape": _rewritten(torch.zeros(D + 1)),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(directory: RunDirectory, case: str) -> None:
    filled(directory, 3)
    DAMAGE[case](directory.folder / "checkpoint" / "round-000003")
    found, warnings = directory.resume(D)
    assert found is not None
    assert found.round == 2
    assert [row["round"] for row in directory.rounds()] == [0, 1, 2]
    assert len(warnings) == 1
    assert warnings[0].startswith("checkpoint round-000003 is damaged (")
    assert "\n" not in warnings[0]
    # the repeated round replaces the damaged one
    directory.append("rounds.jsonl", [{"round": 3}])
    directory.checkpoint(state(3))
    found, warnings = directory.resume(D)
    assert found is not None
    assert (found.round, warnings) == (3, [])


def test_with_both_damaged_it_starts_over_and_new_checkpoints_count(directory: RunDirectory) -> None:
    filled(directory, 3)
    for number in (2, 3):
        os.truncate(directory.folder / "checkpoint" / f"round-{number:06d}" / "adapter.safetensors", 9)
    found, warnings = directory.resume(D)
    assert found is None
    assert len(warnings) == 2
    assert directory.rounds() == []
    # Killed again before it has caught up with the damaged ones: what it saved since then must be there.
    filled(directory, 1)
    found, warnings = directory.resume(D)
    assert found is not None
    assert (found.round, warnings) == (1, [])
    assert [row["round"] for row in directory.rounds()] == [0, 1]


def test_a_half_written_checkpoint_is_no_checkpoint(directory: RunDirectory) -> None:
    filled(directory, 1)
    (directory.folder / "checkpoint" / ".new").mkdir()
    (directory.folder / "checkpoint" / ".new" / "adapter.safetensors").write_bytes(b"half")
    found, warnings = directory.resume(D)
    assert found is not None
    assert (found.round, warnings) == (1, [])
    directory.checkpoint(state(2))
    assert not (directory.folder / "checkpoint" / ".new").exists()


def test_reading_a_runs_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no x.json; give the folder of an undertow run"):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"has no x.jsonl; give the folder of an undertow run"):
        read_jsonl(tmp_path / "x.jsonl")
    for content in (b"{", b"[1]", b"\xff"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.json"):
            read_json(tmp_path / "x.json")
    (tmp_path / "x.jsonl").write_bytes('{"a": "1\u2028"}\n{"a": 2}\n{"a": '.encode())
    assert read_jsonl(tmp_path / "x.jsonl") == [{"a": "1\u2028"}, {"a": 2}]
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_jsonl(tmp_path / "x.jsonl")


def test_a_first_try_that_was_refused_may_be_mended_in_the_same_place(
    tiny_base: Path, small_config: Callable[..., Config], tmp_path: Path, observer: Any
) -> None:
    from undertow.federation.loop import run

    with pytest.raises(UserError, match="lower them"):
        run(small_config({"data.train": 100_000}), tmp_path / "run", observer)
    result = run(small_config(), tmp_path / "run", observer)
    assert result["rounds"] == small_config().federation.rounds
    with pytest.raises(UserError, match="other values"):
        run(small_config({"seed": 5}), tmp_path / "run", observer)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seed: 0", "seed: 7", "+seed: 7"),
        ("poison_ratio: 0.25", "poison_ratio: 0.4", "0.4"),
        ("rounds: 2", "rounds: 5", "rounds: 5"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_an_edited_config_is_named_and_refused(
    old: str, new: str, named: str, finished: bool, small_config: Callable[..., Config], observer: Quiet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = small_config({"federation.rounds": 2})
    run(config, folder, observer)
    path = folder / "config.yaml"
    text = path.read_text()
    if not finished:
        (folder / "result.json").unlink()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    edited = validate(yaml.safe_load(path.read_text()), "x")
    refusals = [lambda: RunDirectory.open(folder, edited), lambda: read_config(folder), lambda: write_report(folder, None)]
    for refusal in refusals:
        with pytest.raises(UserError, match="was edited after the run began") as caught:
            refusal()
        assert named in str(caught.value)
    with pytest.raises(UserError, match="holds no finished run"):
        collect(tmp_path)
    path.write_text(text)
    assert read_config(folder) == config
    write_report(folder, None)
    kept = (folder / "versions.json").read_bytes()
    (folder / "versions.json").write_text(json.dumps({k: v for k, v in json.loads(kept).items() if k != "config"}))
    assert read_config(folder) == config  # a run of an older version has no seal


@pytest.fixture(scope="module")
def of_three(small_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two rounds, and one of three."""
    root = tmp_path_factory.mktemp("rounds")
    for rounds in (2, 3):
        run(small_config({"federation.rounds": rounds}), root / str(rounds), Quiet())
    return root / "2", root / "3"


@pytest.mark.parametrize("killed", ["not", "before the seal", "before the config"])
def test_more_rounds_end_where_a_longer_run_ends_and_the_history_says_so(
    of_three: tuple[Path, Path], small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    folder = shutil.copytree(of_three[0], tmp_path / "run")
    longer = small_config({"federation.rounds": 3})
    with pytest.raises(UserError, match="for more rounds of the same run add --more-rounds"):
        run(longer, folder, Quiet())
    if killed != "not":

        def stop(*given: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"undertow.runs.seal.{'write_json' if killed == 'before the seal' else 'write_text'}", stop)
            with pytest.raises(KeyboardInterrupt):
                run(longer, folder, Quiet(), more_rounds=True)
    result = run(longer, folder, Quiet(), more_rounds=True)
    assert result["rounds"] == 3
    weights = "adapter/adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (of_three[1] / weights).read_bytes()
    (step,) = read_json(folder / "versions.json")["history"]
    assert (step["rounds_before"], step["rounds"]) == (2, 3)
    assert "federation.rounds was raised from 2 to 3" in result["caveats"][-1]
    assert read_config(folder) == longer
    assert run(longer, folder, Quiet()) == result


def test_a_run_that_was_scored_again_goes_on_from_its_checkpoint(
    of_three: tuple[Path, Path], small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(of_three[0], tmp_path / "run")
    before = [row["seconds"] for row in read_jsonl(folder / "rounds.jsonl")]
    size = (folder / "rounds.jsonl").stat().st_size
    for name in ("rounds.jsonl", "scores.jsonl"):  # longer rows, as an older version's become when they are scored again
        rows = read_jsonl(folder / name)
        (folder / name).write_text("".join(json.dumps(row, separators=(",  ", ":  ")) + "\n" for row in rows))
    monkeypatch.setattr("undertow.federation.evaluate.write_records", lambda *given: None)
    score_again(folder, "exact")
    assert (folder / "rounds.jsonl").stat().st_size > size
    run(small_config({"federation.rounds": 3}), folder, Quiet(), more_rounds=True)
    assert [row["seconds"] for row in read_jsonl(folder / "rounds.jsonl")][:3] == before, "no round was made again"
    weights = "adapter/adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (of_three[1] / weights).read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"federation.rounds": 1}, "holds a run of 2 rounds, and --more-rounds asks for 1"),
        ({"federation.rounds": 3, "seed": 7}, "other values"),
        ({"federation.rounds": 3, "attack.poison_ratio": 0.5}, "other values"),
    ],
)
def test_more_rounds_are_all_that_may_change(
    of_three: tuple[Path, Path], small_config: Callable[..., Config], changes: dict[str, Any], told: str
) -> None:
    before = {path: path.read_bytes() for path in of_three[0].rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(UserError, match=told):
        run(small_config(changes), of_three[0], Quiet(), more_rounds=True)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("final", "said"), [(2, 0), (1, 1)])
def test_only_a_last_round_that_was_measured_can_tell_of_divergence(directory: RunDirectory, final: int, said: int) -> None:
    none = dict.fromkeys(("bsnr", "ma", "asr", "ftr", "ftr_near"))
    directory.append("rounds.jsonl", [{"round": 0, **none, "held_out_loss": 1.0}, {"round": 1, **none}])
    result = summarise(directory, "adapter", 1.0, {"clients": 0, "samples": 0, "total": 4}, {}, final=final)
    assert len(result.get("caveats", [])) == said
