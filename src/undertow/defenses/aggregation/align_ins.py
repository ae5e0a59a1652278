"""AlignIns: drop clients whose direction or signs stand out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.core.errors import UserError
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.geometry import columns, combination, lengths, products
from undertow.defenses.contexts import ServerContext
from undertow.defenses.parameters import number
from undertow.defenses.registry import DEFENSES

#: A spread below this share of the median's size is rounding: all clients say the same.
SAME = 1e-12


@DEFENSES.register(
    "alignins", source="Xu, Zhang, Hu 2025, Detecting Backdoor Attacks in FL via Direction Alignment Inspection (CVPR)"
)
class AlignIns(Aggregator):
    """Keep the clients that are ordinary in their angle to the global model and in the signs of their largest values.

    g = global adapter: t_i = cos(U_i, g). p = sign of sum_i sign(U_i) in each coordinate; s_i = share of p's signs among the
    floor(sparsity D) coordinates, at least one, where |U_i| is largest (of equal values the lower coordinate). For both, z_i = |x_i
    - median| / std with the population's std, 0 where all are equal. Kept are the clients with z < limit_t and z < limit_s;
    delta = sum over the kept of n_i min(1, M / |U_i|) U_i / sum n_i with M the median of their lengths, and 0 where none is kept.
    Defined for K >= 3: of two clients both have z = 1.

    In the first rounds the adapter is LoRA's random start. Where it is zero, t_i = 0 for all.

    Args:
        sparsity: share of the coordinates whose signs are looked at, above 0 and at most 1; 0.3 as in the authors' code.
        limit_t, limit_s: > 0; 1.0 as in the authors' code.
    """

    def __init__(self, sparsity: float = 0.3, limit_t: float = 1.0, limit_s: float = 1.0) -> None:
        self.sparsity = number("sparsity", sparsity, most=1.0)
        self.limit_t = number("limit_t", limit_t)
        self.limit_s = number("limit_s", limit_s)

    @property
    def needs_adapter(self) -> bool:
        """Angles are taken to it."""
        return True

    def check(self, k: int) -> None:
        """Refuse K < 3."""
        super().check(k)
        if k < 3:
            raise UserError(f"AlignIns needs at least 3 clients, but there are {k}; use more clients or another aggregator")

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``; the report holds t, s and the ``kept`` rows of ``updates [K, D]``, and ``bound`` M."""
        k = updates.shape[0]
        far = lengths(updates)
        scale = far * float(lengths(context.adapter[None])[0])
        angle = torch.where(scale > 0, products(updates, context.adapter) / torch.where(scale > 0, scale, 1.0), 0.0)
        signs = self._signs(updates)
        kept = torch.nonzero((_outlying(angle) < self.limit_t) & (_outlying(signs) < self.limit_s)).flatten()
        weights = torch.zeros(k, dtype=torch.float64)
        bound = 0.0
        if len(kept):
            bound = float(far[kept].quantile(0.5))
            counts = torch.tensor(context.counts, dtype=torch.float64)[kept]
            long = far[kept] > bound
            weights[kept] = counts / counts.sum() * torch.where(long, bound / torch.where(long, far[kept], 1.0), 1.0)
        report = {"angle": angle.tolist(), "signs": signs.tolist(), "kept": kept.tolist(), "bound": bound}
        return combination(updates, weights), report

    def _signs(self, updates: Tensor) -> Tensor:
        """Return s ``[K]`` float64."""
        k, d = updates.shape
        major = torch.empty(d, dtype=torch.int8)
        for start, end in columns(updates):
            major[start:end] = updates[:, start:end].sign().sum(dim=0, dtype=torch.float32).sign().to("cpu", torch.int8)
        count = max(1, int(self.sparsity * d))
        found = torch.empty(k, dtype=torch.float64)
        for i, row in enumerate(updates):
            values = row.to("cpu", torch.float64 if row.dtype == torch.float64 else torch.float32).numpy()
            largest = _largest(np.abs(values), count)
            found[i] = float((np.sign(values[largest]) == major.numpy()[largest]).mean())
        return found


def _largest(values: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Return where the ``count`` largest of ``values [D]`` are; of equal ones the first."""
    edge = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > edge)
    return np.concatenate([above, np.flatnonzero(values == edge)[: count - len(above)]])


def _outlying(values: Tensor) -> Tensor:
    """Return |x - median| / std of ``values [K]``, 0 where all are equal."""
    apart = (values - values.quantile(0.5)).abs()
    std = float(values.std(correction=0))
    return apart / std if std > SAME * max(1.0, float(values.abs().max())) else torch.zeros_like(values)
