"""`make results`: the archive of the documents, and the pages that the repository keeps."""

from __future__ import annotations

import re
import sys
import tarfile
from pathlib import Path

import pytest

from undertow.core.errors import RenamedWarning, UserError
from undertow_reproductions import beside, release
from undertow_reproductions.reproduce import get_collection

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"


def document(folder: Path, items: dict[str, str], seeds: str) -> Path:
    """A document of the form that `undertow reproduce htb` writes, with one figure and one table an item."""
    lines = ["# Title", "", "What it is.", "", "```sh", "undertow reproduce htb", "```", "", "| | |", "| --- | --- |"]
    lines += ["| profile | laptop |", f"| seeds | {seeds} |", "", "## Summary", "", "| item | verdict |", "| --- | --- |"]
    lines += [f"| [Item {name}](#item-{name}) | {verdict} |" for name, verdict in items.items()]
    lines += ["", "To keep in mind:", "", "* a note", "", "How to read."]
    for name in items:
        lines += ["", f"## Item {name}", "", f"Caption of {name}, seeds {seeds}.", "", f"![a curve](figures/{name}.svg)", ""]
        lines += [
            f"[{name}.csv](tables/{name}.csv): 1 rows",
            "",
            "| a |",
            "| --- |",
            "| 1 |",
            "",
            "Made from 2 runs; this item alone:",
        ]
        lines += ["", "```sh", f"undertow reproduce htb --only {name} --seeds {len(seeds.split(', '))}", "```"]
        for path in (f"figures/{name}.svg", f"tables/{name}.csv"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(f"{path} {seeds}")
    (folder / "htb.md").write_text("\n".join(lines) + "\n")
    (folder / "index.html").write_text("<p>")
    return folder / "htb.md"


PAGE = release.Page("htb", "one", "one", (release.Part(), release.Part("more", "--only two --seeds 3")))


def test_a_page_joins_documents_and_keeps_one_figure_and_one_table(tmp_path: Path) -> None:
    first = document(tmp_path / "first", {"one": "holds", "two": "undecided"}, "0")
    second = document(tmp_path / "second", {"two": "does not hold", "three": "holds"}, "0, 1, 2")
    page = release.write_page(PAGE, [first, second], tmp_path / "out").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"htb.md", "htb-one.svg", "htb-one.csv"}
    assert re.findall(r"^## Item (\w+)", page, re.MULTILINE) == ["one", "two", "three"]
    assert "Caption of one, seeds 0." in page
    assert "Caption of two, seeds 0, 1, 2." in page
    assert "| [Item two](#item-two) | does not hold |" in page
    assert "undecided" not in page
    assert "| seeds | one: 0; two, three: 0, 1, 2 |" in page
    assert "| profile | laptop |" in page
    assert "![a curve](htb-one.svg)" in page
    assert "[one.csv](htb-one.csv): 1 rows" in page
    assert "Figure `two.svg`: a curve" in page
    assert "`three.csv`: 1 rows" in page
    assert "](figures/" not in page
    assert "](tables/" not in page


def test_a_page_without_its_figure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lack figures/one\.svg"):
        release.write_page(PAGE, [document(tmp_path / "first", {"two": "holds"}, "0")], tmp_path / "out")


def test_another_file_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "htb.md").write_text("# Title\n\n## Summary\n")
    with pytest.raises(UserError, match="is not a document"):
        release.read_document(tmp_path / "htb.md")


def test_the_archive_holds_whole_documents_and_its_bytes_do_not_depend_on_the_clock(tmp_path: Path) -> None:
    made = document(tmp_path / "reproduce-htb-laptop", {"one": "holds", "two": "holds"}, "0")
    (made.parent / "cells").mkdir()
    (made.parent / "cells" / "result.json").write_text("{}")
    assert release.pack([made], tmp_path / "a.tar.gz") == 6
    made.touch()
    release.pack([made], tmp_path / "b.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        names = {name.removeprefix("results/reproduce-htb-laptop/") for name in tar.getnames()}
    assert names == {"htb.md", "index.html", "figures/one.svg", "figures/two.svg", "tables/one.csv", "tables/two.csv"}


def test_the_command_names_what_is_missing_and_how_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["release"])
    monkeypatch.setattr(release, "PAGES", (PAGE,))
    with pytest.raises(SystemExit, match="nothing to pack"):
        release.main()
    document(tmp_path / "runs" / "reproduce-htb-laptop", {"one": "holds"}, "0")
    release.main()
    told = capsys.readouterr().out
    command = "undertow reproduce htb --only two --seeds 3 --out runs/reproduce-htb-laptop-more"
    assert f"missing: runs/reproduce-htb-laptop-more/htb.md, made by: {command}" in told
    assert (tmp_path / "build" / "results.tar.gz").is_file()
    assert not (tmp_path / "docs").exists()
    document(tmp_path / "runs" / "reproduce-htb-laptop-more", {"two": "holds"}, "0, 1, 2")
    release.main()
    assert (tmp_path / "docs" / "results" / "htb.md").is_file()


def test_the_repository_holds_one_page_one_figure_and_one_table_of_each_collection() -> None:
    wanted = {"fit-findings.md", beside.PAGE, f"pretrained-{beside.FIGURE}.svg", "defending.md", "model-replacement.md", "fm-fl.md"}
    for page in release.PAGES:
        wanted |= {f"{page.id}.md", f"{page.id}-{page.figure}.svg", f"{page.id}-{page.table}.csv"}
    assert {path.name for path in RESULTS.iterdir()} == wanted


def test_the_former_name_of_a_collection_is_accepted_with_a_warning() -> None:
    with pytest.warns(RenamedWarning, match="reproduce sanitization"):
        assert get_collection("sanitation").id == "sanitization"
