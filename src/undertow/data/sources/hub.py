"""Datasets of the Hugging Face hub, or folders that its ``datasets`` library reads."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS, Loaded
from undertow.data.reading import Read
from undertow.data.sources.instructions import recognise

#: File endings of a folder of plain data files.
_DATA_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".json.gz", ".jsonl.gz", ".csv.gz")


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
    train, notes = _read(_main(splits, options.path), options.path, "train", options.partition.column)
    if options.test_path:
        test, test_notes = _read(_main(_splits(options.test_path), options.test_path), options.test_path, "train")
    else:
        test, test_notes = _own_test(splits, options.path)
    if not test:
        return Loaded(samples=train, test=None, notes=notes)
    marked = [replace(sample, id=f"test:{sample.id}") for sample in test]
    return Loaded(samples=train, test=marked, notes={**notes, "test_file": test_notes})


def _own_test(splits: Mapping[str, Any], name: str) -> Read:
    """The first of the test splits that has answers; hub test sets are often published without."""
    if "train" in splits:
        for split in ("test", "validation"):
            if split in splits:
                try:
                    return _read(splits[split], name, split)
                except UserError:
                    continue
    return [], {}


def _main(splits: Mapping[str, Any], name: str) -> Any:
    if "train" in splits:
        return splits["train"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise UserError(f"data.path={name}: no split 'train' among {', '.join(splits)}; give a dataset with one")


def _read(rows: Any, name: str, split: str, column: str | None = None) -> Read:
    prefix = Path(name).name.replace(":", "-")
    places = ((f"{name} {split} row {i}", dict(row)) for i, row in enumerate(rows, start=1))
    return recognise(places, prefix, f"{name} {split}", column)


def _splits(name: str) -> Mapping[str, Any]:
    """Return {split: rows}."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.name=hub needs the package datasets, not installed here; run: pip install 'undertow[hub]'") from error
    folder = Path(name)
    if folder.is_file():
        raise UserError(f"data.path={name}: a file, and hub takes a dataset id or a folder; use data.name=instructions for a file")
    if not folder.is_dir() and (folder.is_absolute() or name.startswith(("./", "../", "~"))):
        raise UserError(f"data.path={name}: no such folder; give an existing folder or a dataset id such as tatsu-lab/alpaca")
    try:
        if folder.is_dir():
            found = _local(datasets, folder)
        else:
            dataset, _, config = name.partition(":")
            found = datasets.load_dataset(dataset, config or None)
    except UserError:
        raise
    except Exception as error:  # the library raises its own, pyarrow's, the network's and the file system's errors
        why = " ".join(str(error).split())[:200]
        action = "check the folder's files" if folder.is_dir() else "check the id and the network, or give a local folder"
        raise UserError(f"data.path={name}: cannot be loaded ({type(error).__name__}: {why}); {action}") from error
    return found if isinstance(found, Mapping) else {"train": found}


def _local(datasets: Any, folder: Path) -> Any:
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return datasets.load_from_disk(str(folder))
    if not any(file.name.endswith(_DATA_FILES) for file in folder.rglob("*") if file.is_file()):
        raise UserError(f"data.path={folder}: no JSON, CSV or Parquet file inside; give another folder")
    # The library keeps a copy in a cache; a temporary one leaves no state and never serves stale rows.
    with tempfile.TemporaryDirectory() as cache:
        found = datasets.load_dataset(str(folder), cache_dir=cache)
        return {split: rows.to_list() for split, rows in found.items()}
