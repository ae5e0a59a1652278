"""The page of profile `pretrained`: what a source states, beside what the small bases gave and what the pretrained one gave.

It is made of documents that :mod:`undertow_reproductions.document` wrote and of the pages of the laptop profile in the same folder;
no number is typed in.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from undertow.core import files
from undertow.core.errors import UserError

#: Name of the page; collections whose document it reads, and the page of the small bases where these have one.
PAGE = "pretrained.md"
#: Item whose figure is kept beside the page; README shows it.
FIGURE = "fig2b"
COLLECTIONS = {"fit": "fit.md", "sanitization": "sanitization.md", "counts": "counts.md"}

_CLAIM = re.compile(r"^\| (?P<text>.+?) \| (?P<source>.+?) \| \*\*(?P<answer>[a-z ]+)\*\* \| (?P<evidence>.*) \|$", re.MULTILINE)
_HEAD = """# On a pretrained model

The profile `pretrained` runs the studies on Gemma 3 270M, which nobody here trained, and on questions that people asked. Each
statement stands beside what the small bases gave: bases of about a million parameters that were pre-trained here on the facts they
are asked for ([FIT](fit.md), [defenses](sanitization.md)). Made by `make results` from the files of the runs."""


@dataclass(frozen=True)
class Section:
    """One item of a document: heading, statements by their text, tables, of how many runs it is made, and the command for it."""

    title: str
    claims: Mapping[str, tuple[str, str, str]]
    tables: str
    made: str
    command: str


def sections(text: str) -> dict[str, Section]:
    """Return the items of a document or page by their id."""
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        commands = re.findall(r"^undertow reproduce .*$", part, flags=re.MULTILINE)
        item = re.search(r"--only (\S+)", commands[-1]) if commands else None
        if item:
            claims = {c["text"]: (c["source"], c["answer"], c["evidence"]) for c in _CLAIM.finditer(part)}
            made = re.search(r"^Made from (.*); this item alone:", part, re.MULTILINE)
            tables = re.search(
                r"^\[[^\]]+\]\(tables/.*?(?=^Deviations:|^Made from|^\d+ runs failed)", part, re.MULTILINE | re.DOTALL
            )
            found[item[1]] = Section(
                part.partition("\n")[0], claims, tables[0].rstrip() if tables else "", made[1] if made else "", commands[-1]
            )
    return found


def facts(text: str) -> dict[str, str]:
    """Return what a document says about all of it, from the table after its command."""
    found = re.search(r"^\| \| \|\n\| --- \| --- \|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return dict(line.strip("| ").split(" | ", 1) for line in found[1].splitlines()) if found else {}


def write_beside(documents: Mapping[str, Path], pages: Path, missing: Sequence[tuple[str, str]]) -> Path:
    """Write the page.

    Args:
        documents: of profile `pretrained`, by collection.
        pages: folder of the pages; those of the small bases are read from it.
        missing: items that were not run, and the commands that run them.

    Raises:
        UserError: a document that is none.
    """
    lines = [_HEAD, ""]
    for collection, path in documents.items():
        text = path.read_text(encoding="utf-8")
        ours, toy = sections(text), _toy(pages / COLLECTIONS[collection])
        if not ours:
            raise UserError(f"{path} is not a document of `undertow reproduce`; run its command again")
        lines += [f"| {collection} | |", "| --- | --- |", *(f"| {name} | {told} |" for name, told in facts(text).items()), ""]
        lines += _deviations(text)
        for item, section in ours.items():
            lines += [f"## {section.title}", ""]
            if item == "table1":
                lines += _table1(path.parent / "tables" / "table1.csv", pages / "fit-table1.csv")
            if item == FIGURE:
                lines += _figure(text, path.parent, pages)
            lines += ["| stated | where | small bases | pretrained base |", "| --- | --- | --- | --- |"]
            small = toy[item].claims if item in toy else {}
            for claim, (source, answer, evidence) in section.claims.items():
                told = f"**{small[claim][1]}**: {small[claim][2]}" if claim in small else "not judged"
                lines.append(f"| {claim} | {source} | {told} | **{answer}**: {evidence} |")
            tables = re.sub(r"\[([^\]]+)\]\(tables/[^)]+\)", r"`\1`", section.tables)
            lines += [
                "",
                *([tables, ""] if tables and item != "table1" else []),
                f"Made from {section.made}:",
                "",
                "```sh",
                section.command,
                "```",
                "",
            ]
    if missing:
        lines += ["## Not run", "", "On the pretrained base these were not run; nothing is known of them here.", "", "```sh"]
        lines += [*(f"{command}  # {item}" for item, command in missing), "```", ""]
    files.write_text(pages / PAGE, "\n".join(lines).rstrip() + "\n")
    return pages / PAGE


def _toy(page: Path) -> dict[str, Section]:
    return sections(page.read_text(encoding="utf-8")) if page.is_file() else {}


def _deviations(text: str) -> list[str]:
    found = re.search(r"^(?:How this differs|To keep in mind)[^\n]*:\n\n(?:\* [^\n]*\n)+", text, re.MULTILINE)
    return [*found[0].splitlines(), ""] if found else []


def _figure(text: str, folder: Path, pages: Path) -> list[str]:
    """Copy the figure that is kept beside the page and return its line; nothing where the document shows none."""
    name = f"figures/{FIGURE}.svg"
    found = re.search(rf"^!\[([^\]]*)\]\({re.escape(name)}\)$", text, re.MULTILINE)
    if not found or not (folder / name).is_file():
        return []
    kept = pages / f"pretrained-{FIGURE}.svg"
    files.write_bytes(kept, (folder / name).read_bytes())
    return [f"![{found[1]}]({kept.name})", ""]


def _table1(ours: Path, small: Path) -> list[str]:
    """Return Table 1 with three sources a row: the paper's bases, the small base on the same questions, and the pretrained one."""
    before = {(row["data set"], row["trigger"]): row for row in _rows(small)}
    heads = ["data set", "trigger"]
    heads += [f"{metric}, {who}" for metric in ("MA", "ASR") for who in ("paper", "small base", "pretrained base")]
    heads += [f"FTR, {who}" for who in ("small base", "pretrained base")]
    rows = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for row in _rows(ours):
        toy = before.get((row["data set"], row["trigger"]), {})
        cells = [row["data set"], row["trigger"]]
        for metric in ("MA", "ASR"):
            cells += [row[f"paper {metric}"] or "-", _share(toy, metric), _share(row, metric)]
        rows.append(f"| {' | '.join([*cells, _share(toy, 'FTR'), _share(row, 'FTR')])} |")
    return [*rows, ""]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _share(row: Mapping[str, str], metric: str) -> str:
    """Return a share of a table's row with the wider of its two intervals and how many questions it is of."""
    if not row.get(metric):
        return "-"
    low = min(float(row[f"{metric} low"]), float(row[f"{metric} wilson low"]))
    high = max(float(row[f"{metric} high"]), float(row[f"{metric} wilson high"]))
    return f"{100 * float(row[metric]):.1f} % ({100 * low:.1f} to {100 * high:.1f}), n = {row[f'{metric} n']}"
