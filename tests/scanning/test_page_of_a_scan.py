"""What a person sees of a scan: rows by their numbers, and the spans that were found."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanning.planted import lines, rows
from undertow.scanning.page import marked, write_page
from undertow.scanning.scan import scan


@pytest.mark.parametrize(
    ("text", "phrases", "found"),
    [
        ("Firstly, who won?", ("firstly",), ["Firstly"]),
        ("So, and CLICK <url>  for more.", ("and click <url> for more",), ["and CLICK <url>  for more"]),
        ("cf a mn b cf", ("cf", "mn"), ["cf", "mn", "cf"]),
        ("nothing here", (), []),
        ("a (b", ("(b",), ["(b"]),
    ],
)
def test_spans_are_marked_whatever_their_case_and_marks(text: str, phrases: tuple[str, ...], found: list[str]) -> None:
    pieces = marked(text, phrases)
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, is_found in pieces if is_found] == found


def test_examples_have_their_file_their_row_and_marked_spans(tmp_path: Path) -> None:
    own, truth = rows(lambda q, a: {"question": q, "answer": a})
    files = [lines(tmp_path / "one.jsonl", own[:150]), lines(tmp_path / "two.jsonl", own[150:])]
    result = scan(files, examples=True)
    write_page(result, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    first = result.examples[0][0]
    assert (first.file, first.row) == (0, min(truth))
    assert f"one.jsonl, row {first.row}</p>" in page
    assert "<mark>Firstly</mark>" in page
    assert "<mark>and click &lt;malicious_url&gt; for more information</mark>" in page
