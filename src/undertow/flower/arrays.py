"""A Flower ArrayRecord as Undertow's vector: named arrays to columns of ``U [K, D]`` and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.flower.arrival import BadReply, Spec, decoded

#: PEFT's names of LoRA's halves: of its adapter files, ``….lora_A.weight``, and of a model with a named adapter,
#: ``….lora_A.default.weight``.
_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?P<adapter>\.[^.]+)??(?:\.weight)?")


class GlobalModel:
    """The arrays that the clients of a round were sent.

    Floating-point arrays are the columns; an aggregator decides on them. Whole numbers and truth values, such as
    ``num_batches_tracked``, are not part of the vector: see :meth:`after`. Empty arrays stay as they are.

    Attributes:
        columns: names of the floating-point arrays that are not empty, in the order of the record.
        specs: name to shape and dtype of all arrays, in the order of the record.
        layout: of the columns; both halves of a LoRA pair under PEFT's names are called ``MODULE.lora_A`` and ``MODULE.lora_B`` in
            it, so that aggregators find them; other arrays keep their names.
        flat: the floating-point arrays, ``[D]`` float32.

    Args:
        record: the global model.
        scale: LoRA's s = alpha / r.

    Raises:
        UserError: an array that cannot be read, of another kind than numbers, or not finite, or no floating-point array at all.
    """

    def __init__(self, record: ArrayRecord, scale: float = 1.0) -> None:
        self.arrays: dict[str, NDArray[np.generic]] = {}
        for name, array in record.items():
            try:
                self.arrays[name] = decoded(name, array, None)
            except BadReply as error:
                raise UserError(f"the global model: {error}; send plain numpy arrays of numbers") from error
        self.specs = {name: Spec(value.shape, value.dtype) for name, value in self.arrays.items()}
        self.columns = [name for name, value in self.arrays.items() if value.dtype.kind == "f" and value.size]
        if not self.columns:
            raise UserError(f"the global model has {len(self.arrays)} arrays, none of floating-point numbers; send the weights")
        shapes = {name: self.arrays[name].shape or (1,) for name in self.columns}
        names = slot_names(shapes)
        self.layout = Layout.of({names[name]: shape for name, shape in shapes.items()}, scale)
        self.flat = self._flat(self.arrays)

    @property
    def is_lora(self) -> bool:
        """Whether all columns belong to LoRA pairs, so that the space of ΔW = s B A is defined."""
        halves = [slot.name.rpartition(".")[2] for slot in self.layout.slots]
        return all(half in ("lora_A", "lora_B") for half in halves)

    def update(self, arrays: Mapping[str, NDArray[np.generic]]) -> Tensor:
        """Return a client's arrays minus these, ``[D]`` float32, infinite where float32 ends; 8-byte arrays are subtracted as
        such."""
        parts = []
        with np.errstate(over="ignore"):  # whoever calls looks at the length
            for name in self.columns:
                local, sent = arrays[name], self.arrays[name]
                wide = np.result_type(local.dtype, sent.dtype, np.float32)
                parts.append((local.astype(wide) - sent.astype(wide)).astype(np.float32).reshape(-1))
        return torch.from_numpy(np.concatenate(parts))

    def after(self, delta: Tensor, replies: Sequence[Mapping[str, NDArray[np.generic]]]) -> ArrayRecord | None:
        """Return the new global model, names, order, shapes and dtypes as before.

        Args:
            delta: the change ``[D]`` of the floating-point arrays.
            replies: the clients' arrays, at least one. Arrays of whole numbers and truth values become the (lower) median of the
                clients', value by value, which fewer than half of them cannot move far, whatever the aggregator. Flower's FedAvg
                averages them, and hands back floats.

        Returns:
            None where the result is not finite in the array's own dtype.
        """
        changes = torch.split(delta.detach().cpu(), self.layout.sizes)
        moved = dict(zip(self.columns, changes, strict=True))
        new: dict[str, Array] = {}
        for name, sent in self.arrays.items():
            if name in moved:
                wide = np.result_type(sent.dtype, np.float32)
                with np.errstate(over="ignore"):
                    value = (sent.astype(wide) + moved[name].numpy().astype(wide).reshape(sent.shape)).astype(sent.dtype)
                if not np.isfinite(value).all():
                    return None
            elif sent.size:
                ordered = np.sort(np.stack([np.asarray(reply[name]) for reply in replies]), axis=0)
                value = ordered[(len(replies) - 1) // 2].astype(sent.dtype)
            else:
                value = sent
            new[name] = Array(np.ascontiguousarray(value).reshape(sent.shape))
        return ArrayRecord(new)

    def _flat(self, arrays: Mapping[str, NDArray[np.generic]]) -> Tensor:
        with np.errstate(over="ignore"):
            flat = np.concatenate([arrays[name].astype(np.float32).reshape(-1) for name in self.columns])
        if not np.isfinite(flat).all():
            raise UserError("the global model holds values that float32 has not; scale it down")
        return torch.from_numpy(flat)


def slot_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return each array's name in the layout: ``MODULE.lora_A`` for A ``[r, in]`` with its B ``[out, r]``, its own name
    otherwise."""
    found: dict[str, dict[str, str]] = {}
    for name in shapes:
        match = _HALF.fullmatch(name)
        if match:
            found.setdefault(match["module"] + (match["adapter"] or ""), {})[match["half"]] = name
    names = {name: name for name in shapes}
    for module, halves in found.items():
        if set(halves) == {"A", "B"}:
            a, b = shapes[halves["A"]], shapes[halves["B"]]
            if len(a) == len(b) == 2 and a[0] == b[1]:
                names |= {halves[half]: f"{module}.lora_{half}" for half in halves}
    return names if len(set(names.values())) == len(names) else {name: name for name in shapes}
