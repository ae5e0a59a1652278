"""What federated sanitization finds and costs on real data that is poisoned here, and on the same data clean.

    python benchmarks/federated_sanitization.py [--data ../shared/data] [--half 1] [--json] [--corpora simplequestions,alpaca]
                              [--clients 10] [--size 500] [--ratios 0,0.002,0.02] [--shares 1.0] [--triggers natural]
                              [--targets append] [--seeds 1] [--act-on all] [--epsilon 20] [--clip 32]

`undertow reproduce sanitization --only filter` measures the whole grid on half 1 and keeps it; this prints single cells, on
either half and with other parameters of the defense. Corpora, halves, triggers and targets are those of
`undertow_reproductions.corpora` and `undertow_reproductions.kinds`; thresholds were chosen on half 0 alone. All figures are
sums over clients and seeds: recall = poisoned samples dropped or repaired / poisoned, lost = clean ones dropped or repaired
/ clean, worst = the client that lost most; leftover = repaired samples that still hold a piece of the target. ``--size
250`` gives Alpaca ten clients.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from undertow.defenses.data.sanitization import Sanitization
from undertow_reproductions.corpora import CORPORA, read
from undertow_reproductions.filter_level import Counts, deal, pooled
from undertow_reproductions.kinds import attack_of


def cells(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every measurement, summed over the seeds."""
    for corpus in options.corpora.split(","):
        samples = read(options.data, corpus, options.half)
        for ratio in map(float, options.ratios.split(",")):
            pairs = [(a, b) for a in options.triggers.split(",") for b in options.targets.split(",")] if ratio else [("", "")]
            for trigger, target in pairs:
                for share in map(float, options.shares.split(",")) if ratio else [0.0]:
                    counts = []
                    for seed in range(options.seeds):
                        clients = deal(samples, options.clients, options.size, seed)
                        size = len(clients[0])
                        attack = attack_of(corpus, trigger, target, ratio, size * options.clients, share)
                        defense = Sanitization(act_on=options.act_on, epsilon=options.epsilon, clip=options.clip)
                        counts.append(pooled(clients, attack, seed, defense))
                    yield {
                        "corpus": corpus,
                        "clients": options.clients,
                        "size": size,
                        "ratio": ratio,
                        "share": share,
                        "trigger": trigger,
                        "target": target,
                        **row(counts),
                    }


def row(counts: list[Counts]) -> dict[str, Any]:
    """Rates of one cell."""
    samples, poison, hits, lost = (sum(getattr(one, name) for one in counts) for name in ("samples", "poison", "hits", "lost"))
    details = {name: sum(one.details[name] for one in counts) for name in counts[0].details}
    return {
        "poison": poison,
        "recall": round(hits / poison, 4) if poison else None,
        "precision": round(hits / (hits + lost), 4) if hits + lost else None,
        "lost": round(lost / (samples - poison), 5),
        "worst": round(max(one.worst for one in counts), 5),
        **details,
        "bytes": details["bytes"] // len(counts),
        "seconds": round(sum(one.seconds for one in counts) / len(counts), 2),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--half", type=int, choices=(0, 1), default=1)
    parser.add_argument("--corpora", default="simplequestions,triviaqa,nq,alpaca")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--ratios", default="0,0.002,0.01,0.1")
    parser.add_argument("--shares", default="1.0")
    parser.add_argument("--triggers", default="natural,badnets1")
    parser.add_argument("--targets", default="append,replace_five")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--act-on", default="all")
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--clip", type=int, default=32)
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder; give the folder that holds {CORPORA['nq']}")
    rows = []
    for found in cells(options):
        rows.append(found)
        if not options.json:
            print("  ".join(f"{key} {value}" for key, value in found.items()), flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
