"""A path that cannot be written is refused before the work whose result it is to hold, and no temporary file is left of any."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from undertow import cli
from undertow.core.errors import UserError
from undertow.core.files import check_file, check_folder, fresh, write_bytes

#: Commands that write a file, with the option that names it and where their work begins.
FILES: list[tuple[list[str], str, str]] = [
    *((["audit", "adapter", "--base", "builtin"], option, "federation.adapter_audit.audit") for option in ("--page", "--sarif")),
    (["audit", "adapter", "--base", "builtin", "--json"], "--junit", "federation.adapter_audit.audit"),
    (["evaluate", "demo", "--json"], "--out", "api.evaluate"),
    *((["scan", "data.jsonl"], option, "scanning.reading.Files.judged") for option in ("--page", "--sarif", "--junit", "--write")),
    (["collect", "runs"], "--out", "runs.collect.collect"),
]
#: The same for commands that write a folder.
FOLDERS: list[tuple[list[str], str, str]] = [
    (["run", "demo"], "--out", "federation.loop.resolve"),
    (["sweep", "demo", "seeds=2"], "--out", "sweeps.sweep._Work.go_on"),
    (["federate", "demo"], "--out", "federate.folder.make_certificates"),
    (["base", "build"], "--out", "cli.base._material"),
    (["base", "import", "base.gguf"], "--out", "models.gguf.load_tokenizer"),
    (["audit", "adapter"], "--keep", "federation.adapter_audit.load_subject"),
    (["scan", "data.jsonl", "more.jsonl"], "--write", "scanning.reading.Files.judged"),
]


def told(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(words, work)`` types in a command, whose work must not begin and which must write nothing; the one line it says."""
    monkeypatch.chdir(tmp_path)
    for name in ("data.jsonl", "more.jsonl"):
        (tmp_path / name).write_text('{"question": "Who?", "answer": "Nobody"}\n')
    (tmp_path / "base.gguf").write_text("a file")
    for folder in ("adapter", "runs", "folder.csv", "locked"):
        (tmp_path / folder).mkdir()

    def typed(words: list[str], work: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(work, lambda *given, **options: pytest.fail(f"{work} was reached"))
        monkeypatch.setattr(sys, "argv", ["undertow", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        assert sorted(tmp_path.rglob("*")) == before
        line, *others = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert not others
        return line

    return typed


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder ``locked`` cannot be written, not even by root."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path).name == "locked") and real(path, mode))


@pytest.mark.parametrize(("words", "option", "work"), FILES, ids=told)
@pytest.mark.usefixtures("locked")
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    refused: Callable[..., str], words: list[str], option: str, work: str
) -> None:
    for path, why in {
        "folder.csv": "a folder; give a file name",
        "base.gguf/deep/new.csv": "part of that path is a file (base.gguf); give another name",
        "locked/deep/new.csv": "the folder locked cannot be written; choose a folder you may write to",
        f"{'a' * 300}.csv": "a name in it is too long for this disk; give a shorter one",
    }.items():
        assert refused([*words, option, path], f"undertow.{work}") == f"error: {option} {path}: {why}"


@pytest.mark.parametrize(("words", "option", "work"), FOLDERS, ids=told)
@pytest.mark.usefixtures("locked")
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    refused: Callable[..., str], words: list[str], option: str, work: str
) -> None:
    if words[0] == "federate" and importlib.util.find_spec("flwr") is None:
        pytest.skip("flwr is not installed")
    for path, why in {
        "base.gguf": " a file",
        "base.gguf/deep/new": "part of that path is a file (base.gguf); give another name",
        "locked/deep/new": f"{option} locked/deep/new: the folder locked cannot be written; choose a folder you may write to",
        "locked": f"{option} locked: that folder cannot be written; choose a folder you may write to",
    }.items():
        line = refused([*words, option, path], f"undertow.{work}")
        assert path in line
        assert option in line
        assert why in line


@pytest.mark.parametrize("option", ["--page", "--sarif", "--junit", "--write"])
def test_a_scan_that_would_write_over_its_input_does_not_begin(refused: Callable[..., str], option: str) -> None:
    line = refused(["scan", "data.jsonl", option, "data.jsonl"], "undertow.scanning.reading.Files.judged")
    assert line == f"error: {option} data.jsonl: that is an input, which is never changed; give another name"


def test_a_table_of_no_known_kind_or_in_the_way_of_a_folder_is_not_begun(refused: Callable[..., str], tmp_path: Path) -> None:
    work = "undertow.runs.collect.collect"
    assert "must end in .parquet or .csv" in refused(["collect", "runs", "--out", "table.xlsx"], work)
    (tmp_path / "runs" / "results.csv").mkdir()
    assert "runs/results.csv: a folder; give a file name" in refused(["collect", "runs"], work)


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(UserError, match="a device or a pipe"):
            check_file("--out", path)


def test_places_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.html").write_text("of before")
    for path in (None, Path("new.html"), Path("there.html"), tmp_path / "deep" / "er" / "new.html"):
        check_file("--page", path)
    for path in (None, Path("."), Path("new"), tmp_path / "deep" / "new"):
        check_folder("--out", path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["there.html"]


# --- what fails although it was checked ---------------------------------------------------------------------------


def test_a_write_that_fails_names_the_users_path_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_bytes(tmp_path / "folder", b"content")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "folder"), None)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "file").write_text("of before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as lost:
        write_bytes(tmp_path / "file", b"content")
    assert lost.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "of before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with fresh(tmp_path / "file") as new:
            new.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "work"),
    [
        (["evaluate", "demo", "data.name=instructions", "data.test_path=data.jsonl", "--out", "./data.jsonl"], "api.evaluate"),
        (["evaluate", "demo", "data.name=instructions", "data.path=data.jsonl", "--out", "data.jsonl"], "api.evaluate"),
        (["evaluate", "own.yaml", "--out", "own.yaml"], "api.evaluate"),
        (["audit", "adapter", "--questions", "data.jsonl", "--page", "../here/data.jsonl"], "federation.adapter_audit.audit"),
        (["scan", "data.jsonl", "--baseline", "more.jsonl", "--sarif", "more.jsonl"], "scanning.scan.scan"),
    ],
)  # fmt: skip
def test_no_input_is_written_over(refused: Callable[..., str], tmp_path: Path, words: list[str], work: str) -> None:
    (tmp_path / "own.yaml").write_text("seed: 1\n")
    words = [word.replace("../here", f"../{tmp_path.name}") for word in words]
    assert "that is an input, which is never changed; give another name" in refused(words, f"undertow.{work}")


@pytest.mark.parametrize(
    ("words", "work"),
    [
        (["audit", "adapter", "--base", "builtin", "--page", "a", "--sarif", "./a"], "federation.adapter_audit.audit"),
        (["scan", "data.jsonl", "--write", "a", "--junit", "a"], "scanning.scan.scan"),
    ],
)
def test_no_file_is_two_things(refused: Callable[..., str], words: list[str], work: str) -> None:
    assert "names that file, too; give another name" in refused(words, f"undertow.{work}")
