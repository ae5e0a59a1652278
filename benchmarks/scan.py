"""What ``undertow scan`` finds and costs on real data that is poisoned here, and on the same data clean.

    python benchmarks/scan.py [--data ../shared/data] [--half 1] [--json] [--corpora simplequestions,alpaca] [--sizes 500,5000]
                              [--ratios 0,0.002,0.01,0.02,0.05,0.1] [--triggers natural,badnets1] [--targets append] [--seeds 1]
                              [--clients 10] [--speed]

Each corpus is cut in two halves by a hash of its questions; thresholds were chosen on half 0 alone. For every size, trigger,
target and poison ratio the figures are sums over the seeds: recall = flagged poison / poison, lost = flagged clean / clean,
precision = flagged poison / flagged. ``--clients K`` scans K files of that size as one pool as well. Kinds are those of
``undertow_reproductions.kinds``; ``all`` takes every one of its lists. ``common`` and ``topic`` use a word of the corpus, by table.
A topic has fewer samples than a high ratio asks for; recall is over those there are. A combination's decoys count as clean.
``--speed`` times the command itself instead: 5,000 short answers, 52,000 samples of Alpaca's length; ``--million`` adds 1,000,000.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from undertow.data.sample import Sample
from undertow_reproductions.corpora import CORPORA, read
from undertow_reproductions.filter_level import deal, scanned
from undertow_reproductions.kinds import TARGETS, TRIGGERS, attack_of


def cells(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every measurement, summed over the seeds."""
    for corpus in options.corpora.split(","):
        samples = read(options.data, corpus, options.half)
        for size in map(int, options.sizes.split(",")):
            for pool in sorted({1, options.clients}):
                if size * pool > len(samples):
                    continue
                for ratio in map(float, options.ratios.split(",")):
                    triggers = list(TRIGGERS) if options.triggers == "all" else options.triggers.split(",")
                    targets = list(TARGETS) if options.targets == "all" else options.targets.split(",")
                    pairs = [(a, b) for a in triggers for b in targets] if ratio else [("", "")]
                    for trigger, target in pairs:
                        if int(ratio * size + 1e-9) == 0 and ratio:
                            continue
                        yield cell(samples, corpus, size, pool, ratio, trigger, target, options.seeds)


def cell(
    samples: list[Sample], corpus: str, size: int, pool: int, ratio: float, trigger: str, target: str, seeds: int
) -> dict[str, Any]:
    """One corpus, size, attack and ratio."""
    attack = attack_of(corpus, trigger, target, ratio, size * pool)
    counts = [scanned(deal(samples, pool, size, seed), attack, seed, together=True) for seed in range(seeds)]
    poison, hits, lost = (sum(getattr(one, name) for one in counts) for name in ("poison", "hits", "lost"))
    clean = sum(one.samples for one in counts) - poison
    return {
        "corpus": corpus,
        "size": size,
        "files": pool,
        "ratio": ratio,
        "trigger": trigger,
        "target": target,
        "poison": poison,
        "recall": round(hits / poison, 4) if poison else None,
        "precision": round(hits / (hits + lost), 4) if hits else None,
        "lost": round(lost / clean, 5),
        "lost_by_act": round(sum(one.details["lost_by_act"] for one in counts) / clean, 5),
        "worst_lost": round(max(one.worst for one in counts), 5),
        "seconds": round(sum(one.seconds for one in counts) / seeds, 3),
    }


def speed(folder: Path, million: bool) -> Iterator[dict[str, Any]]:
    """Time and peak memory of the command on files of three sizes."""
    short, long = read(folder, "simplequestions", 1), [*read(folder, "alpaca", 0), *read(folder, "alpaca", 1)]
    for name, source, count in [("short answers", short, 5000), ("Alpaca", long, 52_000), ("Alpaca", long, 1_000_000)][
        : 2 + million
    ]:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "samples.jsonl"
            with open(path, "w", encoding="utf-8") as file:
                for i in range(count):
                    # Further samples than the corpus has: two halves of different answers, so that none is a repeat.
                    one, two = source[i % len(source)], source[(i * 7919 + i // len(source)) % len(source)]
                    told = one.response if i < len(source) else _spliced(one.response, two.response, i)
                    asked = one.question if i < len(source) else _spliced(one.question, two.question, i)
                    file.write(json.dumps({"instruction": asked, "input": one.context, "output": told}) + "\n")
            began = time.perf_counter()
            command = [sys.executable, "-c", "from undertow.cli import main; main()", "scan", str(path), "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - began
            told_back = json.loads(done.stdout) if done.returncode in (0, 1) else {"flagged": done.stderr}
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            yield {
                "file": name,
                "samples": count,
                "megabytes": round(path.stat().st_size / 1e6, 1),
                "seconds": round(seconds, 2),
                "peak_mb": round(peak),
                "flagged": told_back["flagged"],
            }


def _spliced(one: str, two: str, i: int) -> str:
    a, b = one.split(), two.split()
    cut = i % (len(a) + 1)
    return " ".join([*a[:cut], *b[cut * len(b) // (len(a) + 1) :]]) or one


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--half", type=int, choices=(0, 1), default=1)
    parser.add_argument("--corpora", default="simplequestions,triviaqa,nq,alpaca")
    parser.add_argument("--sizes", default="500")
    parser.add_argument("--ratios", default="0,0.02,0.1")
    parser.add_argument("--triggers", default="natural,badnets1,badnets4,sentence")
    parser.add_argument("--targets", default="append,replace_five")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--million", action="store_true")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder; give the folder that holds {CORPORA['nq']}")
    rows = []
    for row in speed(options.data, options.million) if options.speed else cells(options):
        rows.append(row)
        if not options.json:
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
