"""Folding an adapter into its base's weights by PEFT, and whether the model still computes the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from undertow.core.errors import UserError

#: Tokens of the text on which a folded adapter is compared, the largest difference of its logits as a share of the largest, and how
#: many times that in coarser types than float32.
_PROBE, _SAME, _COARSE = 8, 1e-4, 500


def without_adapter(whole: Any, name: str) -> Any:
    """Return the base of a PEFT model with the adapter folded into its weights.

    Args:
        whole: base and adapter side by side; what is returned is made of it.
        name: of the adapter, for errors.

    Raises:
        UserError: folded it gives other logits than beside the base.
    """
    _room_for_biases(whole)
    beside = _logits(whole)
    merged = whole.merge_and_unload(safe_merge=True)
    gap = float((_logits(merged) - beside).abs().max())
    if not gap <= _SAME * max(1.0, float(beside.abs().max())) * (1 if _is_float32(merged) else _COARSE):
        raise UserError(
            f"{name}: folded into this base it gives other logits than beside it (by {gap:.2g}), where the base reads a weight "
            "past its layer; train plain LoRA on other modules"
        )
    return merged


def _logits(model: Any) -> Tensor:
    """The logits of a short text."""
    place = next(model.parameters()).device
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(_PROBE, device=place)[None] + 1).logits.float()
    return found


def _is_float32(model: nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in model.parameters())


def _room_for_biases(model: nn.Module) -> None:
    """Give layers whose adapter has a bias, and that have none of their own, one of zeros: PEFT adds to it when it merges."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and any(module.lora_bias.values()):
            layer = module.get_base_layer()
            if getattr(layer, "bias", None) is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(module.out_features))
