"""Memory that a base's weights need, and what a device has."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from undertow.core.errors import UserError


def predicted_bytes(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes of the weights of a model with this config, without making them; a UserError where there is none."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"the base's config.json describes no causal language model ({told}); correct it") from error
    seen = {id(p): p.numel() for p in empty.parameters()}
    return int(sum(seen.values())) * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Return the memory still free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def total_bytes(device: torch.device) -> int:
    """Return the memory of the device, used or not."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


def check_memory(name: str, config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a base whose weights do not fit.

    Raises:
        UserError: they need more than nine tenths of what is free.
    """
    needed, free = predicted_bytes(config, dtype), free_bytes(device)
    if needed > 0.9 * free:
        raise UserError(
            f"model '{name}' needs {needed:,} bytes for its weights as {str(dtype).removeprefix('torch.')}, "
            f"{free:,} are free on {device}; set model.dtype=bfloat16, a smaller model, or another model.device"
        )
