"""Updates as a caller outside a run holds them: a matrix or a list of vectors, torch or numpy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.core.errors import UserError

Array = TypeVar("Array", Tensor, NDArray[Any])


def as_matrix(name: str, updates: Tensor | NDArray[Any] | Sequence[Tensor] | Sequence[NDArray[Any]]) -> tuple[Tensor, bool]:
    """Return updates as one tensor, a list of K vectors ``[D]`` as ``[K, D]``, and whether they are numpy's; ``name`` is for the
    message.

    Raises:
        UserError: something else, or vectors of different kinds, lengths or dtypes.
    """
    if not isinstance(updates, list | tuple):
        return as_tensor(name, updates), isinstance(updates, np.ndarray)  # type: ignore[arg-type]
    if not updates:
        raise UserError(f"{name} got an empty list of updates: K = 0; give at least one client's")
    vectors = [as_tensor(name, update) for update in updates]
    alike = {(isinstance(given, np.ndarray), one.dtype, one.shape, one.device) for given, one in zip(updates, vectors, strict=True)}
    if len(alike) > 1 or vectors[0].ndim != 1:
        told = ", ".join(sorted({f"{one.dtype} {list(one.shape)}" for one in vectors}))
        raise UserError(
            f"{name} got a list of {told}; give vectors [D] of one length, dtype and device, one a client, or a matrix [K, D]"
        )
    return torch.stack(vectors), isinstance(updates[0], np.ndarray)


def as_tensor(name: str, array: Tensor | NDArray[Any]) -> Tensor:
    """View an array as a tensor; ``name`` is for the message.

    Raises:
        UserError: no array of floating-point values.
    """
    if isinstance(array, Tensor):
        return array
    if not isinstance(array, np.ndarray):
        raise UserError(f"{name} got a {type(array).__name__}; give a torch tensor or a numpy array")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise UserError(f"{name} got numpy values of dtype {array.dtype}; give float16, float32 or float64")
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))  # torch knows neither
    with warnings.catch_warnings():
        # torch warns of arrays that cannot be written, such as memory-mapped ones; nothing here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
