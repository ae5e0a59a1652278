"""Kills at random moments: what was killed and typed again must end in the bytes of what was never killed.

    python benchmarks/faults.py --kills 100 --seed 0

Each kill is a SIGKILL of the process group, at a moment drawn evenly from the time that the command takes undisturbed. It prints
one JSON object: kills by command, how many came before the end, how many results differed, what was left half written or running.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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
from pathlib import Path
from typing import Any

_UNDERTOW = [sys.executable, "-c", "import sys; sys.argv[0] = 'undertow'; from undertow.cli import main; main()"]
_SMALL = ["federation.rounds=3", "data.train=100", "data.test=20", "measure.samples=10", "training.threads=1"]
#: Files of a run that are the same whenever it is run, and those without their seconds.
_SAME = ("adapter/adapter_model.safetensors", "scores.jsonl", "poison.jsonl", "data.json", "config.yaml")


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


def rows(folder: Path) -> str:
    """Return a hash of what a scan wrote."""
    return hashlib.sha256((folder / "clean.jsonl").read_bytes()).hexdigest()


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


def commands(data: Path) -> dict[str, tuple[Callable[[Path], list[str]], Callable[[Path], str]]]:
    """Return, by name, the words of a command in a folder, and a hash of what it leaves there."""
    axes = ["attack.poison_ratio=0.05,0.1", "--jobs", "1"]
    return {
        "run": (lambda folder: ["run", "demo", *_SMALL, "--out", str(folder / "run")], runs),
        "sweep": (lambda folder: ["sweep", "demo", *_SMALL, *axes, "--out", str(folder / "sweep")], runs),
        "scan --write": (lambda folder: ["scan", str(data), "--write", str(folder / "clean.jsonl"), "--fail-on", "never"], rows),
    }


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own."""
    return subprocess.Popen([*_UNDERTOW, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(words: list[str]) -> float:
    """Run a command to its end; returns its seconds."""
    began = time.monotonic()
    process = start(words)
    told, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with exit code {process.returncode}: {told.decode()[-500:]}")
    return time.monotonic() - began


def killed(words: list[str], after: float) -> bool:
    """Kill a command after some seconds; returns whether it was still running."""
    process = start(words)
    try:
        process.communicate(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True


def left_running(group_of: Path) -> list[str]:
    """Return the processes whose command names a folder."""
    found = []
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if place.name.isdigit() and str(group_of) in (place / "cmdline").read_text() and int(place.name) != os.getpid():
                found.append(place.name)
    return found


def main() -> None:
    """Kill, type again, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["run", "sweep", "scan --write"], action="append")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        every = commands(poisoned(Path(root) / "data.jsonl"))
        for name in options.only or every:
            words, leaves = every[name]
            whole = Path(root) / "whole"
            whole.mkdir()
            seconds = finish(words(whole))
            wanted = leaves(whole)
            counts = {"kills": options.kills, "before_the_end": 0, "different": 0, "half_written": 0, "left_running": 0}
            for k in range(options.kills):
                folder = Path(root) / f"kill{k}"
                folder.mkdir()
                counts["before_the_end"] += killed(words(folder), draw.uniform(0, seconds))
                counts["left_running"] += bool(left_running(folder))
                if name == "scan --write":  # what has the name that was asked for is whole
                    counts["half_written"] += (folder / "clean.jsonl").exists() and leaves(folder) != wanted
                finish(words(folder))
                counts["different"] += leaves(folder) != wanted
                shutil.rmtree(folder)
            shutil.rmtree(whole)
            told[name] = {**counts, "seconds_undisturbed": round(seconds, 1)}
    print(json.dumps({"seed": options.seed, **told}))


if __name__ == "__main__":
    main()
