"""One federated round: the batched trainer against a lean sequential PEFT loop, paired A B A B in one process.

    python benchmarks/round.py [--json] [--workloads W1,W2] [--pairs 5] [--threads 2] [--dtype float32] [--no-template]

W1: a 0.9 M-parameter Llama, 128 samples a client; W2: a random 25 M Llama (512 x 8, vocabulary 8,000), 32 samples a
client. Both: 10 clients, batch 4, LoRA r = 4, alpha = 8 on q and v, AdamW, clip 1.0; samples of about 68 tokens: 43 of a
shared template, 25 of the question, 5 of them the answer. ``--no-template`` makes the first 43 tokens differ too. With
``--dtype bfloat16`` both sides use a bfloat16 base and float32 adapters.

The lean loop has no Trainer, no data loader and no evaluation: a fresh AdamW per client and round, forward, backward,
clip, step. Each side trains ``--steps`` optimiser steps a client (default W1 8 of 32, W2 2 of 8); a round is those times
the steps left out. Ratios are PEFT seconds / batched seconds per pair.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as undertow itself sets them; before torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from undertow.config import Lora, Training
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM
from undertow.models.llama.check import packed_llama
from undertow.models.lora import adapter_layout, find_targets, initial_adapter
from undertow.training import batched, sequential
from undertow.training.local import Job

CLIENTS, BATCH = 10, 4
WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {
        "config": {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 352,
            "vocab_size": 1024,
        },
        "samples": 128,
        "steps": 8,
    },
    "W2": {
        "config": {
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "intermediate_size": 1376,
            "vocab_size": 8000,
        },
        "samples": 32,
        "steps": 2,
    },
}


class _Tokens:
    """Stands where a tokenizer would; the benchmark speaks token ids."""

    eos_token_id, pad_token_id = 1, 0


def make_base(config: dict[str, int], dtype: torch.dtype, device: str = "cpu") -> CausalLM:
    """Return a random frozen Llama."""
    torch.manual_seed(0)
    tie = config["vocab_size"] < 2000
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**config, dtype=dtype, tie_word_embeddings=tie, max_position_embeddings=2048))
    model = model.to(dtype).eval().requires_grad_(False)
    lora = Lora()
    layout = adapter_layout(model, find_targets(model, lora), lora)
    return CausalLM(
        name="random",
        path="random",
        model=model,
        tokenizer=_Tokens(),
        device=torch.device(device),
        layout=layout,
        asked=frozenset(),
        known=None,
        logits_to_keep=True,
        packed=packed_llama(model, layout, 0),
    )


def make_jobs(vocabulary: int, samples: int, template: bool, clients: int = CLIENTS) -> list[Job]:
    """Return clients whose samples have 43 template tokens, 15-25 of a question and 3-7 of an answer."""
    draw = np.random.default_rng(0)
    shared = tuple(draw.integers(2, vocabulary, 43).tolist())
    jobs = []
    for k in range(clients):
        data = []
        for _ in range(samples):
            head = shared if template else tuple(draw.integers(2, vocabulary, 43).tolist())
            question = tuple(draw.integers(2, vocabulary, draw.integers(15, 26)).tolist())
            data.append(Encoded(head + question, tuple(draw.integers(2, vocabulary, draw.integers(3, 8)).tolist())))
        jobs.append(Job(k, data))
    return jobs


def seconds(trainer: Any, base: CausalLM, training: Training, adapter: torch.Tensor, jobs: list[Job]) -> tuple[float, torch.Tensor]:
    """Time one round of a trainer."""
    began = time.perf_counter()
    updates = trainer.train(base, Lora(), training, adapter, jobs, 0, 1).updates
    return time.perf_counter() - began, updates


def matmul_peak(dtype: torch.dtype, device: str = "cpu", size: int = 1024) -> float:
    """Return the device's matrix-product speed in FLOP/s (best of six, ``size`` x ``size``)."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        wait(device)
        began = time.perf_counter()
        for _ in range(4):
            a @ b
        wait(device)
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * size**3 / best


def wait(device: str) -> None:
    """Let a GPU finish what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def work(base: CausalLM, jobs: list[Job], steps: int) -> float:
    """Return the FLOP of the frozen products that the packed path cannot avoid: 2 (forward) + 2 (backward) per weight and token."""
    from undertow.models.prefix_trie import pack

    blocks = sum(p.numel() for n, p in base.model.named_parameters() if "layers" in n and p.ndim == 2)
    packed = pack([job.data[:BATCH] for job in jobs], 0)
    layers = base.model.config.num_hidden_layers
    head = base.model.lm_head.weight.numel()
    return steps * 4.0 * (packed.tokens.numel() * blocks * (layers - 1) / layers + packed.rows.numel() * (head + blocks / layers))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workloads", default="W1,W2")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--no-template", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    found: dict[str, Any] = {}
    for name in options.workloads.split(","):
        spec = WORKLOADS[name]
        base = make_base(spec["config"], dtype)
        jobs = make_jobs(spec["config"]["vocab_size"], BATCH * spec["steps"], not options.no_template)
        training = Training(batch_size=BATCH, lr=2e-5)
        adapter = initial_adapter(base.layout, 0)
        small = [Job(job.client, job.data[:BATCH]) for job in jobs]
        seconds(batched, base, training, adapter, small)
        seconds(sequential, base, training, adapter, small)
        times: dict[str, list[float]] = {"peft": [], "batched": []}
        for pair in range(options.pairs):
            order = [("peft", sequential), ("batched", batched)]
            for label, trainer in order if pair % 2 == 0 else order[::-1]:
                took, updates = seconds(trainer, base, training, adapter, jobs)
                times[label].append(took)
                if label == "peft":
                    reference = updates
                else:
                    ours = updates
        ratios = sorted(a / b for a, b in zip(times["peft"], times["batched"], strict=True))
        scale = spec["samples"] // BATCH / spec["steps"]
        peak = matmul_peak(dtype)
        best = statistics.median(times["batched"])
        found[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "low": round(ratios[0], 3),
            "high": round(ratios[-1], 3),
            "seconds_per_round": {label: round(statistics.median(t) * scale, 3) for label, t in times.items()},
            "update_difference": float((ours - reference).norm() / reference.norm()),
            "matmul_peak_gflops": round(peak / 1e9, 1),
            "share_of_peak": round(work(base, jobs, spec["steps"]) / best / peak, 3),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
    found["setting"] = {
        "dtype": options.dtype,
        "threads": options.threads,
        "template": not options.no_template,
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
