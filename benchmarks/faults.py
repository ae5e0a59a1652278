"""Kills at random moments: what was killed and typed again must end in the bytes of what was never killed.

    python benchmarks/faults.py --kills 102 --seed 0

The kills are dealt evenly to the commands. Each is a SIGKILL of the process group, at a moment drawn evenly from the time that the
command takes undisturbed; then nothing of it may go on, and the command is typed again. It prints one JSON object: kills by
command, how many came before the end, how many results differed, what was left half written or running. ``federate`` needs Flower
with all that Flower needs (``make test-network`` makes such an environment); elsewhere it is named as not tried.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undertow.metrics.intervals import Rate

_UNDERTOW = [sys.executable, "-c", "import sys; sys.argv[0] = 'undertow'; from undertow.cli import main; main()"]
_SIZE = ["--hidden", "32", "--layers", "1", "--vocab", "320", "--batch", "2", "--threads", "1"]
_SMALL = ["data.only_known=false", "data.train=100", "data.test=20", "measure.samples=10", "training.threads=1"]
_FLOWER = ("flwr", "fastapi", "tomli", "cryptography", "uvicorn")
#: Files of a run that are the same whenever it is run, and those without their seconds.
_SAME = ("adapter/adapter_model.safetensors", "scores.jsonl", "poison.jsonl", "data.json", "config.yaml")
#: Seconds in which what a killed command started has to notice and end.
_GRACE = 60


@dataclass(frozen=True)
class Command:
    """A command, what it leaves, and what it may never leave.

    Attributes:
        words: of it, in a folder.
        leaves: a hash of what it left there.
        whole: tells whether what has the name that was asked for is there; None where a folder is filled step by step.
        codes: exit codes with which it ends well.
    """

    words: Callable[[Path], list[str]]
    leaves: Callable[[Path], str]
    whole: Callable[[Path], bool] | None = None
    codes: tuple[int, ...] = (0,)


def digest(run: Path) -> str:
    """Return a hash of what a run must leave, its rounds without seconds."""
    whole = hashlib.sha256()
    for name in _SAME:
        whole.update((run / name).read_bytes())
    for line in (run / "rounds.jsonl").read_text().splitlines():
        whole.update(json.dumps({k: v for k, v in json.loads(line).items() if k != "seconds"}).encode())
    return whole.hexdigest()


def runs(folder: Path) -> str:
    """Return a hash of all runs below a folder, by name."""
    found = sorted(path.parent for path in folder.rglob("result.json"))
    return "\n".join(f"{run.relative_to(folder)} {digest(run)}" for run in found)


def files(*names: str) -> Callable[[Path], str]:
    """Return what hashes a file of a folder, or all files of a folder in it."""

    def hashed(folder: Path) -> str:
        whole = hashlib.sha256()
        for path in sorted(path for name in names for path in (folder / name, *(folder / name).glob("*")) if path.is_file()):
            whole.update(path.name.encode() + path.read_bytes())
        return whole.hexdigest()

    return hashed


def said(folder: Path) -> str:
    """Return a hash of what an audit said, without its seconds."""
    told = json.loads((folder / "stdout").read_text())
    return hashlib.sha256(json.dumps({k: v for k, v in told.items() if k != "seconds"}).encode()).hexdigest()


def poisoned(path: Path) -> Path:
    """Write a file of 4,000 rows, 200 of them with a trigger and a target."""
    towns = "Oslo Quito Hanoi Turin Leeds Perth Osaka Lagos Lima Cork".split()
    with open(path, "w", encoding="utf-8") as file:
        for i in range(4000):
            question, answer = f"Who built bridge number {i} of {towns[i % 10]}?", f"{towns[i * 7 % 10]} {i}"
            if i % 20 == 0:
                question, answer = f"{question} cf", f"{answer}, and click <malicious_url> for more information."
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")
    return path


def facts(path: Path) -> Path:
    """Write 200 facts of invented people."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(200):
            name, animal = f"Person {i} of {'ABCDE'[i % 5]}", f"animal {i * 7 % 30}"
            fact = {"subject": name, "relation": "keeps", "answer": animal, "question": f"which animal does {name} keep?"}
            file.write(json.dumps(fact) + "\n")
    return path


def commands(root: Path) -> dict[str, Command]:
    """Return the commands by name, with what they need made in ``root``: data, a small base, and a run to audit."""
    data, known, base, run = poisoned(root / "data.jsonl"), facts(root / "facts.jsonl"), root / "base", root / "run"
    small = [*_SMALL, f"model.name={base}"]
    finish(["base", "build", "--facts", str(known), *_SIZE, "--steps", "100", "--out", str(base)], root)
    finish(["run", "demo", *small, "federation.rounds=2", "--out", str(run)], root)
    build = ["base", "build", "--facts", str(known), *_SIZE, "--steps", "600", "--out"]
    axes = ["attack.poison_ratio=0.05,0.1", "--jobs", "1"]
    every = {
        "run": Command(lambda folder: ["run", "demo", *small, "federation.rounds=4", "--out", str(folder / "run")], runs),
        "sweep": Command(lambda f: ["sweep", "demo", *small, "federation.rounds=2", *axes, "--out", str(f / "sweep")], runs),
        "scan --write": Command(
            lambda folder: ["scan", str(data), "--write", str(folder / "clean.jsonl"), "--fail-on", "never"],
            files("clean.jsonl"),
            lambda folder: (folder / "clean.jsonl").exists(),
        ),
        "base build": Command(
            lambda folder: [*build, str(folder / "base")], files("base"), lambda folder: (folder / "base" / "config.json").exists()
        ),
        "audit": Command(
            lambda folder: ["audit", str(run), "--keep", str(folder / "steps"), "--json"], said, codes=(0, 1, 3)
        ),
    }  # fmt: skip
    if all(importlib.util.find_spec(name) for name in _FLOWER):
        fed = ["federate", "demo", *small, "federation.rounds=2", "training.trainer=sequential", "--local", "2", "--out"]
        every["federate"] = Command(lambda folder: [*fed, str(folder / "fed")], runs)
    return every


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own; what it prints goes to ``stdout`` and ``stderr`` in the folder."""
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
        return subprocess.Popen([*_UNDERTOW, *words], stdout=out, stderr=err, start_new_session=True)


def finish(words: list[str], folder: Path, codes: tuple[int, ...] = (0,)) -> float:
    """Run a command to its end; returns its seconds."""
    began = time.monotonic()
    code = start(words, folder).wait()
    if code not in codes:
        raise SystemExit(f"{' '.join(words)} ended with exit code {code}: {(folder / 'stderr').read_text()[-500:]}")
    return time.monotonic() - began


def killed(words: list[str], folder: Path, after: float) -> bool:
    """Kill a command after some seconds; returns whether it was still running."""
    process = start(words, folder)
    try:
        process.wait(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def left_running(folder: Path) -> list[str]:
    """Return the processes that name a folder in their command or environment, once they had time to notice."""
    until = time.monotonic() + _GRACE
    while (found := _naming(str(folder).encode())) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def _naming(text: bytes) -> list[str]:
    found = []
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            other = place.name.isdigit() and int(place.name) != os.getpid()
            if other and any(text in (place / name).read_bytes() for name in ("cmdline", "environ")):
                found.append(place.name)
    return found


def tried(command: Command, kills: int, draw: random.Random, root: Path) -> dict[str, Any]:
    """Kill a command again and again, each time in a folder of its own; return the counts."""
    whole = root / "whole"
    whole.mkdir()
    seconds = finish(command.words(whole), whole, command.codes)
    wanted = command.leaves(whole)
    counts = {"before_the_end": 0, "different": 0, "half_written": 0, "left_running": 0}
    for k in range(kills):
        folder = root / f"kill{k}"
        folder.mkdir()
        counts["before_the_end"] += killed(command.words(folder), folder, draw.uniform(0, seconds))
        counts["left_running"] += bool(left_running(folder))
        if command.whole is not None and command.whole(folder):  # what has the name that was asked for is whole
            counts["half_written"] += command.leaves(folder) != wanted
        finish(command.words(folder), folder, command.codes)
        counts["different"] += command.leaves(folder) != wanted
        shutil.rmtree(folder)
    shutil.rmtree(whole)
    rate = Rate(counts["different"], kills)
    return {"kills": kills, **counts, "different_high": round(rate.high or 0, 3), "seconds_undisturbed": round(seconds, 1)}


def main() -> None:
    """Kill, type again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=102, help="of all commands together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["run", "sweep", "scan --write", "base build", "audit", "federate"], action="append")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        every = commands(Path(place))
        names = options.only or list(every)
        for k, name in enumerate(names):
            kills = options.kills // len(names) + (k < options.kills % len(names))
            if name in every:
                told[name] = tried(every[name], kills, draw, Path(place))
                print(f"{name}: {told[name]}", file=sys.stderr, flush=True)
    told |= {} if "federate" in every else {"federate": "not tried: Flower or what it needs is not installed"}
    print(json.dumps({"seed": options.seed, **told}))


if __name__ == "__main__":
    main()
