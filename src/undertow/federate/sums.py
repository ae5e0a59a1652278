"""The sums of all clients' counts as the server gave them back, kept on disk so that a resumed run comes to the same verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from undertow.core.files import write_bytes

#: For each defense that pools counts, in order: its name, and the array ``uint32 [m]`` that came back in each exchange.
Sums = Sequence[tuple[str, Sequence[NDArray[np.uint32]]]]
SUMS = "sums.safetensors"


def save_sums(path: Path, sums: Sums, digest: str) -> None:
    """Write sums atomically; ``digest`` is that of the config they belong to."""
    write_bytes(path, save(named(sums), {"config": digest}))


def read_sums(path: Path, digest: str) -> list[tuple[str, list[NDArray[np.uint32]]]] | None:
    """Return what :func:`save_sums` wrote, None where there is nothing, nothing readable, or sums of another config."""
    try:
        with safe_open(path, "numpy") as file:  # type: ignore[no-untyped-call]
            if (file.metadata() or {}).get("config") != digest:
                return None
            arrays = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (OSError, SafetensorError, ValueError):
        return None
    return ordered(arrays)


def ordered(arrays: dict[str, NDArray[np.uint32]]) -> list[tuple[str, list[NDArray[np.uint32]]]] | None:
    """Return arrays under the names that :func:`save_sums` gives them as sums; None where they are none."""
    found: dict[str, list[NDArray[np.uint32]]] = {}
    for key in sorted(arrays):
        place, _, rest = key.partition(".")
        name, _, number = rest.rpartition(".")
        own = found.setdefault(f"{place}.{name}", [])
        if arrays[key].dtype != np.uint32 or arrays[key].ndim != 1 or number != f"{len(own) + 1:02}":
            return None
        own.append(arrays[key])
    return [(key.partition(".")[2], own) for key, own in found.items()]


def named(sums: Sums) -> dict[str, NDArray[np.uint32]]:
    """Return the arrays of sums under names that :func:`ordered` understands."""
    return {f"{i:02}.{name}.{j:02}": array for i, (name, own) in enumerate(sums) for j, array in enumerate(own, 1)}
