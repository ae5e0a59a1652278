"""LoRA adapters as rows of one matrix, hung into a frozen model by hooks.

The model itself is never changed: a hook on each adapted linear adds ``s * B (A x)`` to its output, for K
adapters at once when the batch is K equal blocks. So the same frozen base serves training, evaluation with the
global adapter, and the untouched base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from undertow.config import Lora
from undertow.core.errors import UserError, nearest
from undertow.core.files import write_bytes, write_json
from undertow.core.layout import Layout
from undertow.core.rng import torch_rng

#: Returns the scaled keep-mask of LoRA's dropout for a module and an input ``[K, tokens, in]``.
DropoutMask = Callable[[str, Tensor], Tensor]


def _is_linear(module: nn.Module) -> bool:
    # GPT-2's Conv1D is a linear with its weight transposed; quantised linears subclass nn.Linear.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """Return (in, out) of a linear or a GPT-2 Conv1D."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.get_parameter("weight")
    return weight.shape[0], weight.shape[1]


def linears_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers by name, GPT-2's Conv1D among them."""
    return {name: module for name, module in model.named_modules() if _is_linear(module)}


def find_targets(model: nn.Module, lora: Lora) -> list[str]:
    """Return the names of the modules to adapt, in model order.

    ``default`` is peft's choice for the architecture, ``all-linear`` every linear but the output head and what PEFT would not load,
    a list names modules by their last path parts, as peft does.

    Raises:
        UserError: nothing matches, peft has no default for this architecture, or would not load an adapter on such a module.
    """
    found = named_linears(model, lora)
    leaves = sorted({name.rpartition(".")[2] for name in found})
    lost = lost_in_peft(model, leaves)
    if lost and lora.targets == "all-linear" and len(lost) < len(leaves):
        return [name for name in found if name.rpartition(".")[2] not in lost]
    if lost:
        left = ",".join(name for name in leaves if name not in lost) or "a list of other modules"
        kind = getattr(model.config, "model_type", "?")
        raise UserError(
            f"model.lora.targets: PEFT would not load an adapter on {', '.join(lost)} of a '{kind}' as it was trained; set "
            f"model.lora.targets={left}"
        )
    return found


def named_linears(model: nn.Module, lora: Lora) -> list[str]:
    """Return the linears that ``lora.targets`` names, in model order; errors as of :func:`find_targets`, but for PEFT's."""
    linears = linears_of(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if lora.targets == "all-linear":
        return [name for name, module in linears.items() if module is not head]
    if lora.targets == "default":
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

        kind = getattr(model.config, "model_type", "?")
        wanted = list(DEFAULTS.get(kind, []))
        if not wanted:
            raise UserError(
                f"peft has no default LoRA targets for '{kind}'; set model.lora.targets to all-linear or a list of module names"
            )
    else:
        wanted = list(lora.targets)
    found = [name for name in linears if any(name == w or name.endswith(f".{w}") for w in wanted)]
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in found):
            leaves = sorted({name.rpartition(".")[2] for name in linears})
            raise UserError(
                f"model.lora.targets: no linear module is named '{target}'{nearest(target, leaves)}; this model has "
                f"{', '.join(leaves)}"
            )
    return found


def lost_in_peft(model: nn.Module, leaves: list[str]) -> list[str]:
    """Return the names for which PEFT would not load what is written: those that it takes for the fused experts of a mixture,
    although dense layers of the model have them, too, and those that it refuses in state-space models."""
    from peft import LoraConfig
    from peft.tuners import tuners_utils

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
    except ImportError:  # an older peft, which takes every name for what it is
        return []
    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", lambda *_: None)

    def kept(name: str) -> bool:
        config = LoraConfig(target_modules=[name])
        try:
            convert(config, model=model, conversions=None)
            check(config, model, name)
        except ValueError:  # a part of what it takes for one tensor, or a module that it refuses
            return False
        return name in (config.target_modules or ())

    return [name for name in leaves if not kept(name)]


def adapter_layout(model: nn.Module, targets: list[str], lora: Lora) -> Layout:
    """Return the layout of one adapter over ``targets``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in targets:
        inputs, outputs = linear_sizes(model.get_submodule(name))
        shapes[f"{name}.lora_A"] = (lora.r, inputs)
        shapes[f"{name}.lora_B"] = (outputs, lora.r)
    return Layout.of(shapes, scale=lora.alpha / lora.r)


def initial_adapter(layout: Layout, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the global adapter before round 1, ``[D]``: A ~ U(±1/√in) as peft draws it, B = 0."""
    generator = torch_rng(seed, "adapter")
    flat = torch.zeros(layout.size)
    for slot in layout.slots:
        if slot.name.endswith(".lora_A"):
            bound = 1 / math.sqrt(slot.shape[1])
            flat[slot.start : slot.start + slot.size].uniform_(-bound, bound, generator=generator)
    return flat.to(dtype)


@contextmanager
def adapted(model: nn.Module, layout: Layout, stack: Tensor, mask: DropoutMask | None = None) -> Iterator[None]:
    """Within this context the model computes with K adapters.

    The batch dimension of every adapted module's input must be K equal blocks, block k for adapter k.

    Args:
        model: the frozen base.
        layout: where each tensor of an adapter is.
        stack: ``[K, D]``; gradients flow to it.
        mask: LoRA's dropout, if any.
    """
    k = stack.shape[0]
    handles = []
    try:
        for name, a, b in layout.pairs(stack):
            handles.append(model.get_submodule(name).register_forward_hook(_lora_hook(name, a, b, layout.scale, k, mask)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lora_hook(name: str, a: Tensor, b: Tensor, scale: float, k: int, mask: DropoutMask | None) -> Any:
    down, up = a.transpose(1, 2), b.transpose(1, 2)  # [K, in, r], [K, r, out]

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(a.dtype).reshape(k, -1, inputs[0].shape[-1])  # [K, tokens, in]
        if mask is not None:
            x = x * mask(name, x)
        # The layers of a base spread over several GPUs each want the factors beside them.
        change = torch.bmm(torch.bmm(x, down.to(x.device)), up.to(x.device)) * scale
        return (output + change.view(output.shape)).to(output.dtype)

    return hook


def save_peft(folder: Path, flat: Tensor, layout: Layout, lora: Lora, base_name: str) -> None:
    """Write an adapter ``[D]`` in PEFT format: ``adapter_config.json`` and ``adapter_model.safetensors``.

    ``PeftModel.from_pretrained(base, folder)`` computes the same logits as :func:`adapted` with K = 1.
    """
    from peft import LoraConfig

    modules = [module for module, _, _ in layout.pairs(flat)]
    tensors = {f"base_model.model.{slot}.weight": t.contiguous() for slot, t in layout.unflatten(flat).items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=modules,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
    ).to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json(folder / "adapter_config.json", plain)
