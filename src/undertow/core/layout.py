"""The one currency: an update is a row of a float32 matrix ``U [K, D]``; a layout names its columns.

Row k is client k's flattened update in a fixed key order: for each adapted module in model order, LoRA A
``[r, in]`` then LoRA B ``[out, r]``. Attacks, aggregators, BSNR and engines all speak ``U`` and
:class:`Layout`; none of them knows about transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """One named tensor within the flat vector: columns ``start : start + size``."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of columns."""
        size = 1
        for side in self.shape:
            size *= side
        return size


@dataclass(frozen=True)
class Layout:
    """Maps a flat vector of length D back to named tensors.

    Attributes:
        slots: in column order, without gaps.
        scale: LoRA's s = alpha / r, so that the effective change of a module is s·B·A; 1.0 where there is no LoRA.
    """

    slots: tuple[Slot, ...]
    scale: float = 1.0

    @staticmethod
    def of(shapes: dict[str, tuple[int, ...]], scale: float = 1.0) -> Layout:
        """Lay named shapes end to end in the order of the dictionary."""
        slots, start = [], 0
        for name, shape in shapes.items():
            slots.append(Slot(name, tuple(shape), start))
            start += slots[-1].size
        return Layout(tuple(slots), scale)

    @cached_property
    def size(self) -> int:
        """D, the number of columns."""
        return self.slots[-1].start + self.slots[-1].size if self.slots else 0

    @property
    def sizes(self) -> list[int]:
        """Columns per slot."""
        return [slot.size for slot in self.slots]

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Split ``[..., D]`` into named tensors ``[..., *shape]``: views, no copy.

        Raises:
            ValueError: the last dimension is not D.
        """
        if flat.shape[-1] != self.size:
            raise ValueError(f"the vector has {flat.shape[-1]} columns, the layout {self.size}")
        parts = flat.split(self.sizes, dim=-1)
        return {slot.name: part.unflatten(-1, slot.shape) for slot, part in zip(self.slots, parts, strict=True)}

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """Join named tensors ``[*shape]`` into one float32 vector ``[D]``.

        Raises:
            ValueError: a name is missing or too many, a shape differs, or a value is not finite.
        """
        expected, found = {slot.name for slot in self.slots}, set(tensors)
        if expected != found:
            odd = sorted(expected ^ found)
            raise ValueError(f"{len(odd)} tensor names differ from the layout, such as {odd[0]}")
        parts = []
        for slot in self.slots:
            tensor = tensors[slot.name]
            if tuple(tensor.shape) != slot.shape:
                raise ValueError(f"{slot.name} has shape {list(tensor.shape)}, the layout {list(slot.shape)}")
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{slot.name} holds NaN or infinity")
            parts.append(tensor.detach().to(torch.float32).flatten())
        return torch.cat(parts)

    def pairs(self, flat: Tensor) -> list[tuple[str, Tensor, Tensor]]:
        """Return ``(module, A [..., r, in], B [..., out, r])`` for each adapted module, as views."""
        tensors = self.unflatten(flat)
        modules = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
        return [(module, tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"]) for module in modules]
