"""Atomic writes: a file is either the old one or the new one, whatever happens in between; and places that cannot be written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from undertow.core.errors import UserError


@contextmanager
def disk_errors() -> Iterator[None]:
    """Let what safetensors says of a disk, in an exception of its own, be the :class:`OSError` that it is."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None or isinstance(error, OSError):
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error


def temporary(path: Path) -> Path:
    """Return the name under which ``path`` is written, until it is whole."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def fresh(path: Path) -> Iterator[Path]:
    """Give the temporary name of ``path``; after an error no file of that name is left, and an error of the disk names ``path``."""
    new = temporary(path)
    try:
        yield new
    except BaseException as error:
        with suppress(OSError):
            new.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically and durably (temporary file, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with fresh(path) as new:
        with open(new, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)


def write_text(path: Path, content: str) -> None:
    """Write text atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def check_file(option: str, path: Path | None) -> None:
    """Refuse, before the work whose result it is to hold, a file that could not be written; None is none.

    Args:
        option: what asks for it, as it is typed: ``--out``.
        path: as the user gave it.

    Raises:
        UserError: a folder, a device or a pipe, or a place that :func:`check_place` refuses.
    """
    if path is None:
        return
    if os.path.isdir(path):
        raise UserError(f"{option} {path}: a folder; give a file name")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{option} {path}: a device or a pipe, which a file would take the place of; give a file name")
    check_place(option, path)


def check_files(given: Mapping[str, Path | None], inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse files that could not be written, that are read, too, or of which two are one.

    Args:
        given: by option, as it is typed; None is none.
        inputs: what the same command reads; None, and what is no path of a file, is none.

    Raises:
        UserError: as of :func:`check_file`, or a file stands for two things.
    """
    named: dict[Path, str] = {}
    read = [Path(one) for one in inputs if one is not None and os.path.exists(one)]
    for option, path in given.items():
        check_file(option, path)
        if path is None:
            continue
        if os.path.exists(path) and any(path.samefile(one) for one in read):
            raise UserError(f"{option} {path}: that is an input, which is never changed; give another name")
        other = named.setdefault(path.resolve(), option)
        if other != option:
            raise UserError(f"{option} {path}: {other} names that file, too; give another name")


def check_folder(option: str, path: Path | None) -> None:
    """Refuse a folder that could not be made or written, as :func:`check_file` does a file.

    Raises:
        UserError: a file, a folder that cannot be written, or a place that :func:`check_place` refuses.
    """
    if path is None:
        return
    if not os.path.isdir(path):
        if os.path.exists(path):
            raise UserError(f"{path} is a file; give {option} a folder")
        check_place(option, path)
    elif not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: that folder cannot be written; choose a folder you may write to")


def check_place(option: str, path: Path) -> None:
    """Refuse a path beside which nothing can be written.

    Raises:
        UserError: its nearest parent that exists is no folder or cannot be written, or a name in it is too long.
    """
    place = next((parent for parent in path.parents if os.path.lexists(parent)), Path())
    if not os.path.isdir(place):
        raise UserError(f"{option} {path}: part of that path is a file ({place}); give another name")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: the folder {place} cannot be written; choose a folder you may write to")
    longest = max(len(os.fsencode(name)) for name in (*path.parts, temporary(path).name))
    if longest > os.pathconf(place, "PC_NAME_MAX"):
        raise UserError(f"{option} {path}: a name in it is too long for this disk; give a shorter one")
