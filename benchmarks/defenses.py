"""Time and peak memory of the aggregation rules, each in a process of its own; alone, or against Flower's and ByzFL's.

    python benchmarks/defenses.py [--json] [--k 10,100] [--d 100000,2000000] [--rules krum,median] [--repeats 3] [--threads 2]
    python benchmarks/defenses.py --against [--k 100] [--d 2000000] [--libraries "Flower;ByzFL, torch"] [--pairs 3]
    python benchmarks/defenses.py --mapped FOLDER --k 1000 --d 2000000 --rules mean,median,krum

The updates are float32 from a normal distribution (65,536 columns of it, again and again), laid out as LoRA of rank 4 at width
4096. ``seconds`` is the fastest of the repeats; ``memory`` the peak of the process, the updates included, in multiples of the
updates' size.

``--against`` runs ours and theirs on the same array by turns, after a call of each on a small one, and gives the median of the
ratios of seconds, theirs to ours, and the ratio of CPU seconds, which other busy processes disturb less. Peaks are those of
one call in a process of its own. What takes longer than ``--limit`` seconds or needs more than ``--room`` GB is said to do so.
``--mapped`` keeps the updates in a file under FOLDER and reads them through memory mapping; ``memory`` is then what the process
holds besides, which the file's pages in memory are no part of.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as undertow itself sets them; before torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from undertow.core.layout import Layout
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.registry import DEFENSES

RANK, WIDTH = 4, 4096
PERIOD = 1 << 16


def layout(d: int) -> Layout:
    """Return ``d`` columns as pairs of LoRA matrices, the rest as one vector."""
    modules, rest = divmod(d, 2 * RANK * WIDTH)
    shapes: dict[str, tuple[int, ...]] = {}
    for module in range(modules):
        shapes |= {f"{module}.lora_A": (RANK, WIDTH), f"{module}.lora_B": (WIDTH, RANK)}
    return Layout.of(shapes | ({"rest": (rest,)} if rest else {}))


def rules() -> list[str]:
    """Return the names of all registered aggregation rules."""
    return [entry.name for entry in DEFENSES.entries() if isinstance(entry.make, type) and issubclass(entry.make, Aggregator)]


def fill(updates: NDArray[Any]) -> NDArray[Any]:
    """Fill ``updates [K, D]`` row by row."""
    period = np.random.default_rng(0).standard_normal((len(updates), min(PERIOD, updates.shape[1])), dtype=np.float32)
    for row, values in zip(updates, period, strict=True):
        row[:] = np.resize(values, len(row))
    return updates


def peak() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(case: tuple[str, int, int, int, int]) -> dict[str, Any]:
    """Time one rule at one size, in a fresh process."""
    name, k, d, repeats, threads = case
    torch.set_num_threads(threads)
    rule: Aggregator = DEFENSES.get(name)()
    rule(torch.randn(10, 1000))  # loads libraries
    before = psutil.Process().memory_info().rss
    updates = torch.from_numpy(fill(np.empty((k, d), dtype=np.float32)))
    names = layout(d)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        rule(updates, layout=names)
        seconds.append(time.perf_counter() - began)
    held = peak() - before
    return {
        "rule": name,
        "k": k,
        "d": d,
        "seconds": round(min(seconds), 4),
        "memory": round(held / (k * d * 4), 3),
        "peak_mb": round(held / 1e6, 1),
    }


def beside(process: psutil.Process) -> int:
    """Return the bytes that a process holds beside pages of files."""
    told = process.memory_info()
    return int(told.rss - told.shared)


def mapped(name: str, k: int, d: int, threads: int, folder: Path) -> dict[str, Any]:
    """Time one rule on a file, in this process."""
    torch.set_num_threads(threads)
    file = folder / f"updates_{k}_{d}.f32"
    if not file.exists() or file.stat().st_size != 4 * k * d:
        fill(np.memmap(file, np.float32, "w+", shape=(k, d))).flush()  # type: ignore[attr-defined]
    updates = np.memmap(file, np.float32, "r", shape=(k, d))
    rule: Aggregator = DEFENSES.get(name)()
    rule(np.ones((10, 1000), dtype=np.float32))
    own, done = psutil.Process(), threading.Event()
    held = [beside(own)]

    def watch() -> None:
        while not done.wait(0.05):
            held.append(beside(own))

    observer = threading.Thread(target=watch)
    observer.start()
    began = time.perf_counter()
    rule(updates, layout=layout(d))
    seconds = time.perf_counter() - began
    done.set()
    observer.join()
    most = max(held) - held[0]
    return {
        "rule": name,
        "k": k,
        "d": d,
        "seconds": round(seconds, 1),
        "beside_mb": round(most / 1e6),
        "memory": round(most / (4 * k * d), 4),
    }


def against(rule: str, library: str, k: int, d: int, part: str, pairs: int, threads: int) -> dict[str, Any]:
    """Measure one part of a comparison in this process: ``time``, or the peak of ``ours`` or ``theirs``."""
    from oracles import PAIRS, Setting

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    (pair,) = [one for one in PAIRS if (one.rule, one.library) == (rule, library)]
    f = min(pair.most(k), k // 5)

    def setting(width: int) -> Setting:
        return Setting(f, [1 + i % 7 for i in range(k)], float(width) ** 0.5)

    def theirs(array: NDArray[Any]) -> None:
        made = pair.build(setting(array.shape[1]), k)
        for _ in range(pair.rounds):
            pair.call(made, pair.hand_over(array, setting(array.shape[1])), setting(array.shape[1]))

    small = fill(np.empty((k, 64), dtype=np.float32))
    pair.ours(small, setting(64))
    theirs(small)
    before = psutil.Process().memory_info().rss
    updates = fill(np.empty((k, d), dtype=np.float32))
    if part != "time":
        pair.ours(updates, setting(d)) if part == "ours" else theirs(updates)
        return {"memory": round((peak() - before) / updates.nbytes, 2)}
    rows = []
    given = updates.copy() if pair.writes else updates
    for _ in range(pairs):
        row = []
        np.copyto(given, updates)
        for call in (lambda: pair.ours(updates, setting(d)), lambda: theirs(given)):
            began, cpu = time.perf_counter(), time.process_time()
            call()
            row += [time.perf_counter() - began, time.process_time() - cpu]
        rows.append(row)
    return {
        "ours": round(min(row[0] for row in rows), 3),
        "theirs": round(min(row[2] for row in rows), 3),
        "ratio": round(statistics.median(row[2] / row[0] for row in rows), 2),
        "cpu_ratio": round(statistics.median(row[3] / row[1] for row in rows), 2),
    }


def ask(options: argparse.Namespace, *given: Any) -> dict[str, Any]:
    """Run one part in a fresh process, with its limits."""
    command = [sys.executable, __file__, "--one", json.dumps(given)]
    room = int(options.room * 1e9)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (room, room))

    try:
        # the array, the calls by turns, and loading torch
        seconds = options.limit * (2 * options.pairs if "time" in given else 1) + 60
        told = subprocess.run(command, capture_output=True, text=True, timeout=seconds, preexec_fn=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {options.limit} s"}
    if told.returncode == 0:
        return dict(json.loads(told.stdout.strip().splitlines()[-1]))
    last = told.stderr.strip().splitlines()[-1] if told.stderr.strip() else f"exit code {told.returncode}"
    memory = told.returncode < 0 or any(word in last.lower() for word in ("memory", "alloc"))
    return {"failed": f"more than {options.room:g} GB" if memory else last[:200]}


def compare(options: argparse.Namespace, ks: list[int], ds: list[int]) -> list[dict[str, Any]]:
    """Return a row for each rule, library and size."""
    from oracles import PAIRS

    rows = []
    for d in ds:
        for k in ks:
            for pair in PAIRS:
                if pair.rule not in options.rules.split(",") or pair.library not in options.libraries.split(";"):
                    continue
                row: dict[str, Any] = {"rule": pair.rule, "library": pair.library, "k": k, "d": d}
                if 4 * k * d > options.room * 1e9:
                    row["failed"] = f"the updates alone are {4 * k * d / 1e9:g} GB"
                else:
                    size = (pair.rule, pair.library, k, d)
                    for part in ("ours", "theirs"):
                        found = ask(options, *size, part, 1, options.threads)
                        row |= {f"{key}_{part}": value for key, value in found.items()}
                    if "failed_ours" not in row and "failed_theirs" not in row:
                        row |= ask(options, *size, "time", options.pairs, options.threads)
                rows.append(row)
                if not options.json:
                    print(row, flush=True)
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--k", default="10,100")
    parser.add_argument("--d", default="100000,2000000")
    parser.add_argument("--rules")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--against", action="store_true")
    parser.add_argument("--libraries", default="Flower;Flower, older API;ByzFL, numpy;ByzFL, torch")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120)
    parser.add_argument("--room", type=float, default=16)
    parser.add_argument("--mapped", type=Path)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(against(*options.one)))
        return
    if not options.rules:
        from oracles import PAIRS

        options.rules = ",".join(dict.fromkeys(pair.rule for pair in PAIRS) if options.against else rules())
    ks, ds = ([int(float(n)) for n in text.split(",")] for text in (options.k, options.d))
    if options.against:
        rows = compare(options, ks, ds)
    else:
        rows = []
        cases = [(name, k, d) for d in ds for k in ks for name in options.rules.split(",")]
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            if options.mapped:
                found = (mapped(*case, options.threads, options.mapped) for case in cases)
            else:
                found = pool.imap(measure, [(*case, options.repeats, options.threads) for case in cases], chunksize=1)
            for row in found:
                rows.append(row)
                if not options.json:
                    print(row, flush=True)
    if options.json:
        print(json.dumps({"rules": rows, "setting": {"threads": options.threads, "load": os.getloadavg()[0]}}))


if __name__ == "__main__":
    main()
