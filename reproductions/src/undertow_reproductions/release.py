"""What a release and the repository keep of the studies: `make results`.

A study's folder holds runs, bases and a document of many figures and tables. The archive gets every document whole. The
repository's docs get one page, one figure and one table for each collection: the page is the document with its other figures and
tables named, not linked. Where items were measured with different numbers of seeds, a collection has several documents, and the
page joins them.
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from undertow.core import files
from undertow.core.errors import UserError
from undertow_reproductions.beside import COLLECTIONS, sections, write_beside
from undertow_reproductions.profiles import get_profile
from undertow_reproductions.reproduce import get_collection

_LEFT_OUT = (
    "A figure or table that is named and not linked is written by the command of its item, into the folders `figures` and "
    "`tables` beside its\ndocument; `make results` packs all of them for a release."
)


@dataclass(frozen=True)
class Part:
    """A document: the end of its folder's name, and what the command gets beside the collection's name."""

    suffix: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Page:
    """What the repository keeps of a collection.

    Attributes:
        id: the collection's.
        figure, table: names of the figure and the table that are kept.
        parts: its documents; the page has the first one's head, and items of later ones replace those of earlier ones.
    """

    id: str
    figure: str
    table: str
    parts: tuple[Part, ...]


PAGES = (
    Page("fit", "fig2a", "table1", (Part(arguments="--data DATA"),)),
    Page("defenses", "matrix-asr", "matrix", (Part(arguments="--seeds 2"),)),
    Page(
        "sanitization",
        "matrix-asr",
        "matrix",
        (
            Part(arguments="--only matrix,bars --seeds 1"),
            Part("bars", "--only bars"),
            Part("lasting", "--only lasting --seeds 5"),
            Part("filter", "--only filter --seeds 1 --data DATA"),
        ),
    ),
    Page(
        "htb",
        "single-instruction-tuning",
        "single-rounds",
        (
            Part(arguments="--only single,evasion,kinds,defended,fit --seeds 2"),
            Part("three-seeds", "--only single,kinds"),
            Part("evasion", "--only evasion --seeds 5"),
            Part("repeated", "--only repeated --seeds 1"),
        ),
    ),
    Page("counts", "counts", "counts", (Part(arguments="--seeds 1"),)),
    Page("fmfl", "defended-text-asr", "defended", (Part(arguments="--seeds 1"),)),
)


@dataclass(frozen=True)
class Item:
    """One section of a document: its id, heading, line of the summary, text, and the folder of its files."""

    id: str
    title: str
    row: str
    text: str
    folder: Path


@dataclass(frozen=True)
class Document:
    """A document as :mod:`undertow_reproductions.document` writes it, in pieces."""

    head: str
    facts: dict[str, str]
    summary: str
    notes: str
    items: list[Item]


def folder_of(page: Page, part: Part) -> str:
    """Return the name of a document's folder."""
    return "-".join(["reproduce", page.id, "laptop", *([part.suffix] if part.suffix else [])])


def pretrained_documents(runs: Path) -> dict[str, Path]:
    """Return the documents of profile `pretrained` that are there, by collection."""
    places = {name: runs / f"reproduce-{name}-pretrained" / get_collection(name).document for name in COLLECTIONS}
    return {name: path for name, path in places.items() if path.is_file()}


def not_run(documents: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Return the items of profile `pretrained` that these documents lack, and the commands that run them."""
    found = []
    for name in COLLECTIONS:
        there = sections(documents[name].read_text(encoding="utf-8")) if name in documents else {}
        for item in get_profile("pretrained").items[name]:
            if item not in there:
                found.append((item, f"undertow reproduce {name} --profile pretrained --only {item} --data DATA"))
    return found


def command_of(page: Page, part: Part, runs: Path) -> str:
    """Return the command that makes a document."""
    out = f"--out {runs / folder_of(page, part)}" if part.suffix or runs != Path("runs") else ""
    return " ".join(word for word in ("undertow reproduce", page.id, part.arguments, out) if word)


def document_of(page: Page, part: Part, runs: Path) -> Path:
    """Return where a document is, or would be."""
    return runs / folder_of(page, part) / get_collection(page.id).document


def pack(documents: Sequence[Path], archive: Path) -> int:
    """Pack documents with their HTML pages, figures and tables; the same files give the same bytes.

    Returns:
        how many files are in the archive.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        found = [path for document in documents for path in _files(document)]
        for path, folder in found:
            content = path.read_bytes()
            entry = tarfile.TarInfo(f"results/{folder.name}/{path.relative_to(folder).as_posix()}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    files.write_bytes(archive, gzip.compress(packed.getvalue(), mtime=0))
    return len(found)


def _files(document: Path) -> Iterable[tuple[Path, Path]]:
    folder = document.parent
    for path in [document, folder / "index.html", *sorted(folder.glob("figures/*.svg")), *sorted(folder.glob("tables/*.csv"))]:
        if path.is_file():
            yield path, folder


def write_page(page: Page, documents: Sequence[Path], out: Path) -> Path:
    """Write a collection's page, figure and table into ``out``; ``documents`` are those of its parts.

    Raises:
        UserError: the documents lack the figure or the table.
    """
    items: dict[str, Item] = {}
    read = [read_document(path) for path in documents]
    for document in read:
        items |= {item.id: item for item in document.items}
    kept = {
        f"figures/{page.figure}.svg": out / f"{page.id}-{page.figure}.svg",
        f"tables/{page.table}.csv": out / f"{page.id}-{page.table}.csv",
    }
    for name, target in kept.items():
        holder = next((item.folder for item in items.values() if f"]({name})" in item.text), None)
        if holder is None or not (holder / name).is_file():
            raise UserError(f"the documents of '{page.id}' lack {name}; run the command of its item again")
        files.write_bytes(target, (holder / name).read_bytes())
    lines = [read[0].head, "", "```sh", *_commands(items.values()), "```", "", _LEFT_OUT, "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {_fact(name, read, items)} |" for name in read[0].facts]
    lines += ["", "## Summary", "", read[0].summary, *(item.row for item in items.values()), "", read[0].notes]
    lines += ["\n" + _linked(item.text, kept) for item in items.values()]
    files.write_text(out / f"{page.id}.md", "\n".join(lines) + "\n")
    return out / f"{page.id}.md"


def read_document(path: Path) -> Document:
    """Take a document apart.

    Raises:
        UserError: it has another structure.
    """
    head, *sections = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    opening = re.match(r"(# .*?)\n\n```sh\n.*?\n```\n\n\| \| \|\n\| --- \| --- \|\n(.*)", head, re.DOTALL)
    summary = re.match(r"Summary\n\n(\|[^\n]*\n\|[^\n]*)\n((?:\|[^\n]*\n)+)\n(.*)", sections[0] if sections else "", re.DOTALL)
    if not opening or not summary:
        raise UserError(f"{path} is not a document of `undertow reproduce`; run its command again")
    facts = dict(line.strip("| ").split(" | ", 1) for line in opening[2].split("\n") if line)
    rows = summary[2].splitlines()
    items = []
    for row, text in zip(rows, sections[1:], strict=True):
        found = re.search(r"--only (\S+)", text[text.rindex("```sh") :])
        if not found:
            raise UserError(f"{path} is not a document of `undertow reproduce`; run its command again")
        items.append(Item(found[1], text.partition("\n")[0], row, f"## {text.rstrip()}", path.parent))
    return Document(opening[1], facts, summary[1], summary[3].rstrip(), items)


def _commands(items: Iterable[Item]) -> list[str]:
    return [item.text.rpartition("```sh\n")[2].removesuffix("\n```") for item in items]


def _fact(name: str, read: Sequence[Document], items: dict[str, Item]) -> str:
    """Return what the documents say of ``name``: once, or for the items it differs for."""
    told: dict[str, list[str]] = {}
    for document in read:
        for item in document.items:
            if items[item.id] is item:
                told.setdefault(document.facts.get(name, "-"), []).append(item.id)
    if len(told) == 1:
        return next(iter(told))
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in told.items())


def _linked(text: str, kept: dict[str, Path]) -> str:
    """Return a section that links what is kept and names the rest."""

    def link(found: re.Match[str]) -> str:
        mark, label, path = found.groups()
        if path in kept:
            return f"{mark}[{label}]({kept[path].name})"
        return f"Figure `{Path(path).name}`: {label}" if mark else f"`{label}`"

    return re.sub(r"(!?)\[([^\]]*)\]\(((?:figures|tables)/[^)\s]+)\)", link, text)


def main() -> None:
    """Pack the documents that are there, write the pages whose documents are all there, and name those that are missing."""
    parser = argparse.ArgumentParser(description="Pack the documents of the studies, and write the pages of docs/results.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the studies' folders")
    parser.add_argument("--archive", type=Path, default=Path("build/results.tar.gz"))
    parser.add_argument("--pages", type=Path, default=Path("docs/results"), help="folder of the pages, figures and tables")
    options = parser.parse_args()
    there: list[Path] = []
    for page in PAGES:
        documents = {part: document_of(page, part, options.runs) for part in page.parts}
        missing = [part for part, path in documents.items() if not path.is_file()]
        for part in missing:
            print(f"missing: {documents[part]}, made by: {command_of(page, part, options.runs)}")
        there += [path for path in documents.values() if path.is_file()]
        if not missing:
            print(f"page: {write_page(page, list(documents.values()), options.pages)}")
    pretrained = pretrained_documents(options.runs)
    if pretrained:
        print(f"page: {write_beside(pretrained, options.pages, not_run(pretrained))}")
    there += pretrained.values()
    if not there:
        raise SystemExit("no study has been run here, so that there is nothing to pack")
    print(f"archive: {options.archive}, {pack(there, options.archive)} files of {len(there)} documents")


if __name__ == "__main__":
    main()
