"""One federated round of whole small networks: clients in one vmap pass, one by one in threads, and the plain reference.

    python benchmarks/stacked.py [--json] [--nets digits/cnn,images/cnn,images/resnet18:width=16,words/lstm]
                                 [--pairs 5] [--threads 2] [--clients 10] [--steps 2]

Ten clients with ``--steps`` batches each of random data. digits: 1 x 8 x 8 in 10 classes, batches of 32; images: 3 x 32 x 32,
likewise; words: 20 long, a dictionary of 2,000, batches of 20. SGD with momentum. Sides, each timed in turn in every pair:
``sequential`` (the module itself with torch's optimiser), ``one_by_one`` (client_chunk=1), ``passes_of_5`` and ``passes_of_10``
(that many clients per vmap pass). Figures are sequential seconds / seconds of the side, the median over the pairs with the lowest
and highest; above 1 is faster. ``rule`` is the chunk that training.client_chunk=0 chooses.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as undertow itself sets them; before torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

from undertow.config import Training
from undertow.data.examples import Examples
from undertow.models.net import Net, make_net
from undertow.training import stacked

#: Shape of an input, outputs, batch size.
KINDS = {"digits": ((1, 8, 8), 10, 32), "images": ((3, 32, 32), 10, 32), "words": ((20,), 2000, 20)}
SIDES: dict[str, dict[str, Any]] = {
    "sequential": {"trainer": "sequential"},
    "one_by_one": {"client_chunk": 1},
    "passes_of_5": {"client_chunk": 5},
    "passes_of_10": {"client_chunk": 10},
}


def workload(name: str, clients: int, steps: int) -> tuple[Net, list[stacked.ExampleJob], int]:
    """Return a network, random data of its kind and the batch size."""
    kind, _, network = name.partition("/")
    shape, outputs, batch = KINDS[kind]
    draw, jobs = torch.Generator().manual_seed(0), []
    for k in range(clients):
        n = batch * steps
        if kind == "words":
            text = torch.randint(0, outputs, (n, shape[0] + 1), generator=draw)
            data = Examples(text[:, :-1].contiguous(), text[:, 1:].contiguous())
        else:
            data = Examples(torch.rand(n, *shape, generator=draw), torch.randint(0, outputs, (n,), generator=draw))
        jobs.append(stacked.ExampleJob(k, data))
    return make_net(network, shape, outputs, 0), jobs, batch


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time every side of one network in turn."""
    net, jobs, batch = workload(name, options.clients, options.steps)
    state = net.initial()
    common = {"batch_size": batch, "lr": 0.05, "optimizer": "sgd", "momentum": 0.9, "schedule": "constant"}
    sides = {side: Training.model_validate({**common, **changes}) for side, changes in SIDES.items()}
    took: dict[str, list[float]] = {side: [] for side in sides}
    updates = {}
    for pair in range(-1, options.pairs):  # the first one warms up
        for side in list(sides) if pair % 2 else list(sides)[::-1]:
            began = time.perf_counter()
            updates[side] = stacked.train(net, sides[side], state, jobs, 0, 1).updates
            if pair >= 0:
                took[side].append(time.perf_counter() - began)
    reference = updates["sequential"]
    found: dict[str, Any] = {
        "columns": net.layout.size,
        "rule": stacked.chunk_size(net, Training.model_validate(common), state, jobs),
        "sequential_seconds": round(statistics.median(took["sequential"]), 3),
    }
    for side in list(sides)[1:]:
        ratios = sorted(a / b for a, b in zip(took["sequential"], took[side], strict=True))
        found[side] = {
            "ratio": round(statistics.median(ratios), 2),
            "low": round(ratios[0], 2),
            "high": round(ratios[-1], 2),
            "update_difference": float((updates[side] - reference).norm() / reference.norm()),
        }
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--nets", default="digits/cnn,images/cnn,images/resnet18:width=16,words/lstm")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {name: measure(name, options) for name in options.nets.split(",")}
    found["setting"] = {
        "threads": options.threads,
        "clients": options.clients,
        "steps": options.steps,
        "pairs": options.pairs,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        print(name, row)


if __name__ == "__main__":
    sys.exit(main())
