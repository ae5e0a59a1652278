"""CPU seconds of the scan's two halves, reading rows and finding, on files made from Alpaca's rows; of this tree or another.

    python benchmarks/scan_speed.py [--data ../shared/data] [--tree OLD/src] [--sets alpaca,long,short] [--read lines,list,indented]
                                    [--size 1.0]

``find``: 52,000 rows of Alpaca's length (further rows are halves of two others), 20,000 questions within one template of some
270 words and a label, 5,000 short questions of SimpleQuestions. ``read``: a million rows as JSON lines, and 237,000 (100 MB) as a
list on one line and an indented one. ``--size`` scales all. ``--tree`` is the ``src`` folder of another version.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETS = {"alpaca": 52_000, "long": 20_000, "short": 5_000}
FORMS = {"lines": 1_000_000, "list": 237_000, "indented": 237_000}


@dataclass
class Row:
    """What a scan asks of a sample."""

    question: str
    context: str
    response: str


def spliced(one: str, two: str, i: int) -> str:
    """The beginning of one text with the end of another."""
    a, b = one.split(), two.split()
    cut = i % (len(a) + 1)
    return " ".join([*a[:cut], *b[cut * len(b) // (len(a) + 1) :]]) or one


def alpaca(folder: Path, count: int) -> Iterator[Row]:
    """Rows of Alpaca, and further ones made from two each."""
    with gzip.open(folder / "instruction" / "alpaca_data_5000.json.gz", "rt", encoding="utf-8") as file:
        rows = [Row(row["instruction"], row["input"], row["output"]) for row in json.load(file)]
    for i in range(count):
        one, two = rows[i % len(rows)], rows[(i * 7919 + i // len(rows)) % len(rows)]
        if i < len(rows):
            yield one
        else:
            yield Row(spliced(one.question, two.question, i), one.context, spliced(one.response, two.response, i))


def long(folder: Path, count: int) -> Iterator[Row]:
    """Questions with 50 words of an answer, within 200 words that stand in all of them, and yes or no."""
    rows = list(alpaca(folder, 5000))
    around = " ".join(" ".join(row.response for row in rows[40:60]).split()[:200])
    for i in range(count):
        more = " ".join(rows[(i * 31 + 7) % len(rows)].response.split()[:50])
        asked = f"{around}\n\nQuestion: {rows[i % len(rows)].question} {more}\nAnswer yes or no."
        yield Row(asked, "", ("yes", "no")[i * 7919 % 13 % 2])


def short(folder: Path, count: int) -> Iterator[Row]:
    """The first questions of SimpleQuestions."""
    with gzip.open(folder / "simplequestions" / "simplequestions_wikidata_named.jsonl.gz", "rt", encoding="utf-8") as file:
        for _, line in zip(range(count), file, strict=False):
            row = json.loads(line)
            yield Row(row["question"], "", row.get("answer") or row["answers"][0])


def finder() -> Callable[[list[Row]], Any]:
    """``find`` of the tree in use."""
    try:
        from undertow.sanitization import find
    except ImportError:  # its name before
        from undertow.sanitation import find  # type: ignore[import-not-found, no-redef]
    return find


def read(path: Path) -> int:
    """Read all rows; return how many samples they hold."""
    try:
        from undertow.data.rows.files import Rows, file_source
        from undertow.scanning.reading import Files
    except ImportError:  # before there was one reader
        from undertow.sanitation.rows import file_source, read_samples  # type: ignore[import-not-found, no-redef]

        return sum(len(samples) for _, _, samples in read_samples(file_source(path)))
    source = file_source(path)
    files = Files([source.name], lambda k: Rows(source))
    return sum(len(parts) for _, parts in files.read(0, files.reader()))


def written(path: Path, form: str, rows: Iterator[Row]) -> None:
    """Write rows in one form."""
    each = ({"instruction": row.question, "input": row.context, "output": row.response} for row in rows)
    with open(path, "w", encoding="utf-8") as file:
        if form == "lines":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in each)
        else:
            for i, row in enumerate(each):
                file.write(("," if i else "[") + ("\n" if form == "indented" else " "))
                file.write(json.dumps(row, ensure_ascii=False, indent=2 if form == "indented" else None))
            file.write("]")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--read", default=",".join(FORMS))
    parser.add_argument("--size", type=float, default=1.0)
    options = parser.parse_args()
    if options.tree:
        sys.path.insert(0, str(options.tree))
    makers = {"alpaca": alpaca, "long": long, "short": short}
    for name in filter(None, options.sets.split(",")):
        rows, find = list(makers[name](options.data, int(options.size * SETS[name]))), finder()
        began = time.process_time()
        found = find(rows)
        print(
            f"find  {name}  rows {len(rows)}  seconds {time.process_time() - began:.2f}  flagged {len(found.verdicts)}", flush=True
        )
    with tempfile.TemporaryDirectory() as scratch:
        for form in filter(None, options.read.split(",")):
            path = Path(scratch) / f"{form}.json"
            written(path, form, alpaca(options.data, int(options.size * FORMS[form])))
            began = time.process_time()
            samples = read(path)
            seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            size = path.stat().st_size / 1e6
            print(f"read  {form}  {size:.0f} MB  samples {samples}  seconds {seconds:.2f}  peak_mb {peak}", flush=True)


if __name__ == "__main__":
    main()
