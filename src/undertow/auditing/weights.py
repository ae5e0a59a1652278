"""Weights as evidence: the spectrum of what the adapter adds to each module, beside that of reference adapters. Never a verdict.

For s·B·A of a module, from its singular values σ: the largest, the Frobenius norm, the share of the largest in the energy
(σ₁² / Σσ²), and the effective rank exp(−Σ p log p), p = σ² / Σσ² (Roy & Vetterli 2007). Spectral detectors (arXiv 2602.15195) learn
a boundary over such figures from labelled adapters of the same base, and flag what is only unusual too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undertow.core.layout import Layout

FIGURES = ("largest", "norm", "share", "rank")


def spectrum(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return each module's figures ``[4]``, in the order of :data:`FIGURES`, by its name."""
    found = {}
    for name, a, b in layout.pairs(flat[None]):
        found[name] = _figures(a[0].double(), b[0].double(), layout.scale)
    return found


def summary(flat: Tensor, layout: Layout, references: Sequence[tuple[Tensor, Layout]] = ()) -> dict[str, Any]:
    """Return the mean over modules of each figure, and with two references or more its distance in their standard deviations."""
    own = _mean(flat, layout)
    told: dict[str, Any] = {name: round(float(value), 5) for name, value in zip(FIGURES, own, strict=True)}
    if len(references) >= 2:
        others = torch.stack([_mean(*reference) for reference in references])
        z = (own - others.mean(0)) / others.std(0).clamp(min=1e-12)
        told["references"] = len(references)
        told["deviations"] = {name: round(float(value), 2) for name, value in zip(FIGURES, z, strict=True)}
    return told


def _mean(flat: Tensor, layout: Layout) -> Tensor:
    return torch.stack(list(spectrum(flat, layout).values())).mean(0)


def _figures(a: Tensor, b: Tensor, scale: float) -> Tensor:
    # the singular values of B·A are those of the small factors' product
    values = scale * torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T)
    energy = values.square().sum()
    if energy == 0:
        return torch.zeros(4, dtype=torch.float64)
    p = values.square() / energy
    rank = torch.exp(-(p * p.clamp(min=1e-300).log()).sum())
    return torch.stack([values[0], energy.sqrt(), p[0], rank])
