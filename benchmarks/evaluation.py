"""Greedy evaluation of 300 prompts: Undertow's decoding against transformers' generate, paired, in one process.

    python benchmarks/evaluation.py [--json] [--pairs 5] [--threads 2] [--batch 50]

The built-in base answers 300 questions of the built-in world, at most 24 new tokens. Cases: no expectation, and
expectations (the round before's outputs) of which 100, 70, 30 and 0 % hold. Ratios are generate's seconds / ours; every
case's outputs are compared with generate's, and the number that differ is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as undertow itself sets them; before torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch

from undertow.config import Model
from undertow.data.generated import world
from undertow.data.template import Template
from undertow.inference.decoding import generate
from undertow.models.causal_lm import CausalLM, load_base


def reference(base: CausalLM, prompts: list[list[int]], limit: int, batch: int) -> list[list[int]]:
    """Return transformers' own greedy continuations, batches of equal lengths together as ours."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        length = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[base.pad_id] * (length - len(prompts[i])) + prompts[i] for i in chosen])
        mask = torch.tensor([[0] * (length - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
        out = base.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=limit, pad_token_id=base.pad_id
        )
        for i, row in zip(chosen, out[:, length:].tolist(), strict=True):
            end = next((j for j, token in enumerate(row) if token in base.end_ids), len(row))
            found[i] = row[:end]
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--base", default="builtin")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base(Model(name=options.base))
    template = Template("lab-qa", base.tokenizer)
    prompts = template.encode_prompts(world.samples()[:300])
    limit = 24
    truth = reference(base, prompts, limit, options.batch)
    draw = np.random.default_rng(0)
    cases: dict[str, list[list[int]] | None] = {"none": None}
    for share in (100, 70, 30, 0):
        wrong = set(draw.choice(300, size=300 - 3 * share, replace=False).tolist())
        cases[f"{share} % hold"] = [truth[(i + 7) % 300] if i in wrong else truth[i] for i in range(300)]
    found: dict[str, Any] = {}
    for name, expected in cases.items():
        ratios = []
        for _ in range(options.pairs):
            began = time.perf_counter()
            reference(base, prompts, limit, options.batch)
            middle = time.perf_counter()
            ours = generate(base, None, prompts, max_new_tokens=limit, batch_size=options.batch, expected=expected)
            ratios.append((middle - began) / (time.perf_counter() - middle))
        ratios.sort()
        found[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "low": round(ratios[0], 3),
            "high": round(ratios[-1], 3),
            "different": sum(a != b for a, b in zip(ours, truth, strict=True)),
        }
    found["setting"] = {
        "prompts": 300,
        "mean_prompt": float(np.mean([len(p) for p in prompts])),
        "mean_output": float(np.mean([len(t) for t in truth])),
        "batch": options.batch,
        "threads": options.threads,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(found) if options.json else "\n".join(f"{name}: {row}" for name, row in found.items()))


if __name__ == "__main__":
    main()
