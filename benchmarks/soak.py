"""Whether the memory of a federation grows: `undertow federate --local` on a small base for many rounds, each process sampled.

    python benchmarks/soak.py --rounds 200 --nodes 4

After each round the resident memory of the server and of each node's worker is read. It prints one JSON object: for each role
the first and last memory in MB, and the slope in kB a round over the second half of the rounds (least squares; the 95 % interval is
that of 1,000 resamples of blocks of ten rounds). Memory grows where the interval lies above 0. Flower must be installed with all
that it needs (``make test-network`` makes such an environment).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

_UNDERTOW = [sys.executable, "-c", "import sys; sys.argv[0] = 'undertow'; from undertow.cli import main; main()"]
_BASE = ["--hidden", "32", "--layers", "1", "--vocab", "320", "--batch", "2", "--threads", "1", "--steps", "50"]
_SMALL = [
    "data.only_known=false", "data.train=40", "data.test=4", "measure.samples=4", "measure.every=1000", "training.threads=1",
    "measure.bsnr.permutations=0", "measure.bsnr.counterfactuals=false",
]  # fmt: skip
_BLOCK = 10


def small_base(root: Path) -> Path:
    """Pre-train a base of one layer on facts of invented people."""
    with open(root / "facts.jsonl", "w", encoding="utf-8") as file:
        for i in range(200):
            name, animal = f"Person {i} of {'ABCDE'[i % 5]}", f"animal {i * 7 % 30}"
            fact = {"subject": name, "relation": "keeps", "answer": animal, "question": f"which animal does {name} keep?"}
            file.write(json.dumps(fact) + "\n")
    words = ["base", "build", "--facts", str(root / "facts.jsonl"), *_BASE, "--out", str(root / "base")]
    subprocess.run([*_UNDERTOW, *words], check=True, capture_output=True)
    return root / "base"


def memory(folder: Path, server: int) -> dict[str, float]:
    """Return the resident memory in MB of the server and, added up, of the nodes' workers."""
    found = {"server": 0.0, "workers": 0.0}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == server:
                found["server"] = process.memory_info().rss / 2**20
            elif "undertow.federate.worker" in process.cmdline() and any(str(folder) in word for word in process.cmdline()):
                found["workers"] += process.memory_info().rss / 2**20
    return found


def slope(values: list[float]) -> tuple[float, float, float]:
    """Return the slope in kB a round over the second half, with its 95 % interval by blocks of rounds drawn again."""
    rounds = np.arange(len(values))[len(values) // 2 :]
    kept = np.asarray(values)[len(values) // 2 :] * 1024
    draw = np.random.default_rng(0)
    blocks = [np.arange(start, min(start + _BLOCK, len(kept))) for start in range(0, len(kept), _BLOCK)]
    resampled = []
    for _ in range(1000):
        chosen = np.concatenate([blocks[k] for k in draw.integers(0, len(blocks), len(blocks))])
        if len(set(chosen.tolist())) > 1:
            resampled.append(float(np.polyfit(rounds[chosen], kept[chosen], 1)[0]))
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(np.polyfit(rounds, kept, 1)[0]), float(low), float(high)


def main() -> None:
    """Run, sample, fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        words = ["federate", "demo", f"model.name={small_base(root)}", *_SMALL, f"federation.rounds={options.rounds}"]
        folder = root / "fed"
        words += ["--local", str(options.nodes), "--out", str(folder), "--json"]
        began, sampled, done = time.monotonic(), [], 0
        with open(root / "stderr", "wb") as err:
            process = subprocess.Popen([*_UNDERTOW, *words], stdout=subprocess.DEVNULL, stderr=err)
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    lines = (folder / "run" / "rounds.jsonl").read_bytes().count(b"\n")
                    if lines > done:
                        done = lines
                        sampled.append(memory(folder, process.pid))
                        if done % 20 == 0:
                            print(f"round {done - 1}: {sampled[-1]}", file=sys.stderr, flush=True)
                time.sleep(0.2)
        finally:
            process.terminate()
            process.wait()
        told: dict[str, Any] = {"rounds": done - 1, "nodes": options.nodes, "code": process.returncode}
        for role in ("server", "workers"):
            values = [one[role] for one in sampled]
            rise, low, high = slope(values)
            told[role] = {
                "first_mb": round(values[0], 1), "last_mb": round(values[-1], 1), "kb_a_round": round(rise, 2),
                "low": round(low, 2), "high": round(high, 2),
            }  # fmt: skip
        print(json.dumps({**told, "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
