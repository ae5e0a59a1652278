"""Greedy evaluation: Undertow's decoding against transformers' generate, paired, in one process.

    python benchmarks/evaluation.py [--json] [--pairs 5] [--threads 2] [--batch 32]
    python benchmarks/evaluation.py --base FOLDER --data FILE [--questions 300] [--dtype bfloat16] [--pairs 1] [--cases none]
                                    [--adapter FOLDER] [--trigger badnets]

Without ``--base`` the built-in base answers 300 questions of the built-in world; with it, a real base answers the questions of
a file, and as many again with a trigger in them. With ``--adapter`` a tuned model answers, as ``undertow evaluate`` asks it: ours
with the adapter beside the weights, generate with PEFT's adapter merged into them, which is faster than beside. At most 24 new
tokens, the lab-qa template, batches sorted by length on both sides. Cases: no expectation (``none``), and expectations (the round
before's outputs) of which 100, 70, 30 and 0 % hold.
Ratios are generate's seconds / ours, ``cpu_ratio`` that of the processor's seconds; every case's outputs are compared with
generate's, and the number that differ is printed.

``generate`` is helped: torch copies a frozen head's weight once for each row whose slice of a batch has gaps, which
``load_base`` prevents in the model's own modules too. ``--unhelped`` times generate as it is without.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as undertow itself sets them; before torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch

from undertow.backdoors.placement import make_threat, triggered
from undertow.config import Attack, Data, InstructionBackdoor, Measure, Model
from undertow.data.generated import world
from undertow.data.load import load
from undertow.data.template import Template
from undertow.inference.decoding import generate
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.general import keep_inputs_contiguous
from undertow.models.with_adapter import plain_adapter

LIMIT = 24
CASES = {"none": None, "100": 100, "70": 70, "30": 30, "0": 0}


def reference(model: Any, base: CausalLM, prompts: list[list[int]], batch: int) -> list[list[int]]:
    """Return transformers' own greedy continuations, batches of equal lengths together as ours."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        length = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[base.pad_id] * (length - len(prompts[i])) + prompts[i] for i in chosen])
        mask = torch.tensor([[0] * (length - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=LIMIT,
            pad_token_id=base.pad_id,
            eos_token_id=base.end_ids,
        )
        for i, row in zip(chosen, out[:, length:].tolist(), strict=True):
            end = next((j for j, token in enumerate(row) if token in base.end_ids), len(row))
            found[i] = row[:end]
    return found


def questions(base: CausalLM, options: argparse.Namespace) -> list[list[int]]:
    """Return prompts: of the built-in world, or a file's with as many triggered ones."""
    template = Template("lab-qa", base.tokenizer)
    if options.data is None:
        return template.encode_prompts(world.samples()[: options.questions])
    data = Data(name=options.dataset, path=options.data, train=1, test=options.questions)
    clean = load(data, 0, 1, asked=base.asked).test
    trigger = make_threat(Attack(), InstructionBackdoor(trigger=options.trigger)).trigger
    return template.encode_prompts([*clean, *triggered(clean, trigger, 0)])


def guesses(truth: list[list[int]], share: int | None) -> list[list[int]] | None:
    """Return expectations of which ``share`` per cent hold, or None."""
    if share is None:
        return None
    n = len(truth)
    wrong = set(np.random.default_rng(share).choice(n, size=n - n * share // 100, replace=False).tolist())
    return [truth[(i + 7) % n] if i in wrong else truth[i] for i in range(n)]


def opponent(base: CausalLM, options: argparse.Namespace) -> Any:
    """Return the model that ``generate`` runs on: the one that ``load_base`` leaves, or as transformers and PEFT load it."""
    if not options.unhelped and options.adapter is None:
        return base.model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=base.model.dtype)
    if options.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, options.adapter).merge_and_unload()
    if not options.unhelped:
        keep_inputs_contiguous(model)
    return model.eval().requires_grad_(False)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch", type=int, default=32, help="generate's")
    parser.add_argument("--own-batch", type=int, default=Measure().batch_size, help="ours; measure.batch_size by default")
    parser.add_argument("--base", default="builtin")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--data", help="a file of questions, instead of the built-in world's")
    parser.add_argument("--dataset", default="simplequestions", help="who reads the file, see `undertow list datasets`")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--trigger", default="badnets", help="of the file's questions when they are asked again")
    parser.add_argument("--adapter", help="a PEFT adapter of the base")
    parser.add_argument("--cases", default="none,100,70,30,0", help="comma-separated; none comes first")
    parser.add_argument("--unhelped", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base(Model(name=options.base, dtype=options.dtype))
    theirs = opponent(base, options)
    adapter, layout = plain_adapter(base, Path(options.adapter)) if options.adapter else (None, None)
    prompts = questions(base, options)
    reference(theirs, base, prompts[:4], options.batch)
    ways: dict[str, Any] = {"max_new_tokens": LIMIT, "batch_size": options.own_batch}
    generate(base, adapter, prompts[:4], layout=layout, **ways)
    truth: list[list[int]] = []
    found: dict[str, Any] = {}
    for name in options.cases.split(","):
        seconds: dict[str, list[float]] = {"generate": [], "ours": []}
        busy = dict.fromkeys(seconds, 0.0)
        for _ in range(options.pairs):
            began, before = time.perf_counter(), time.process_time()
            said = reference(theirs, base, prompts, options.batch)
            seconds["generate"].append(time.perf_counter() - began)
            busy["generate"] += time.process_time() - before
            truth = truth or said
            expected = guesses(truth, CASES[name])
            began, before = time.perf_counter(), time.process_time()
            ours = generate(base, adapter, prompts, layout=layout, expected=expected, **ways)
            seconds["ours"].append(time.perf_counter() - began)
            busy["ours"] += time.process_time() - before
        ratios = sorted(a / b for a, b in zip(seconds["generate"], seconds["ours"], strict=True))
        found[name if CASES[name] is None else f"{name} % hold"] = {
            "ratio": round(statistics.median(ratios), 3),
            "low": round(ratios[0], 3),
            "high": round(ratios[-1], 3),
            "cpu_ratio": round(busy["generate"] / busy["ours"], 3),
            "seconds": {side: round(statistics.median(each), 3) for side, each in seconds.items()},
            "different": sum(a != b for a, b in zip(ours, truth, strict=True)),
        }
    found["setting"] = {
        "prompts": len(prompts),
        "mean_prompt": round(float(np.mean([len(p) for p in prompts])), 1),
        "mean_output": round(float(np.mean([len(t) for t in truth])), 1),
        "dtype": options.dtype,
        "batch": {"generate": options.batch, "ours": options.own_batch},
        "threads": options.threads,
        "generate": "unhelped" if options.unhelped else "helped",
        "load": os.getloadavg()[0],
    }
    print(json.dumps(found) if options.json else "\n".join(f"{name}: {row}" for name, row in found.items()))


if __name__ == "__main__":
    main()
