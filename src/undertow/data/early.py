"""A dataset's files, looked for and read before anything that takes long, such as loading a base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.core.seam import asked

#: Datasets that are not made of files, or of which a path can be something else.
_NO_FILES = ("world", "hub")

Dataset = Callable[[Data], Any]


def refuse_missing(options: Data, clients: bool = True) -> None:
    """Look for every file that the options name; ``clients``: those of the clients, too, which may be on other machines.

    Raises:
        UserError: one is not there; its option is named.
    """
    if options.name in _NO_FILES or ":" in options.name:
        return
    given = {"data.path": options.path, "data.test_path": options.test_path, "data.names": options.names}
    own = [("data.partition.files", path) for path in options.partition.files] if clients else []
    for option, value in (*given.items(), *own):
        if value and not Path(value).exists():
            raise UserError(f"{option}={value}: no such file; give the path of an existing file")


def once(dataset: Dataset) -> Dataset:
    """Return the dataset as a function that reads each file once."""
    kept: dict[str, Any] = {}

    def read(options: Data) -> Any:
        key = options.model_dump_json()
        if key not in kept:
            kept[key] = asked(dataset, f"data.name={options.name}", dataset, options)
        return kept[key]

    return read


def of_file(options: Data, path: str | None) -> Data:
    """Return the options for one file by itself."""
    return options.model_copy(update={"path": path, "test_path": None})


def read_as(dataset: Dataset, options: Data, path: str | None, option: str) -> Any:
    """Read one file; ``option`` is what named it.

    Raises:
        UserError: as the dataset, with that option in the place of ``data.path``.
    """
    try:
        return dataset(of_file(options, path))
    except UserError as error:
        raise UserError(str(error).replace("data.path", option)) from error


def read_now(dataset: Dataset, options: Data, clients: Sequence[str] | None = None, test: bool = True) -> None:
    """Read all that a run of these options will need.

    Args:
        dataset: as :func:`once` returns it.
        options: of the data.
        clients: with partition kind ``files``, the files that are here; None = those that the options name.
        test: whether the test questions are here.

    Raises:
        UserError: a file is missing or malformed.
    """
    if options.partition.kind != "files":
        dataset(options)
        return
    if test and (options.test_path or options.path):
        read_as(dataset, options, options.test_path or options.path, "data.test_path" if options.test_path else "data.path")
    for path in options.partition.files if clients is None else clients:
        read_as(dataset, options, path, "data.partition.files")
