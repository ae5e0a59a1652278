"""One GPU, the shape of Llama-2-7B with random weights: the batched trainer against sequential PEFT, paired.

    python benchmarks/gpu.py [--json] [--pairs 3] [--steps 2] [--clients 10] [--dtype bfloat16] [--device cuda] [--small]

Samples as in ``round.py`` (43 template tokens of about 68), batch 4, LoRA r = 4 on q and v. Prints the median ratio, tokens
a second (tokens of the samples, shared ones counted each time they occur), the share of the measured matrix-product peak,
and the peak memory. ``--small`` takes a model of 25 M parameters, to try the command without a large card.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

import torch
from round import BATCH, WORKLOADS, make_base, make_jobs, matmul_peak, seconds, wait, work

from undertow.config import Training
from undertow.models.lora import initial_adapter
from undertow.training import batched, sequential

LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("error: torch sees no GPU here, so nothing is measured; run this on a GPU machine, or try --device cpu --small")
    dtype, device = getattr(torch, options.dtype), options.device
    config = WORKLOADS["W2"]["config"] if options.small else LLAMA_2_7B
    base = make_base(config, dtype, device)
    jobs = make_jobs(config["vocab_size"], BATCH * options.steps, True, options.clients)
    training, adapter = Training(batch_size=BATCH, lr=2e-5), initial_adapter(base.layout, 0)
    times: dict[str, list[float]] = {"peft": [], "batched": []}
    peaks: dict[str, int] = {}
    updates: dict[str, torch.Tensor] = {}
    for pair in range(options.pairs + 1):  # the first pair warms up
        for label, trainer in (("peft", sequential), ("batched", batched)):
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            wait(device)
            took, updates[label] = seconds(trainer, base, training, adapter, jobs)
            if pair:
                times[label].append(took)
            if device.startswith("cuda"):
                peaks[label] = torch.cuda.max_memory_allocated() // 2**20
    ratios = sorted(a / b for a, b in zip(times["peft"], times["batched"], strict=True))
    took = statistics.median(times["batched"])
    peak = matmul_peak(dtype, device, 8192 if device.startswith("cuda") else 1024)
    tokens = sum(len(row.prompt) + len(row.answer) for job in jobs for row in job.data)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "ratio": round(statistics.median(ratios), 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
        "tokens_per_second": round(tokens / took),
        "matmul_peak_tflops": round(peak / 1e12, 3),
        "share_of_peak": round(work(base, jobs, options.steps) / took / peak, 3),
        "peak_memory_mb": peaks,
        "update_difference": float((updates["batched"] - updates["peft"]).norm() / updates["peft"].norm()),
        "setting": {
            "dtype": options.dtype,
            "clients": options.clients,
            "steps": options.steps,
            "torch": torch.__version__,
            **config,
        },
    }
    print(json.dumps(found) if options.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
