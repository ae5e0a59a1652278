"""Distances between updates in the space of the model's change: ΔW = s (B A - B₀ A₀) for each LoRA module.

(A, B) and (A g, g⁻¹ B) act alike on the model but lie apart as vectors, so that an aggregator may choose by the products
instead. No ``[out, in]`` matrix is formed. With a reference (A', B'), here the received adapter or one client's,

    B A - B' A' = [B - B', B'] [A ; A - A']

is a product of rank 2r, and <L₁R₁, L₂R₂> = Σ (L₁ᵀL₂) ∘ (R₁R₂ᵀ). Differences come first, so that small updates of large
adapters lose no digits. All sums are float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.defenses.aggregation import geometry
from undertow.defenses.contexts import ServerContext

SPACES = ("adapter", "delta_w")


class InSpace:
    """Mixed into aggregators that may take their distances in either space: what ``delta_w`` asks for."""

    space: str

    @property
    def needs_adapter(self) -> bool:
        """The products are those of the global adapter plus the update."""
        return self.space == "delta_w"

    def fits(self, layout: Layout) -> None:
        """Refuse ``delta_w`` where the layout is no LoRA."""
        if self.space == "delta_w":
            check_lora(type(self).__name__, layout)


def check_lora(name: str, layout: Layout) -> None:
    """Refuse a layout that is not made of LoRA's A and B, module by module.

    Raises:
        UserError: a tensor that is no half of a pair, or shapes of a pair that do not multiply.
    """
    shapes = {slot.name: slot.shape for slot in layout.slots}
    for slot, shape in shapes.items():
        module, _, half = slot.rpartition(".")
        a, b = shapes.get(f"{module}.lora_A", ()), shapes.get(f"{module}.lora_B", ())
        if half not in ("lora_A", "lora_B") or len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise UserError(
                f"{name} in the space delta_w needs a layout of lora_A [r, in] and lora_B [out, r] alone, but {slot} {list(shape)} "
                "is no such half; use space = adapter"
            )


def squares_in(space: str, updates: Tensor, context: ServerContext) -> Tensor:
    """Return the squared distances of the rows of ``updates [K, D]`` as ``[K, K]`` float64 on the CPU, 0 for equal rows.

    Raises:
        UserError: ``delta_w`` with a layout that is no LoRA.
    """
    if space == "adapter":
        return geometry.squared_distances(updates)
    check_lora("an aggregator", context.layout)
    k, d = updates.shape
    every = torch.ones(k, k, dtype=torch.bool).triu(1)
    if k * k * d <= geometry.DIRECT:
        return _by_pairs(updates, context, every)
    products = _gram(updates, context, k // 2)
    own = products.diagonal()
    sums = own[:, None] + own[None, :]
    squares = (sums - products - products.T).triu(1)
    close = every & (squares < geometry.CANCELS * sums)
    if close.any():
        squares = torch.where(close, _by_pairs(updates, context, close), squares)
    return squares + squares.T


def lengths_in(space: str, updates: Tensor, context: ServerContext) -> Tensor:
    """Return the lengths of the rows of ``updates [K, D]`` as ``[K]`` float64 on the CPU.

    Raises:
        UserError: as :func:`squares_in`.
    """
    if space == "adapter":
        return geometry.lengths(updates)
    check_lora("an aggregator", context.layout)
    squares = torch.zeros(len(updates), dtype=torch.float64)
    for a, b, a_0, b_0 in _modules(updates, context):
        squares += _norms(torch.cat([b, b_0.expand_as(b)], dim=2), torch.cat([a_0 + a, a], dim=1))
    return context.layout.scale * squares.sqrt()


def gram(updates: Tensor, context: ServerContext) -> Tensor:
    """Return ``<ΔW_i, ΔW_j>`` of the rows of ``updates [K, D]`` as ``[K, K]`` float64 on the CPU.

    Raises:
        UserError: as :func:`squares_in`.
    """
    check_lora("an aggregator", context.layout)
    return _gram(updates, context, None)


def _modules(updates: Tensor, context: ServerContext) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield the changes of A ``[K, r, in]`` and B ``[K, out, r]`` and the received A₀, B₀ of each module, float64."""
    received = context.layout.pairs(context.adapter.to(updates.device))
    for (_, a, b), (_, a_0, b_0) in zip(context.layout.pairs(updates), received, strict=True):
        yield a.double(), b.double(), a_0.double(), b_0.double()


def _gram(updates: Tensor, context: ServerContext, reference: int | None) -> Tensor:
    """Return the inner products of the changes, measured from the received adapter or from one client's."""
    k = len(updates)
    total = torch.zeros(k, k, dtype=torch.float64, device=updates.device)
    for a, b, a_0, b_0 in _modules(updates, context):
        a_ref, b_ref = (torch.zeros_like(a_0), torch.zeros_like(b_0)) if reference is None else (a[reference], b[reference])
        right = torch.cat([a_0 + a, a - a_ref], dim=1)  # [K, 2r, in]
        left = torch.cat([b - b_ref, (b_0 + b_ref).expand_as(b)], dim=2).transpose(1, 2)  # [K, 2r, out]
        rank = right.shape[1]
        step = max(1, geometry.BLOCK * 16 // (k * rank * rank))
        for at in range(0, k, step):
            rights = right[at : at + step].flatten(0, 1) @ right.flatten(0, 1).T
            lefts = left[at : at + step].flatten(0, 1) @ left.flatten(0, 1).T
            total[at : at + step] += (lefts * rights).view(-1, rank, k, rank).sum(dim=(1, 3))
    return context.layout.scale**2 * total.cpu()


def _by_pairs(updates: Tensor, context: ServerContext, wanted: Tensor) -> Tensor:
    """Return the squared distances of the ``wanted [K, K]`` pairs, 0 elsewhere; ``wanted`` is upper triangular."""
    found = torch.zeros(wanted.shape, dtype=torch.float64)
    for a, b, a_0, b_0 in _modules(updates, context):
        for i, row in enumerate(wanted):
            others = torch.nonzero(row).flatten()
            if len(others):
                left = torch.cat([b[i] - b[others], b_0 + b[others]], dim=2)  # [n, out, 2r]
                right = torch.cat([(a_0 + a[i]).expand(len(others), -1, -1), a[i] - a[others]], dim=1)  # [n, 2r, in]
                found[i, others] += _norms(left, right)
    found *= context.layout.scale**2
    return found + found.T


def _norms(left: Tensor, right: Tensor) -> Tensor:
    """Return ``|L R|²`` of ``left [n, out, q]`` and ``right [n, q, in]`` as ``[n]`` on the CPU.

    Orthogonal factors do not change a norm, so that only the triangular ones are multiplied.
    """
    tall, wide = torch.linalg.qr(left, mode="r").R, torch.linalg.qr(right.transpose(1, 2), mode="r").R
    squares: Tensor = (tall @ wide.transpose(1, 2)).square().sum(dim=(1, 2))
    return squares.cpu()
