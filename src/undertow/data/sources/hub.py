"""Datasets of the Hugging Face hub, folders that its ``datasets`` library wrote, and folders of data files.

Files are read by our own reader wherever there are files: the library's readers of JSON and CSV guess types, and a text that looks
like a number, a date or nothing ("007", "2020-01-01", "None") would come back as something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS, Loaded
from undertow.data.reading import Read
from undertow.data.rows.columns import mapping
from undertow.data.rows.files import Rows, file_source
from undertow.data.rows.record import Record
from undertow.data.sources.instructions import recognise

#: File endings of a folder of plain data files.
_TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_DATA_FILES = (*_TEXTS, *(f"{ending}.gz" for ending in _TEXTS), ".parquet", ".arrow")
#: Splits by the words that name files and folders, as the library tells them.
_SPLITS = {"train": "train|training", "test": "test|testing|eval|evaluation", "validation": "validation|valid|dev|val"}
#: Modules of the library that guess types.
_GUESSING = (".packaged_modules.json.", ".packaged_modules.csv.")


@DATASETS.register("hub", source="Hugging Face datasets")
def hub(options: Data) -> Loaded:
    """A dataset of the Hugging Face hub by name, or a local folder; rows as in ``instructions``.

    Args:
        options: ``path``: a dataset id, followed by ``:config`` if it has several (such as
            ``mandarjoshi/trivia_qa:rc.nocontext``); or a folder written by ``save_to_disk``; or a folder of JSON,
            CSV or Parquet files. The split ``train`` is used, and ``test`` or ``validation`` as test set if it
            has answers; ``test_path`` names another one instead.

    Raises:
        UserError: ``datasets`` is not installed, the dataset cannot be had, or its rows have no known form.
    """
    if not options.path:
        raise UserError("data.name=hub needs a dataset and data.path is not set; set data.path to a dataset id or a local folder")
    splits = _splits(options.path)
    train, notes = _read(_main(splits, options.path), options.path, "train", options, options.partition.column)
    if options.test_path:
        test, test_notes = _read(_main(_splits(options.test_path), options.test_path), options.test_path, "train", options)
    else:
        test, test_notes = _own_test(splits, options.path, options)
    if not test:
        return Loaded(samples=train, test=None, notes=notes)
    marked = [replace(sample, id=f"test:{sample.id}") for sample in test]
    return Loaded(samples=train, test=marked, notes={**notes, "test_file": test_notes})


def _own_test(splits: Mapping[str, Iterable[Any]], name: str, options: Data) -> Read:
    """The first of the test splits that has answers; hub test sets are often published without."""
    if "train" in splits:
        for split in ("test", "validation"):
            if split in splits:
                try:
                    return _read(splits[split], name, split, options)
                except UserError:
                    continue
    return [], {}


def _main(splits: Mapping[str, Iterable[Any]], name: str) -> Iterable[Any]:
    if "train" in splits:
        return splits["train"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise UserError(f"data.path={name}: no split 'train' among {', '.join(splits)}; give a dataset with one")


def _read(rows: Iterable[Any], name: str, split: str, options: Data, column: str | None = None) -> Read:
    prefix = Path(name).name.replace(":", "-")
    own = mapping(options.columns) if options.columns else None
    records = (
        row if isinstance(row, Record) else Record(f"{name} {split} row {i}", dict(row)) for i, row in enumerate(rows, start=1)
    )
    return recognise(records, prefix, f"{name} {split}", column, own, options.max_bad)


def _splits(name: str) -> Mapping[str, Iterable[Any]]:
    """Return {split: rows}."""
    folder = Path(name)
    if folder.is_file():
        raise UserError(f"data.path={name}: a file, and hub takes a dataset id or a folder; use data.name=instructions for a file")
    if folder.is_dir():
        return _local(folder)
    if folder.is_absolute() or name.startswith(("./", "../", "~")):
        raise UserError(f"data.path={name}: no such folder; give an existing folder or a dataset id such as tatsu-lab/alpaca")
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.name=hub needs the package datasets: pip install -e '.[hub]' in the clone") from error
    try:
        return remote(datasets, name)
    except UserError:
        raise
    except Exception as error:  # the library raises its own, pyarrow's, the network's and the file system's errors
        why = " ".join(str(error).split())[:200]
        told = f"cannot be loaded ({type(error).__name__}: {why}); check the id and the network, or give a local folder"
        raise UserError(f"data.path={name}: {told}") from error


def remote(datasets: Any, name: str) -> Mapping[str, Iterable[Any]]:
    """Return {split: rows} of a dataset of the hub; its JSON and CSV files are read by our own reader.

    Args:
        datasets: the library.
        name: a dataset id, followed by ``:config`` if it has several.
    """
    dataset, _, config = name.partition(":")
    builder = datasets.load_dataset_builder(dataset, config or None)
    files = getattr(getattr(builder, "config", None), "data_files", None)
    if files and any(module in type(builder).__module__ for module in _GUESSING):
        fetched = datasets.DownloadManager().download({split: list(map(str, paths)) for split, paths in files.items()})
        return {str(split): _Files([Path(path) for path in paths]) for split, paths in fetched.items()}
    found = datasets.load_dataset(dataset, config or None)
    return found if isinstance(found, Mapping) else {"train": found}


def _local(folder: Path) -> Mapping[str, Iterable[Any]]:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text()).get("splits", [])
        return {split: _Files(_saved(folder / split)) for split in splits}
    if (folder / "state.json").is_file():
        return {"train": _Files(_saved(folder))}
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name.endswith(_DATA_FILES))
    if not files:
        raise UserError(f"data.path={folder}: no JSON, CSV or Parquet file inside; give another folder")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if "" in found:  # files that name no split are for training, unless others do
        unnamed = found.pop("")
        found.setdefault("train", unnamed)
    return {split: _Files(paths) for split, paths in found.items()}


def _saved(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / "state.json").read_text())
        return [folder / file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"data.path={folder}: not as save_to_disk leaves it ({type(error).__name__}); save it again") from error


def _split_of(path: Path) -> str:
    for split, words in _SPLITS.items():
        if re.search(rf"(?:^|[-._ 0-9/])(?:{words})(?:[-._ 0-9/]|$)", path.as_posix(), re.IGNORECASE):
            return split
    return ""


class _Files:
    """The rows of several files, one after another."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __iter__(self) -> Iterator[Record]:
        for path in self._paths:
            yield from Rows(file_source(path, "data.path"))
