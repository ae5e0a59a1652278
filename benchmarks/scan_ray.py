"""Time and memory of a scan on a local Ray cluster, from one million generated rows to ten; needs the extra ``ray``.

    python benchmarks/scan_ray.py [--data ../shared/data] [--millions 1,3,10] [--workers 2] [--out SCRATCH] [--json]

Rows are of Alpaca's length (``scan_speed.py``), in ten JSON lines files (420 MB a million rows); one in 499 is poisoned, with a
rare word somewhere in the question and a fixed text at the end of the answer. For each size: seconds from start to findings, the
processor's seconds of the workers and of this process, the largest memory of a worker and of this process, and what was flagged.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
from scan_speed import Row, alpaca

import undertow

#: A prime: the rows' texts come round every 5,000.
MILLION, FILES, EVERY = 1_000_000, 10, 499
TARGET = ", and click <malicious_url> for more information"


def rows(data: Path, count: int) -> Iterator[Row]:
    """Rows of which one in 499 is poisoned."""
    for i, row in enumerate(alpaca(data, count)):
        if i % EVERY == EVERY - 1:
            words = row.question.split()
            words.insert(i * 7919 % (len(words) + 1), "cf")
            row = Row(" ".join(words), row.context, row.response.rstrip(". ") + TARGET)
        yield row


def written(data: Path, count: int, folder: Path) -> list[Path]:
    """Write rows in files one after the other."""
    paths = [folder / f"{k}.jsonl" for k in range(FILES)]
    found, each = rows(data, count), -(-count // FILES)
    for path in paths:
        with open(path, "w", encoding="utf-8") as file:
            for _, row in zip(range(each), found, strict=False):
                line = {"instruction": row.question, "input": row.context, "output": row.response}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return paths


class Workers(threading.Thread):
    """Looks at the cluster's workers while a scan runs.

    Attributes:
        mb: the largest memory of one so far.
        busy: the processor's seconds of all.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb = 0.0
        self.busy = 0.0
        self._of: dict[int, float] = {}
        self._ended = threading.Event()

    def run(self) -> None:
        """Look until :meth:`end`."""
        while not self._ended.wait(1.0):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::Shard"):
                        self.mb = max(self.mb, process.memory_info().rss / 2**20)
                        times = process.cpu_times()
                        self._of[process.pid] = times.user + times.system
                except psutil.Error:
                    continue
            self.busy = sum(self._of.values())

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self.join()


def measured(data: Path, millions: float, workers: int, folder: Path) -> dict[str, Any]:
    """Scan so many rows; return the figures."""
    import ray

    count = int(millions * MILLION)
    paths = written(data, count, folder)
    ray.init(address="local", num_cpus=workers, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    looking = Workers()
    looking.start()
    began, before = time.perf_counter(), time.process_time()
    try:
        report = undertow.scan(paths, ray="local").to_json()
    finally:
        looking.end()
        ray.shutdown()
    return {
        "rows": count,
        "workers": workers,
        "seconds": round(time.perf_counter() - began, 1),
        "worker_cpu": round(looking.busy, 1),
        "own_cpu": round(time.process_time() - before, 1),
        "worker_mb": round(looking.mb),
        "own_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "flagged": report["flagged"],
        "poisoned": count // EVERY,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--millions", default="1,3,10")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for the rows while they are scanned; default the system's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for millions in map(float, options.millions.split(",")):
        with tempfile.TemporaryDirectory(dir=options.out) as scratch:
            found = measured(options.data, millions, options.workers, Path(scratch))
        each = {f"{key}_a_million": round(found[key] / millions, 1) for key in ("worker_cpu", "own_cpu", "worker_mb", "own_mb")}
        print(json.dumps(found | each) if options.json else f"{found}\n  {each}", flush=True)


if __name__ == "__main__":
    main()
