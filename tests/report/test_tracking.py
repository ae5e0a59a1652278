"""Trackers are told every round once, also of a run that was stopped and goes on; each real library offline, where installed."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fabricated_run import make_run
from undertow.config import Config, load, with_overrides
from undertow.core.errors import UserError
from undertow.runs.run import Run
from undertow.runs.tracking import watch
from undertow.runs.tracking.contract import Start, Tracker


class Told:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.warnings: list[str] = []

    def phase(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def round(self, row: dict[str, Any], of: int) -> None:
        self.rounds.append(row["round"])


def stopped_and_resumed(folder: Path, kind: str) -> Told:
    """Stop a run after round 1 whose checkpoint is that of round 0, and let it go on to the end."""
    make_run(folder, rounds=2)
    config, told = with_overrides(Run(folder).config, {"tracking": kind}), Told()
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    result = (folder / "result.json").read_text()
    (folder / "result.json").unlink()

    def interrupted() -> None:
        with watch.tracked(config, folder, told) as looking:
            for row in rows[:2]:
                looking.round(row, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with watch.tracked(config, folder, told) as looking:
        looking.phase("round 1/2: training")
        for row in rows[1:]:
            looking.round(row, 2)
        (folder / "result.json").write_text(result)
        (folder / "report.html").write_text("<p>the page</p>")
    assert told.rounds == [0, 1, 1, 2]
    assert told.warnings == []
    with watch.tracked(config, folder, told):
        pass  # nothing is left to do, and nothing is told twice
    return told


class Fake(Tracker):
    """A tracker whose runs are lists."""

    runs: dict[str, list[Any]] = {}  # noqa: RUF012
    broken = False

    def __init__(self, start: Start) -> None:
        self.run = start.run or str(len(self.runs))
        self.runs.setdefault(self.run, []).append(
            ("start", start.next, start.config["attack.client_share"], start.config["defenses"])
        )

    def log(self, round: int, figures: Mapping[str, float]) -> None:
        if self.broken:
            raise OSError("no network")
        self.runs[self.run].append((round, figures["ma"], figures["bsnr_adapter"] if round else None))

    def end(self, result: Mapping[str, float], report: Path | None) -> None:
        self.runs[self.run].append(("end", result["ma.value"], report and report.name))

    def close(self) -> None:
        self.runs[self.run].append("close")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    module = types.ModuleType("undertow.runs.tracking.fake")
    module.Fake = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(watch.TRACKERS, "wandb", ("fake", "Fake", "json"))
    monkeypatch.setattr(Fake, "runs", {})
    return Fake


def test_a_resumed_run_goes_on_with_the_same_tracker_run(fake: type[Fake], tmp_path: Path) -> None:
    stopped_and_resumed(tmp_path / "run", "wandb")
    ((begun, first, second, closed, again, third, ended),) = fake.runs.values()
    assert begun == ("start", 0, 0.5, "none")
    assert [first[0], second[0], third[0]] == [0, 1, 2]
    assert closed == "close"
    assert again[:2] == ("start", 2)
    assert ended == ("end", pytest.approx(third[1]), "report.html")
    assert second[2] > 0


def test_a_tracker_that_fails_is_a_warning_and_the_run_goes_on(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "broken", True)
    folder, told = make_run(tmp_path / "run", rounds=2), Told()
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    with watch.tracked(with_overrides(Run(folder).config, {"tracking": "wandb"}), folder, told) as looking:
        for row in rows:
            looking.round(row, 2)
    assert told.rounds == [0, 1, 2]
    assert told.warnings == ["tracking=wandb stopped (OSError: no network); the run goes on without it"]


def test_the_tracker_changes_neither_identity_nor_folder_of_a_run() -> None:
    plain, other = load("demo"), load("demo", {"tracking": "mlflow"})
    assert plain.identity() == other.identity()
    assert plain.digest() == other.digest()
    assert Config().tracking is None


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(watch.TRACKERS, "mlflow", ("mlflow", "MLflow", "no_such_package"))
    config = load("demo", {"tracking": "mlflow"})
    with pytest.raises(UserError, match=r"pip install -e '\.\[mlflow\]'"), watch.tracked(config, tmp_path, Told()):
        pass


def missing(package: str) -> Any:
    reason = f"{package} is not installed: pip install -e '.[{package}]'"
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=reason)


@missing("tensorboard")
def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped_and_resumed(tmp_path / "run", "tensorboard")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    scalars = found.Scalars("ma")
    assert [event.step for event in scalars] == [0, 1, 2]
    assert scalars[-1].value == pytest.approx(Run(tmp_path / "run").result.ma.value, rel=1e-6)  # type: ignore[union-attr, arg-type]
    assert {"config/text_summary", "result/text_summary"} <= set(found.Tags()["tensors"])


@missing("wandb")
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    stopped_and_resumed(tmp_path / "run", "wandb")
    kept = json.loads((tmp_path / "run" / "tracking.json").read_text())
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == [kept["run"]] * len(folders)
    assert len(folders) == 2
    content = b"".join(path.read_bytes() for folder in folders for path in folder.glob("*.wandb"))
    assert content.count(b"bsnr_adapter") >= 2
    assert b"report.html" in content


@missing("mlflow")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.chdir(tmp_path)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'store.db'}")
    stopped_and_resumed(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("undertow").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["attack.client_share"] == "0.5"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "ma")] == [0, 1, 2]
    assert run.data.metrics["final.ma.value"] == pytest.approx(Run(tmp_path / "run").result.ma.value)  # type: ignore[union-attr]
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["report.html"]
