"""Atomic writes: a file is either the old one or the new one, whatever happens in between."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically and durably (temporary file, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with open(fresh, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def write_text(path: Path, content: str) -> None:
    """Write text atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
