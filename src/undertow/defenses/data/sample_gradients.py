"""Gradients of single samples at the run's initial adapter, by the last layer's value projection, and their frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.data.sample import Sample
from undertow.defenses.contexts import Setting, TrainingContext
from undertow.defenses.data.sample_map import Matrix


def last_module(layout: Layout, ending: str, name: str) -> str:
    """Return the last adapted module whose name ends with ``ending``; ``name`` is the defense's, for the message.

    Raises:
        UserError: there is none.
    """
    modules = [slot.name.removesuffix(".lora_B") for slot in layout.slots if slot.name.endswith(".lora_B")]
    found = [module for module in modules if module == ending or module.endswith(f".{ending}")]
    if not found:
        leaves = ", ".join(sorted({module.rpartition(".")[2] for module in modules})) or "nothing"
        raise UserError(
            f"{name}: no adapted module is named '{ending}' (adapted: {leaves}); give module=, or set model.lora.targets"
        )
    return found[-1]


def gradients(samples: Sequence[Sample], context: Setting | TrainingContext, module: str) -> tuple[Matrix, tuple[int, int]]:
    """Return each sample's gradient of its mean loss by a module's LoRA B at the first adapter, ``[n, out·r]``, and (out, r)."""
    from undertow.models.lora import initial_adapter
    from undertow.training.per_sample import lora_gradients

    base = context.base
    kind = torch.float64 if base.model.dtype == torch.float64 else torch.float32
    tensors = base.layout.unflatten(initial_adapter(base.layout, context.seed, kind))
    down, up = tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"]
    rows = [context.template.encode(sample) for sample in samples]
    found = lora_gradients(base, module, down, rows).numpy().astype(np.float64)
    return found, (up.shape[0], up.shape[1])


def dct2(matrices: Matrix) -> Matrix:
    """Return the two-dimensional DCT-II of ``matrices [n, M, N]``, not normalised: y_k = 2 Σ x_m cos(π k (2m+1) / 2M) both ways."""
    from scipy.fft import dctn

    return np.asarray(dctn(matrices, axes=(1, 2)))
