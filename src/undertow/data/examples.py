"""Labelled inputs: the tensors that tasks other than instruction tuning train on and are tested with, and before they are
tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: A label with this value carries no loss and is not scored.
IGNORE = -100


@dataclass(frozen=True)
class Examples:
    """n labelled inputs.

    Attributes:
        inputs: ``[n, ...]``: images float32 ``[n, channels, height, width]`` in [0, 1], words int64 ``[n, length]``.
        labels: int64, one for each output of the network: ``[n]`` for images, ``[n, length]`` for words; ``IGNORE`` where nothing
            is learned.

    Raises:
        ValueError: different numbers of inputs and labels.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise ValueError(f"{len(self.inputs)} inputs with {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Examples:
        """Return the examples at ``indices``, in that order."""
        places = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return Examples(self.inputs[places], self.labels[places])

    @staticmethod
    def join(parts: Sequence[Examples]) -> Examples:
        """Return all examples of ``parts``, at least one, in order."""
        return Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts]))


@dataclass(frozen=True)
class Written:
    """Labelled texts or images as a source or a generator gives them.

    Attributes:
        inputs: texts, or images float32 ``[n, channels, height, width]`` in [0, 1].
        labels: class numbers, as many.
        report: counts for the record, JSON-serialisable.
    """

    inputs: list[str] | Tensor
    labels: list[int]
    report: dict[str, Any] = field(default_factory=dict)
