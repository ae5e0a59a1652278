"""One federated round: the batched trainer against a lean sequential PEFT loop, paired A B A B in one process.

    python benchmarks/round.py [--json] [--workloads W1,W2] [--pairs 5] [--threads 2] [--dtype float32] [--no-template]
    python benchmarks/round.py --base FOLDER --data FILE [--dataset simplequestions] [--dtype bfloat16] [--targets all-linear]
    python benchmarks/round.py --workloads smollm2-135m --memory

W1: a 0.9 M-parameter Llama, 128 samples a client; W2: a random 25 M Llama (512 x 8, vocabulary 8,000), 32 samples a
client; the other workloads are random models of a public model's shape, 32 samples a client; ``opt-125m`` and ``bloom-176m`` are
of families that take the general path. All: 10 clients, batch 4, LoRA r = 4, alpha = 8 on peft's default modules (q and v in a
Llama), AdamW, clip 1.0; samples of about 68 tokens: 43 of a shared template, 25 of the question, 5 of them the answer.
``--no-template`` makes the first 43 tokens differ too. With ``--base`` and ``--data`` (workload W3) base, questions and their
lab-qa template are real. With ``--dtype bfloat16`` both sides use a bfloat16 base and float32 adapters.

The lean loop has no Trainer, no data loader and no evaluation: a fresh AdamW per client and round, forward, backward,
clip, step. Its forward gives the logits of all positions, as transformers and peft do for a loss. Each side trains ``--steps``
optimiser steps a client; a round is those times the steps left out. Ratios are PEFT seconds / batched seconds per pair;
``cpu_ratio`` is that of the processor's seconds, which other processes on the machine change little.
``--memory`` times nothing: each side trains one step in a process of its own, whose peak is printed beside that of the base alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as undertow itself sets them; before torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from undertow.config import Data, Lora, Model, Training
from undertow.data.load import load
from undertow.data.template import Encoded, Template
from undertow.models.causal_lm import CausalLM, load_base, with_paths
from undertow.models.general import keep_inputs_contiguous
from undertow.models.lora import adapter_layout, find_targets, initial_adapter, linears_of
from undertow.models.prefix_trie import pack
from undertow.training import batched, sequential
from undertow.training.local import Job

CLIENTS, BATCH = 10, 4
SIDES: dict[str, Any] = {"peft": sequential, "batched": batched}


def _llama(hidden: int, layers: int, heads: int, inner: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        **more,
    }


WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {"config": _llama(128, 4, 4, 352, 1024, tie_word_embeddings=True), "samples": 128, "steps": 8},
    "W2": {"config": _llama(512, 8, 8, 1376, 8000), "samples": 32, "steps": 2},
    "smollm2-135m": {
        "config": _llama(576, 30, 9, 1536, 49152, num_key_value_heads=3, tie_word_embeddings=True),
        "samples": 32,
        "steps": 1,
    },
    "qwen3-0.6b": {
        "config": _llama(
            1024, 28, 16, 3072, 151936, model_type="qwen3", num_key_value_heads=8, head_dim=128, tie_word_embeddings=True
        ),
        "samples": 32,
        "steps": 1,
    },
    "opt-125m": {
        "config": {
            "model_type": "opt",
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "ffn_dim": 3072,
            "vocab_size": 50272,
            "word_embed_proj_dim": 768,
            "max_position_embeddings": 2048,
        },
        "samples": 32,
        "steps": 1,
    },
    "bloom-176m": {
        "config": {"model_type": "bloom", "hidden_size": 768, "n_layer": 12, "n_head": 12, "vocab_size": 120000},
        "samples": 32,
        "steps": 1,
    },
}


class _Tokens:
    """Stands where a tokenizer would; the benchmark speaks token ids."""

    eos_token_id, pad_token_id = 1, 0


def make_base(config: dict[str, Any], dtype: torch.dtype, device: str = "cpu", lora: Lora | None = None) -> CausalLM:
    """Return a random frozen model."""
    torch.manual_seed(0)
    with torch.device(device):
        options = AutoConfig.for_model(**config, dtype=dtype, bos_token_id=0, eos_token_id=1, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(options)
    model = model.to(dtype).eval().requires_grad_(False)
    keep_inputs_contiguous(model)
    lora = lora or Lora()
    layout = adapter_layout(model, find_targets(model, lora), lora)
    bare = CausalLM("random", "random", model, _Tokens(), torch.device(device), layout, frozenset(), None, logits_to_keep=True)
    return with_paths(bare)


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


def real_jobs(base: CausalLM, data: Data, samples: int) -> list[Job]:
    """Return clients with real questions in the data's template."""
    template = Template(data.template, base.tokenizer)
    dealt = load(data.model_copy(update={"train": CLIENTS * samples, "test": 1}), 0, CLIENTS, asked=base.asked).clients
    return [Job(k, [template.encode(sample) for sample in own]) for k, own in enumerate(dealt)]


def seconds(trainer: Any, base: CausalLM, training: Training, adapter: torch.Tensor, jobs: list[Job]) -> tuple[float, torch.Tensor]:
    """Time one round of a trainer on the clock."""
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
    head = base.model.get_output_embeddings().weight.numel()
    blocks = sum(module.get_parameter("weight").numel() for module in linears_of(base.model).values()) - head
    packed = pack([job.data[:BATCH] for job in jobs], 0)
    layers = base.model.config.num_hidden_layers
    return steps * 4.0 * (packed.tokens.numel() * blocks * (layers - 1) / layers + packed.rows.numel() * (head + blocks / layers))


def prepare(name: str, options: argparse.Namespace) -> tuple[CausalLM, list[Job], int, int]:
    """Return a workload's base, clients, steps to time and steps of a round."""
    targets = options.targets if options.targets in ("default", "all-linear") else options.targets.split(",")
    lora = Lora(targets=targets)
    if name == "W3":
        base = load_base(Model(name=options.base, dtype=options.dtype, lora=lora))
        steps, whole = options.steps or 1, 5
        jobs = real_jobs(base, Data(name=options.dataset, path=options.data), BATCH * steps)
        return base, jobs, steps, whole
    spec = WORKLOADS[name]
    base = make_base(spec["config"], getattr(torch, options.dtype), lora=lora)
    steps = options.steps or spec["steps"]
    jobs = make_jobs(spec["config"]["vocab_size"], BATCH * steps, not options.no_template)
    return base, jobs, steps, spec["samples"] // BATCH


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time both sides of a workload by turns."""
    base, jobs, steps, whole = prepare(name, options)
    training = Training(batch_size=BATCH, lr=2e-5)
    adapter = initial_adapter(base.layout, 0)
    small = [Job(job.client, job.data[:BATCH]) for job in jobs]
    for trainer in (batched, sequential):
        seconds(trainer, base, training, adapter, small)
    times: dict[str, list[float]] = {"peft": [], "batched": []}
    busy = dict.fromkeys(times, 0.0)
    updates: dict[str, torch.Tensor] = {}
    for pair in range(options.pairs):
        for label in list(SIDES) if pair % 2 == 0 else list(SIDES)[::-1]:
            before = time.process_time()
            took, updates[label] = seconds(SIDES[label], base, training, adapter, jobs)
            busy[label] += time.process_time() - before
            times[label].append(took)
    ratios = sorted(a / b for a, b in zip(times["peft"], times["batched"], strict=True))
    peak = matmul_peak(base.model.dtype)
    gap = (updates["batched"] - updates["peft"]).norm() / updates["peft"].norm()
    return {
        "ratio": round(statistics.median(ratios), 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
        "cpu_ratio": round(busy["peft"] / busy["batched"], 3),
        "seconds_per_round": {label: round(statistics.median(t) * whole / steps, 3) for label, t in times.items()},
        "update_difference": float(gap),
        "path": base.facts()["training_path"],
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "share_of_peak": round(work(base, jobs, steps) / statistics.median(times["batched"]) / peak, 3),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def peak_of(name: str, side: str, options: argparse.Namespace) -> int:
    """Return this process's peak memory in MB after one step of one side, or after loading the base (``side`` base)."""
    base, jobs, _, _ = prepare(name, options)
    if side != "base":
        seconds(SIDES[side], base, Training(batch_size=BATCH, lr=2e-5), initial_adapter(base.layout, 0), jobs)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def peaks(name: str) -> dict[str, int]:
    """Return the peak memory in MB of the base alone and of each side, each in a process of its own."""
    found = {}
    for side in ("base", *SIDES):
        again = [sys.executable, *sys.argv, "--workloads", name, "--only", side]
        found[side] = int(subprocess.run(again, check=True, capture_output=True, text=True).stdout.split()[-1])
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workloads", help=f"comma-separated: {', '.join(WORKLOADS)}; W1,W2 if not given, W3 with --base")
    parser.add_argument("--base", help="W3: a transformers folder or a GGUF file")
    parser.add_argument("--data", help="W3: a file of questions")
    parser.add_argument("--dataset", default="simplequestions", help="W3: who reads the file, see `undertow list datasets`")
    parser.add_argument("--targets", default="default", help="default, all-linear or module names, comma-separated")
    parser.add_argument("--steps", type=int, help="optimiser steps a client to time")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--no-template", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--only", choices=["base", *SIDES], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.base is None) != (options.data is None):
        parser.error("--base and --data go together")
    torch.set_num_threads(options.threads)
    names = (options.workloads or ("W3" if options.base else "W1,W2")).split(",")
    if options.only:
        print(peak_of(names[0], options.only, options))
        return
    found: dict[str, Any] = {name: {"peak_memory_mb": peaks(name)} if options.memory else compare(name, options) for name in names}
    found["setting"] = {
        "dtype": options.dtype,
        "targets": options.targets,
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
