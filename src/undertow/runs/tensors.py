"""Tensors that a run left."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from undertow.core.errors import UserError


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file of a run by name, on the CPU.

    Raises:
        UserError: no such file, or a damaged one.
    """
    try:
        return dict(load_file(file))
    except (OSError, ValueError, SafetensorError) as error:
        told = " ".join(str(error).split())[:160]
        raise UserError(f"{file} is missing or damaged ({told}); copy the run again, or make it anew") from error
