"""The adapter between the base and itself, or merged with others: a backdoor that only one of them has gets weaker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.defenses.base import NeedsModel
from undertow.defenses.contexts import ServerContext, Setting
from undertow.defenses.parameters import number, one_of
from undertow.defenses.registry import DEFENSES
from undertow.defenses.server.base import ServerDefense


@DEFENSES.register(
    "interpolation", source="Arora et al. 2024, Here's a Free Lunch: Sanitizing Backdoored Models with Model Merge, ACL Findings"
)
class Interpolation(NeedsModel, ServerDefense):
    """ΔW' = λ·ΔW, or with M given adapters ΔW' = λ·(ΔW + ΔW_1 + .. + ΔW_M) / (M + 1).

    The paper averages the weights of models of one architecture, some of which may be backdoored in other ways; over one base that
    is the second formula with λ = 1. Ours: the first one, which averages with the base itself (λ = 1/2 is the paper's average of
    both), and the form of the mean: an adapter of rank r cannot hold the sum of several exactly, so that the best one of rank r
    is taken (truncated singular value decomposition of each module's mean), and its relative error reported. The first formula
    is exact: B is multiplied by λ.

    Args:
        factor: λ, 0 <= λ <= 1; None = 1/2 alone, 1 with ``adapters``.
        adapters: folders of LoRA adapters in PEFT format for this base, on the same modules as the run's.
        when: last = on the adapter of the last round; every = on that of every round.
    """

    def __init__(self, factor: float | None = None, adapters: Sequence[str] = (), when: str = "last") -> None:
        self.adapters = [adapters] if isinstance(adapters, str) else list(adapters)
        self.factor = number("factor", (1.0 if self.adapters else 0.5) if factor is None else factor, least=0, most=1)
        self.when = one_of("when", when, ("last", "every"))
        self._others: list[tuple[Tensor, Layout]] = []
        self._rounds = 0

    def begin(self, setting: Setting) -> None:
        """Read the adapters to merge with.

        Raises:
            UserError: an adapter cannot be read, does not fit the base, or adapts other modules than the run.
        """
        from undertow.models.with_adapter import plain_adapter

        self._rounds, self._others = setting.rounds, []
        own = modules(setting.base.layout)
        for folder in self.adapters:
            flat, layout = plain_adapter(setting.base, Path(folder).expanduser())
            if modules(layout) != own:
                odd = sorted(set(modules(layout)) ^ set(own))
                raise UserError(
                    f"{folder} adapts other modules than this run ({odd[0]}, {len(odd)} in all); set model.lora.targets to those "
                    "of the adapter"
                )
            self._others.append((flat, layout))

    def guard(self, adapter: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the adapter ``[D]`` of λ times the mean; the report has ``factor``, with others the relative ``error`` of rank
        r."""
        if self.when == "last" and context.round < self._rounds:
            return adapter, {"merged": False}
        found, report = adapter.clone(), {"merged": True, "factor": self.factor}
        if self._others:
            found, report["error"] = merged([(adapter, context.layout), *self._others])
        for _, _, b in context.layout.pairs(found):  # views of found
            b *= self.factor
        return found, report


def modules(layout: Layout) -> list[str]:
    """Return the names of the adapted modules."""
    return [slot.name.removesuffix(".lora_A") for slot in layout.slots if slot.name.endswith(".lora_A")]


def merged(adapters: Sequence[tuple[Tensor, Layout]]) -> tuple[Tensor, float]:
    """Return an adapter ``[D]`` in the first one's layout whose ΔW is nearest to the mean of all, and ‖difference‖ / ‖mean‖.

    Nearest in Frobenius norm, module by module: U_r·Σ_r·V_rᵀ of the singular value decomposition (Eckart and Young), with
    √Σ_r on either side, B = U_r·√Σ_r and A = √Σ_r·V_rᵀ / s. The mean of rank R is never written out: with the stacked factors'
    QR decompositions only an R x R matrix is decomposed.

    Args:
        adapters: (flat ``[D_i]``, layout) each, on the same modules; ranks and scales may differ.
    """
    (first, layout), count = adapters[0], len(adapters)
    parts = [{name: (a, b) for name, a, b in own.pairs(flat)} for flat, own in adapters]
    found = torch.empty_like(first)
    lost = whole = 0.0
    for name, down, up in layout.pairs(found):  # views of found
        b = torch.cat([own.scale / count * part[name][1].double() for part, (_, own) in zip(parts, adapters, strict=True)], 1)
        a = torch.cat([part[name][0].double() for part in parts])
        left, upper = torch.linalg.qr(b)
        right, lower = torch.linalg.qr(a.T)
        u, sizes, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        rank = min(down.shape[0], len(sizes))
        root = sizes[:rank].sqrt()
        down.zero_()
        up.zero_()
        up[:, :rank] = ((left @ u[:, :rank]) * root).to(up)
        down[:rank] = ((vh[:rank] @ right.T) * root[:, None] / layout.scale).to(down)
        lost, whole = lost + float(sizes[rank:].square().sum()), whole + float(sizes.square().sum())
    return found, (lost / whole) ** 0.5 if whole else 0.0
