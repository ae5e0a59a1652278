"""The two files of a PEFT adapter, and what lies in their place where they are missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from undertow.core.errors import UserError

#: What the names of a file's tensors begin with.
PREFIX = "base_model.model."

#: A factor under the adapter's name, as a model's own state dict has it; PEFT reads such files where the name is "default".
_NAMED = re.compile(r"(\.lora_[AB])\.([^.]+)(\.weight)$")


def adapter_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an adapter's config and its tensors by name.

    Raises:
        UserError: one of the two files is not there, damaged, or holds what is no finite floating-point number.
    """
    config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config_file.is_file():
        raise UserError(_no_config(folder))
    if not weights.is_file():
        raise UserError(_no_weights(folder))
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        tensors = load_file(weights)
        if not isinstance(config, dict):
            raise ValueError("adapter_config.json holds no object")
    except (ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder}: the adapter is damaged ({' '.join(str(error).split())}); copy it again") from error
    for name, tensor in tensors.items():
        numbers = _numbers(tensor)
        if numbers is None:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{folder}: {name} is of type {dtype}, which is not read here; save the adapter in float32, float16 or bfloat16"
            )
        if not numbers.isfinite().all():
            if tensor.dtype == torch.float64 and tensor.isfinite().all():
                raise UserError(f"{folder}: {name} holds numbers beyond float32, which is computed in; train the adapter again")
            raise UserError(f"{folder}: {name} holds NaN or infinity; train or copy the adapter again")
    return config, tensors


def adapter_folder(place: Path) -> Path:
    """Return where an adapter is: the place itself, or the folder within it in which a run leaves one."""
    below = (place / "adapter").is_dir() and not (place / "adapter_config.json").is_file()
    return place / "adapter" if below else place


def by_module(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the modules they belong to: ``MODULE.lora_A.weight``."""
    named = {}
    for key, value in tensors.items():
        if "_orig_mod." in key:
            raise UserError(f"{folder} was saved from a compiled model ({key}); save the adapter of the plain peft model")
        if key.startswith(PREFIX * 2):
            raise UserError(f"{folder} was saved from a model wrapped twice ({key}); save the adapter of the plain peft model")
        if not key.startswith(PREFIX):
            raise UserError(f"{folder}: {key} does not begin with {PREFIX}, as peft writes; save the adapter with save_pretrained")
        named[_NAMED.sub(r"\1\3", key.removeprefix(PREFIX))] = value
    if names := {found[2] for key in tensors if (found := _NAMED.search(key))} - {"default"}:
        told = ", ".join(sorted(names))
        raise UserError(
            f"{folder}: tensors carry an adapter's name ({told}), which peft does not load; save it with save_pretrained"
        )
    return named


def _numbers(tensor: Tensor) -> Tensor | None:
    """Return a tensor in float32, as torch computes little in float8; None where it is no floating-point type that torch reads."""
    try:
        return tensor.float() if tensor.is_floating_point() else None
    except NotImplementedError:  # float4
        return None


def _no_config(folder: Path) -> str:
    """Return what is there in the place of a folder with ``adapter_config.json``."""
    if folder.is_file():
        its = (folder.parent / "adapter_config.json").is_file()
        wanted = f"its folder, {folder.parent}" if its else "the folder of a PEFT adapter, with adapter_config.json in it"
        return f"{folder} is a file; give {wanted}"
    if not folder.is_dir():
        return f"{folder}: no such folder; give the folder of a PEFT adapter (one of a hub must be downloaded first)"
    below = sorted(file.parent for file in folder.glob("*/adapter_config.json"))
    wanted = f"give {below[0]}" if below else "give the folder that holds it"
    return f"{folder} is no PEFT adapter: adapter_config.json is missing; {wanted}"


def _no_weights(folder: Path) -> str:
    """Return what is there in the place of ``adapter_model.safetensors``."""
    names = sorted(file.name for file in folder.iterdir())
    told = f"{folder} has no adapter_model.safetensors"
    if "adapter_model.safetensors" in names:
        return f"{folder}: adapter_model.safetensors is no file, or a link that leads to none; copy the adapter again"
    for name in names:
        if re.fullmatch(r"adapter_model.*\.(bin|pt|pth|ckpt)", name):
            return f"{told}: {name} is pickled, and pickled adapters are refused; save the adapter as safetensors"
        if re.fullmatch(r"adapter_model(-.*\.safetensors|\.safetensors\.index\.json)", name):
            return f"{told}: it is in parts ({name}), which peft does not read; join them into one adapter_model.safetensors"
        if name in ("adapters.safetensors", "adapters.npz"):
            return f"{told}: {name} is an adapter of MLX, not of PEFT; convert it to PEFT's format"
    others = ", ".join(name for name in names if name != "adapter_config.json")[:160]
    return f"{told}, only {others or 'adapter_config.json'}; copy the adapter again"
