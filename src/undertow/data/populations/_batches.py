"""CIFAR-10's official Python files: pickles, read without running anything that stands in them.

A pickle names functions and calls them. The official files need four of numpy's and one of ``_codecs``; here each of those
names stands for a small class that only keeps what it is given, every other name is refused, and the array is built
afterwards from the bytes that were kept. Not even numpy's own reading of pickles is run on what a file says.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undertow.core.errors import UserError


class _Type:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which one byte a value has no use for."""


class _Array:
    """Stands for ``numpy.ndarray``: shape, type and bytes as the file gives them."""

    # on the class, so that they are there however a pickle makes the object
    shape: Any = None
    type: Any = None
    order: Any = None
    content: Any = None

    def __init__(self, *_: Any) -> None:
        """Whatever a file says here, :meth:`__setstate__` follows."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, fortran, self.content = state
        self.order = "F" if fortran else "C"


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> _Array:
    """Stand for numpy's reader of protocol 5."""
    array = _Array()
    array.shape, array.type, array.order = shape, dtype, order
    array.content = bytes(content) if isinstance(content, bytes | bytearray) else None
    return array


def _encode(text: str, coding: str) -> bytes:
    """Stand for ``_codecs.encode``, with which Python 3 writes bytes for older readers."""
    if coding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {coding}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    """An unpickler that knows the names above and no other."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name.

        Raises:
            UnpicklingError: any other name.
        """
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which image batches have no use for")
        return _ALLOWED[module, name]


def read_batch(path: Path) -> tuple[NDArray[np.uint8], list[Any]]:
    """Read one batch of the Python form.

    Returns:
        pixels uint8 ``[n, 3072]`` (all red, all green, all blue values, each row by row) and n unchecked labels.

    Raises:
        UserError: no such pickle, a name in it that is not allowed, or not those contents.
    """
    try:
        found = _Reader(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise anything: EOFError, KeyError, IndexError, TypeError, MemoryError
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: not a CIFAR-10 batch in Python form ({why}); fetch the official file again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, a CIFAR-10 batch is a mapping; fetch the official file again")
    named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in found.items()}
    array, labels = named.get("data"), named.get("labels")
    if not isinstance(array, _Array) or not isinstance(labels, list):
        has = ", ".join(map(repr, named)) or "nothing"
        raise UserError(
            f"{path}: no array 'data' with a list 'labels' (it has {has[:80]}); give a batch of CIFAR-10, not CIFAR-100"
        )
    return _pixels(path, array, len(labels)), labels


def _pixels(path: Path, array: _Array, n: int) -> NDArray[np.uint8]:
    code = getattr(array.type, "code", None)
    if array.shape != (n, 3072) or code not in ("u1", "|u1", "uint8") or array.order not in ("C", "F", b"C", b"F"):
        raise UserError(
            f"{path}: 'data' is {code!r:.20} {array.shape!r:.40}, {n} labels need uint8 ({n}, 3072); fetch the official file again"
        )
    if not isinstance(array.content, bytes) or len(array.content) != n * 3072:
        raise UserError(f"{path}: 'data' does not hold {n} x 3072 bytes; fetch the official file again")
    flat = np.frombuffer(array.content, dtype=np.uint8)
    return flat.reshape((n, 3072), order="F" if array.order in ("F", b"F") else "C")
