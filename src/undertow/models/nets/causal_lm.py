"""Any causal language model as the network of next-word prediction: all its weights, or LoRA factors beside them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from undertow.config import Lora, Model
from undertow.models.net import NETS


@NETS.register("causal-lm", source="ours; LoRA: Hu et al. 2022, Eq. 3")
def causal_lm(
    inputs: tuple[int, ...], outputs: int, path: str = "builtin", lora: int = 0, alpha: float = 0, targets: Any = "default"
) -> nn.Module:
    """A pre-trained language model over the tokens of its own tokenizer, in float32.

    Args:
        inputs: shape of one sequence, (length,).
        outputs: number of tokens, that of the model's tokenizer.
        path: a transformers folder, a hub id, or ``builtin``, the base that comes with the package.
        lora: rank of the factors that are trained; 0 trains all weights.
        alpha: scale s = alpha / lora; 0 stands for twice the rank.
        targets: modules with factors, as ``model.lora.targets``.

    Raises:
        ValueError: the data are no words of this model, sequences longer than it can read, or an option outside its rule.
        UserError: no such model.
    """
    from undertow.models.causal_lm import load_base

    if isinstance(lora, bool) or not isinstance(lora, int) or lora < 0 or alpha < 0:
        raise ValueError(f"lora = {lora}, alpha = {alpha}: the rank is a whole number from 0, alpha a number from 0")
    # Full training adapts no module, and peft may know no default for the architecture.
    options = Lora(r=lora or 1, alpha=alpha or 2 * (lora or 1), targets=targets if lora else "all-linear")  # type: ignore[call-arg]
    base = load_base(Model(name=str(path), dtype="float32", device="cpu", lora=options))  # type: ignore[call-arg]
    if len(inputs) != 1 or outputs != len(base.tokenizer):
        raise ValueError(
            f"its tokenizer has {len(base.tokenizer)} tokens and the data have {outputs} outputs; "
            f"add tokenizer={path} to data.name, such as authors:tokenizer={path}"
        )
    if base.positions and inputs[0] > base.positions:
        raise ValueError(f"it reads {base.positions} tokens and sequences have {inputs[0]}; lower the dataset's length")
    module: nn.Module = base.model
    if not lora:
        return module.requires_grad_(True)
    scale = options.alpha / options.r
    for name, a, b in base.layout.pairs(torch.zeros(base.layout.size)):
        part = module.get_submodule(name)
        bound = 1 / math.sqrt(a.shape[1])
        part.register_parameter("lora_A", nn.Parameter(torch.empty_like(a).uniform_(-bound, bound)))
        part.register_parameter("lora_B", nn.Parameter(torch.zeros_like(b)))
        part.register_forward_hook(partial(_add_factors, scale))
    module.lora_scale = scale  # type: ignore[assignment]
    return module


def _add_factors(scale: float, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Return W x + s·B (A x)."""
    # Not get_parameter: while a state takes their place they are plain tensors.
    a, b = module.lora_A, module.lora_B
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return output + scale * (inputs[0] @ a.T) @ b.T
