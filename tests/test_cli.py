"""The command line as a user types it: mostly real processes, since what matters is what they leave behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from undertow import __version__, cli

UNDERTOW = Path(sys.executable).with_name("undertow")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "dumb", "COLUMNS": "120"}
COMMANDS = (
    ["run"],
    ["evaluate"],
    ["sweep"],
    ["collect"],
    ["reproduce"],
    ["scan"],
    ["check"],
    ["audit"],
    ["report"],
    ["score"],
    ["list"],
    ["base", "build"],
)

SmallFile = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process the figures, which take most of the time, are left out; the real processes draw them."""
    from undertow.runs.report.figures import Drawing

    monkeypatch.setattr("undertow.runs.report.figures.export", lambda figure, name: Drawing(name, b"<svg ></svg>", b"%PDF"))


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``type_in("run", "demo")`` runs the command in this process and returns exit code, stdout and stderr."""

    def typed(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["undertow", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
        told = capsys.readouterr()
        return code, told.out, told.err

    return typed


def process(*words: object, cwd: Path | None = None, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(UNDERTOW), *map(str, words)], cwd=cwd, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def one_line(text: str) -> str:
    lines = [line for line in text.split("\n") if line and not re.match(r"(loading|measuring) ", line)]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    return lines[0]


def figures_of(folder: Path) -> tuple[str, bytes, list[dict[str, Any]]]:
    """What two runs must share: the adapter's bits, the scores, and the rounds without their seconds."""
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    digest = hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    return digest, (folder / "scores.jsonl").read_bytes(), [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# --- help and listing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_shows_an_example(words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*words, "--help"], prog_name="undertow", env={"COLUMNS": "150"})
    assert result.exit_code == 0
    assert re.search(r"Examples?", result.output)
    assert f"undertow {' '.join(words)}" in result.output.split("Example")[1]


def test_help_of_the_whole_names_every_command() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for words in COMMANDS:
        assert words[0] in result.output
    assert "undertow run demo" in result.output
    assert CliRunner().invoke(cli.app, ["base", "--help"]).exit_code == 0


def test_every_example_in_the_help_is_understood() -> None:
    """Each example's words are parsed by its own command; nothing is run."""
    import shlex

    import typer

    root = typer.main.get_command(cli.app)
    seen = 0
    for words in COMMANDS:
        command: Any = root
        for word in words:
            command = command.commands[word]
        for example in re.findall(r"^ {4,}(undertow .*)$", command.help or "", flags=re.M):
            given = shlex.split(example)[1 + len(words) :]
            assert example.split()[1 : 1 + len(words)] == words
            assert command.make_context(words[-1], given).params
            seen += 1
    assert seen >= 10


def test_version_and_list(type_in: Callable[..., tuple[int, str, str]]) -> None:
    assert type_in("--version") == (0, f"undertow {__version__}\n", "")
    code, out, err = type_in("list")
    assert (code, err) == (0, "")
    for name in ("demo", "triviaqa", "lab-qa", "natural", "append", "rouge-recall", "median"):
        assert re.search(rf"^{name}\s", out, flags=re.M), name
    code, out, _ = type_in("list", "triggers")
    assert "badnets" in out
    assert "median" not in out


# --- what a user may get wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rum"], "No such command 'rum'"),
        (["run", "--bogus"], "No such option: --bogus"),
        (["run", "demo", "--out"], "requires an argument"),
        (["reproduce"], "Missing argument 'PAPER'; see `undertow reproduce --help`"),
        (["sweep", "demo", "--jobs", "0"], "Invalid value for '--jobs'"),
        (["run", "deno"], "did you mean 'demo'"),
        (["run", "absent.yaml"], "no config 'absent.yaml'"),
        (["run", "demo", "attack.poison_rate=0.1"], "did you mean 'attack.poison_ratio'"),
        (["run", "demo", "attack.poison_ratio=2"], "attack.poison_ratio = 2"),
        (["run", "demo", "seed"], "neither the first argument nor key=value"),
        (["run", "demo", "seed=[1"], "not YAML"),
        (["run", "demo", "measure.every=1", "measure.every=2"], "measure.every is given twice"),
        (["run", "demo", "attack.trigger=natural", "task.backdoor.trigger=badnets"], "given twice"),
        (["run", "demo", "compare=nowhere"], "nowhere"),
        (["evaluate", "deno"], "did you mean 'demo'"),
        (["evaluate", "demo", "adapter=x"], "unknown key 'adapter'; did you mean --adapter?"),
        (["run", "demo", "out=x"], "unknown key 'out'; did you mean --out?"),
        (["run", "demo", "observer=1"], "unknown key 'observer'; see"),
        (["run", "demo", "source=1"], "unknown key 'source'; see"),
        (["sweep", "demo", "seed=0,1", "jobs=2"], "unknown key 'jobs'"),
        (["report", "nowhere"], "nowhere"),
        (["score", "nowhere"], "has no config.yaml"),
        (["list", "trigers"], "did you mean 'triggers'"),
        (["base", "build", "--out", "b", "--asked", "1"], "a share in [0, 1)"),
        (["base", "build", "--out", "b", "--hidden", "50"], "multiple of 32"),
        (["base", "build", "--out", "b", "--facts", "absent.tsv"], "--facts=absent.tsv: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    type_in: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = type_in(*words)
    assert code == 2
    assert out == ""
    assert told in one_line(err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attack.trigger": "natura"}, "unknown trigger 'natura' (did you mean 'natural'?)"),
        ({"attack.target": "apend"}, "unknown target 'apend' (did you mean 'append'?)"),
        ({"data.template": "alpaka"}, "unknown template 'alpaka' (did you mean 'alpaca'?)"),
        ({"data.name": "trivia"}, "unknown dataset 'trivia' (did you mean 'triviaqa'?)"),
        ({"data.name": "triviaqa"}, "data.path"),
        ({"defenses": ["medain"]}, "unknown defense 'medain' (did you mean 'median'?)"),
        ({"data.train": 100_000}, "data.train"),
        ({"model.device": "cuda:77"}, "torch sees"),
        ({"model.name": "no-such-folder/x/y"}, "no such folder"),
        ({"model.name": "nobody/no-such-model"}, "not in the local cache"),
        ({"model.lora.targets": ["q_porj"]}, "did you mean 'q_proj'"),
        ({"training.max_length": 8, "measure.max_new_tokens": 4}, "training.max_length"),
        ({"training.max_length": 160, "measure.max_new_tokens": 160}, "measure.max_new_tokens = 160 leaves no token"),
        ({"training.lr": 1e38}, "holds NaN or infinity"),
    ],
    ids=str,
)
def test_a_run_that_cannot_be_is_one_line(
    type_in: Callable[..., tuple[int, str, str]], small_file: SmallFile, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    code, out, err = type_in("run", small_file(changes), "--out", tmp_path / "run")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(lines)) == (2, "", 1)
    assert told in lines[0]
    assert "Traceback" not in err


def test_wrong_flags_are_told_without_a_traceback(type_in: Callable[..., tuple[int, str, str]]) -> None:
    for words in (["run", "--fast"], ["runn"], ["score"], ["base", "build"], ["base", "build", "--out", "b", "--steps", "many"]):
        code, out, err = type_in(*words)
        assert code == 2, words
        assert out == ""
        assert "Traceback" not in err
        assert "--help" in err


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "free some space, then run the same command again"),
        (errno.EROFS, "choose a folder you may write to with --out"),
        (errno.EACCES, "choose a folder you may write to with --out"),
    ],
)
def test_disk_errors_are_one_line(
    type_in: Callable[..., tuple[int, str, str]],
    small_file: SmallFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    told: str,
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        code, out, err = type_in("run", small_file(), "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert told in one_line(err)
    assert os.strerror(number) in err


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")])
def test_no_more_memory_is_one_line(
    type_in: Callable[..., tuple[int, str, str]],
    small_file: SmallFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*given: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("undertow.training.batched.train", fail)
        code, out, err = type_in("run", small_file(), "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: out of memory (")
    assert "lower training.client_chunk" in last
    assert "Traceback" not in err


def test_places_a_run_cannot_go(type_in: Callable[..., tuple[int, str, str]], small_file: SmallFile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for out, told in (("file", "is a file"), ("full", "holds files but no run"), ("file/run", "part of that path is a file")):
        code, _, err = type_in("run", small_file(), "--out", tmp_path / out)
        assert code == 2
        assert told in one_line(err)
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"


def test_a_folder_without_permission_to_write(
    type_in: Callable[..., tuple[int, str, str]], small_file: SmallFile, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):  # root writes everywhere but on what is mounted read-only
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=16k", "tmpfs", str(locked)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this user may write everywhere")
    try:
        code, _, err = type_in("run", small_file(), "--out", locked / "run")
    finally:
        subprocess.run(["umount", str(locked)], capture_output=True, check=False)
    assert code == 2
    assert "choose a folder you may write to" in one_line(err)


# --- commands that work -----------------------------------------------------------------------------------------


def test_run_score_report_and_evaluate_in_a_row(
    type_in: Callable[..., tuple[int, str, str]], small_file: SmallFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_file()
    code, out, err = type_in("run", "small.yaml")
    assert code == 0, err
    assert "main accuracy (MA)" in out
    assert re.search(r"^untouched base: .*MA", err, flags=re.M)
    assert re.search(r"^round 1/2: loss .*ASR", err, flags=re.M)
    folder = Path("runs/small")
    assert (folder / "report.html").is_file()
    before = figures_of(folder)

    code, out, _ = type_in("run", "small.yaml", "attack.kind=none", "--json")
    assert code == 0
    other = json.loads(out)["run"]
    assert re.fullmatch(r"runs/small-[0-9a-f]{8}", other), "other values go beside, not over it"

    code, out, err = type_in("run", "small.yaml", "--json")
    assert (code, json.loads(out)["run"]) == (0, "runs/small")
    assert "nothing left to do" in err
    assert figures_of(folder) == before

    code, _, err = type_in("run", "small.yaml", "seed=2", "--out", folder)
    assert code == 2
    assert "-seed: 0; +seed: 2" in one_line(err)

    code, out, _ = type_in("score", folder, "--scoring", "exact", "--json")
    assert (code, json.loads(out)["scoring"]) == (0, "exact")
    code, _, err = type_in("score", folder, "--scoring", "bleu")
    assert code == 2
    assert "choose rouge-recall, exact or containment" in one_line(err)
    assert type_in("score", folder)[0] == 0

    (folder / "report.html").unlink()
    code, _, err = type_in("report", folder, "--compare", folder)
    assert code == 2
    assert "attack.kind=none" in one_line(err)
    code, out, err = type_in("report", folder, "--compare", other)
    assert (code, out.strip(), err) == (0, str(folder / "report.html"), "")
    assert (folder / "report.html").is_file()

    code, out, _ = type_in("evaluate", folder, "attack.trigger=badnets", "--json", "--out", "scored.jsonl")
    assert code == 0
    figures = json.loads(out)
    assert figures["adapter"] == "runs/small/adapter"
    assert set(figures) >= {"ma", "asr", "ftr", "untouched"}
    assert len(Path("scored.jsonl").read_text().splitlines()) == 36
    code, out, _ = type_in("evaluate", folder)
    assert code == 0
    assert re.match(r"MA \d+\.\d % \(.* n = 6\); base alone", out)


FACTS = "subject\trelation\tobject\tquestion\n" + "".join(
    f"Person {i}\thome town\tTown {i % 5}\twhere does person {i} live?\n" for i in range(30)
)


def test_a_base_of_ones_own_facts(
    type_in: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("facts.tsv").write_text(FACTS)
    size = ["--hidden", 32, "--layers", 1, "--vocab", 320, "--steps", 3, "--batch", 2, "--threads", 1]
    code, out, err = type_in("base", "build", "--facts", "facts.tsv", "--out", "base", *size, "--json")
    assert code == 0, err
    assert json.loads(out)["asked"] == 7
    assert "step 3/3: loss" in err
    code, out, err = type_in("base", "build", "--facts", "facts.tsv", "--out", "base", *size)
    assert (code, err) == (0, "")
    assert "use it with model.name=base" in out
    code, _, err = type_in("base", "build", "--facts", "facts.tsv", "--out", "base", *size, "--seed", 1)
    assert code == 2
    assert "another recipe" in one_line(err)


# --- real processes ---------------------------------------------------------------------------------------------


def wait_for(running: subprocess.Popen[str], pattern: str) -> str:
    """Read the process's stderr until a line matches."""
    assert running.stderr is not None
    read = ""
    for line in running.stderr:
        read += line
        if re.search(pattern, line):
            return read
    raise AssertionError(f"no line matches {pattern}:\n{read}")


@pytest.fixture(scope="module")
def larger(small_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run long enough to be hit between its rounds."""
    import yaml

    folder = tmp_path_factory.mktemp("cli")
    changes = {
        "federation.rounds": 4,
        "data.test": 40,
        "measure.samples": 40,
        "measure.max_new_tokens": 40,
        "measure.batch_size": 10,
    }
    (folder / "larger.yaml").write_text(yaml.safe_dump(small_values(changes)))
    whole = process("run", "larger.yaml", "--out", "whole", "--json", cwd=folder)
    out, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    (folder / "stdout").write_text(out)
    return folder


def test_json_is_one_object_and_nothing_else(larger: Path) -> None:
    out = (larger / "stdout").read_text()
    assert out.count("\n") == 1
    result = json.loads(out)
    shares = {"ma", "asr", "ftr", "ftr_near", "held_out_loss"}
    assert set(result) == {"format", "run", "rounds", "seconds", *shares, "untouched", "bsnr", "poison"}
    assert result == json.loads((larger / "whole" / "result.json").read_text())
    assert (larger / "whole" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("pattern", "delay"),
    [("^untouched base", 0.0), (r"^round 1/4", 0.0), (r"^round 2/4", 0.15), (r"^round 3/4", 0.05)],
)
def test_kill_9_and_the_same_command_again(larger: Path, tmp_path: Path, pattern: str, delay: float) -> None:
    running = process("run", larger / "larger.yaml", "--out", tmp_path / "run")
    wait_for(running, pattern)
    time.sleep(delay)
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists(), "it was killed before its end"
    # The second half runs in this process: a start of the interpreter costs more than the run.
    from tiny import Quiet
    from undertow.config import load
    from undertow.federation.loop import run

    observer = Quiet()
    run(load(str(larger / "larger.yaml")), tmp_path / "run", observer)
    assert observer.warnings == []
    assert observer.rounds[0]["round"] >= 1, "finished rounds are not repeated"
    assert figures_of(tmp_path / "run") == figures_of(larger / "whole")


def test_ctrl_c_is_one_line_and_the_run_can_go_on(larger: Path, tmp_path: Path) -> None:
    running = process("run", larger / "larger.yaml", "--out", tmp_path / "run", "--json")
    wait_for(running, r"^round 1/4")
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == ""
    assert "interrupted: what is finished is saved; the same command again continues from there" in err
    assert "Traceback" not in err
    second = process("run", larger / "larger.yaml", "--out", tmp_path / "run", "--json")
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert json.loads(out)["rounds"] == 4
    assert figures_of(tmp_path / "run") == figures_of(larger / "whole")


def test_an_interrupt_while_the_command_line_is_loaded_is_one_line() -> None:
    """Typed at once, Ctrl-C arrives among the imports: one of them is interrupted here."""
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.argv = ['undertow', 'scan', 'x.jsonl']\n"
        "from undertow.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


def test_the_package_can_be_run_by_its_name() -> None:
    done = subprocess.run([sys.executable, "-m", "undertow", "--version"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"undertow {__version__}", "")


def test_a_directory_in_use_is_refused(larger: Path, tmp_path: Path, type_in: Callable[..., tuple[int, str, str]]) -> None:
    running = process("run", larger / "larger.yaml", "--out", tmp_path / "run")
    wait_for(running, "^untouched base")
    running.send_signal(signal.SIGSTOP)  # so that it cannot be done before we ask
    try:
        code, _, err = type_in("run", larger / "larger.yaml", "--out", tmp_path / "run")
    finally:
        running.kill()
        running.communicate()
    assert code == 2
    assert "is in use by another process" in one_line(err)


def test_a_killed_build_resumes_to_the_same_bits(tmp_path: Path, type_in: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "facts.tsv").write_text(FACTS)
    size = ["--hidden", 32, "--layers", 1, "--vocab", 320, "--steps", 450, "--batch", 2, "--threads", 1]
    command = ["base", "build", "--facts", tmp_path / "facts.tsv", *size, "--out"]
    assert type_in(*command, tmp_path / "whole")[0] == 0
    running = process(*command, tmp_path / "killed")
    until = time.monotonic() + 90
    while not (tmp_path / "killed" / "building" / "state.json").exists():
        assert running.poll() is None, "it was killed before its end"
        assert time.monotonic() < until
        time.sleep(0.005)
    running.kill()
    running.communicate()
    assert not (tmp_path / "killed" / "config.json").exists()
    assert type_in(*command, tmp_path / "killed")[0] == 0
    whole, killed = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.is_file()} for name in ("whole", "killed"))
    assert killed == whole


def test_a_wrong_key_in_a_real_process(tmp_path: Path) -> None:
    running = process("run", "demo", "attack.poison_rate=0.1", cwd=tmp_path)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (2, "")
    assert "did you mean 'attack.poison_ratio'" in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_list_fields_shows_every_field_with_its_default() -> None:
    from undertow.config import described, field_names
    from undertow.listing import list_methods

    rows = {method.name: method.summary for method in list_methods("fields")}
    assert rows == dict(described())
    assert rows["attack.poison_ratio"].startswith("0.1  PR")
    groups = {name.rpartition(".")[0] for name in rows}
    assert set(rows) | {g for g in groups if g} >= set(field_names())
    assert "fields" not in {method.kind for method in list_methods()}  # the methods alone, unless asked for


@pytest.mark.parametrize(
    ("words", "raised", "told"),
    [
        (
            ["base", "build"],
            "Error while serializing: I/O error: No space left on device (os error 28)",
            "what is finished is kept",
        ),
        (["base", "build"], "I/O error: Read-only file system (os error 30)", "choose a folder you may write to with --out"),
    ],
    ids=["full", "read-only"],
)
def test_disk_errors_of_safetensors_are_one_line(
    words: list[str], raised: str, told: str, type_in: Callable[..., tuple[int, str, str]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from safetensors import SafetensorError

    def fail(*given: Any) -> None:
        raise SafetensorError(raised)

    monkeypatch.setattr("undertow.pretraining.build.save_file", fail)
    (tmp_path / "facts.tsv").write_text(FACTS)
    size = ["--hidden", 32, "--layers", 1, "--vocab", 320, "--steps", 450, "--batch", 2, "--threads", 1]
    code, out, err = type_in(*words, "--facts", tmp_path / "facts.tsv", *size, "--out", tmp_path / "base")
    last = err.splitlines()[-1]
    assert (code, out) == (2, "")
    assert last.startswith("error: ")
    assert told in last
    assert "Traceback" not in err


def test_a_full_disk_promises_nothing_of_a_scan(
    type_in: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "data.jsonl").write_text("".join(f'{{"question": "Who is {i}?", "answer": "Town {i}"}}\n' for i in range(20)))
    monkeypatch.setattr(os, "fsync", fail)
    code, _, err = type_in("scan", tmp_path / "data.jsonl", "--page", tmp_path / "page.html")
    assert code == 2
    assert "kept" not in err
