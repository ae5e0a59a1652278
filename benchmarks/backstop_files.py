"""The files behind docs/defending.md: trusted samples of the built-in world, and facts that the built-in base has never read.

    python benchmarks/backstop_files.py FOLDER

``trusted.jsonl`` holds 300 questions of the world that the demo neither trains nor tests on at seed 0. ``new_train.jsonl`` and
``new_test.jsonl`` are about 50 invented people: each fact in three wordings to train on and in a fourth to test.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from undertow.config import load as load_config
from undertow.core.rng import rng
from undertow.data.generated.world import _FIRST, _LAST, RELATIONS, facts
from undertow_reproductions.trusted_file import write_trusted

PEOPLE = 50


def new_facts() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return questions and answers about people who are not in the world, to train on and to test."""
    known = {fact.subject for fact in facts()}
    names = [name for first in _FIRST for last in _LAST if (name := f"{first} {last}") not in known]
    draw = rng(7, "new people")
    train, test = [], []
    for i in draw.choice(len(names), PEOPLE, replace=False):
        for relation in RELATIONS:
            answer = relation.values[draw.integers(len(relation.values))]
            asked = [relation.questions[form].format(s=names[i]) for form in draw.permutation(4)]
            asked = [question[0].upper() + question[1:] for question in asked]
            train += [(question, answer) for question in asked[:3]]
            test.append((asked[3], answer))
    return train, test


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    train, test = new_facts()
    print(f"{folder / 'trusted'}.jsonl: {write_trusted(load_config('demo'), folder / 'trusted.jsonl')} samples")
    for name, pairs in (("new_train", train), ("new_test", test)):
        lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        print(f"{folder / name}.jsonl: {len(pairs)} samples")


if __name__ == "__main__":
    main()
