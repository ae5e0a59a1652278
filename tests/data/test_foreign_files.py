"""Files that are something else than rows are called what they are, and what to do is said."""

from __future__ import annotations

import bz2
import io
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS
from undertow.scanning.scan import scan

ROWS = b'{"question": "a", "answer": "b"}\n' * 9


def _zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("rows.jsonl", ROWS)
    return held.getvalue()


def _tar() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        one = tarfile.TarInfo("rows.jsonl")
        one.size = len(ROWS)
        archive.addfile(one, io.BytesIO(ROWS))
    return held.getvalue()


FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "bz2": (lambda: bz2.compress(ROWS), r"compressed with bzip2; unpack it first \(bunzip2\)"),
    "xz": (lambda: lzma.compress(ROWS), r"compressed with xz; unpack it first \(unxz\)"),
    "zst": (lambda: b"\x28\xb5\x2f\xfd" + bytes(40), r"compressed with Zstandard; unpack it first \(unzstd\)"),
    "zip": (_zip, "a ZIP archive, as Excel and Word files are; unpack it first"),
    "tar": (_tar, "a tar archive; unpack it first"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(40), r"a picture \(PNG\); give the file with the rows"),
    "jpg": (lambda: b"\xff\xd8\xff\xe0" + bytes(40), r"a picture \(JPEG\); give"),
    "pdf": (lambda: b"%PDF-1.7\n" + bytes(40), "a PDF document; export its rows"),
    "pkl": (lambda: pickle.dumps([{"question": "a"}]), "a Python pickle, which can run code when it is read; export"),
    "utf16": (lambda: ROWS.decode().encode("utf-16"), "text in UTF-16; convert it: iconv"),
    "sqlite": (lambda: b"SQLite format 3\x00" + bytes(90), "an SQLite database; export"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_called_what_it_is(kind: str, tmp_path: Path) -> None:
    content, told = FOREIGN[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content())
    with pytest.raises(UserError, match=rf"rows\.jsonl: {told}"):
        scan([path])
    for name in ("instructions", "simplequestions"):
        with pytest.raises(UserError, match=told):
            DATASETS.get(name)(Data.model_validate({"name": name, "path": str(path)}))


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_tables_are_read_by_scan_and_by_a_run_alike(form: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"question": [f"q {i}" for i in range(9)], "answer": ["007"] * 9})
    path = tmp_path / "rows.data"
    if form == "parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    else:
        with pyarrow.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    assert scan([path]).found.samples == 9
    read = DATASETS.get("instructions")(Data.model_validate({"name": "instructions", "path": str(path)}))
    assert [sample.response for sample in read.samples] == ["007"] * 9
    told = "a Parquet file" if form == "parquet" else "an Arrow file"
    with pytest.raises(UserError, match=rf"{told}, and this data set is read from text; take data\.name=instructions"):
        DATASETS.get("simplequestions")(Data.model_validate({"name": "simplequestions", "path": str(path)}))
