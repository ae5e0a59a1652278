"""How one round grows with the number of clients: time per client-step and memory, K = 1 ... 100.

    python benchmarks/scale.py [--json] [--clients 1,2,5,10,20,50,100] [--threads 2] [--steps 4]

Workload W1 of ``round.py``. Each K runs in its own process, so that peaks do not add up; ``mb_per_client`` is the slope
of peak memory between K = 10 and the largest K. Times are medians of three rounds of ``--steps`` steps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as undertow itself sets them; before torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def one(clients: int, steps: int, threads: int) -> dict[str, Any]:
    """Measure one K in this process."""
    import torch
    from round import BATCH, WORKLOADS, make_base, make_jobs, seconds

    from undertow.config import Training
    from undertow.models.lora import initial_adapter
    from undertow.training import batched

    torch.set_num_threads(threads)
    config = WORKLOADS["W1"]["config"]
    base = make_base(config, torch.float32)
    training, adapter = Training(batch_size=BATCH, lr=2e-5), initial_adapter(base.layout, 0)
    jobs = make_jobs(config["vocab_size"], BATCH * steps, True, clients)
    seconds(batched, base, training, adapter, jobs[: min(clients, 5)])
    took = statistics.median(seconds(batched, base, training, adapter, jobs)[0] for _ in range(3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"clients": clients, "ms_per_client_step": round(1000 * took / clients / steps, 3), "peak_mb": round(peak)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", default="1,2,5,10,20,50,100")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.steps, options.threads)))
        return
    rows = []
    for clients in map(int, options.clients.split(",")):
        command = [
            sys.executable,
            __file__,
            "--one",
            str(clients),
            "--steps",
            str(options.steps),
            "--threads",
            str(options.threads),
        ]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(told.stdout.strip().splitlines()[-1]))
    by = {row["clients"]: row for row in rows}
    last = rows[-1]["clients"]
    found: dict[str, Any] = {"rows": rows, "threads": options.threads, "load": os.getloadavg()[0]}
    if 5 in by:
        found["time_ratio_to_5"] = round(by[last]["ms_per_client_step"] / by[5]["ms_per_client_step"], 3)
    if 10 in by and last > 10:
        found["mb_per_client"] = round((by[last]["peak_mb"] - by[10]["peak_mb"]) / (last - 10), 2)
    print(json.dumps(found) if options.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
