"""CROW on a network of texts: its blocks' outputs are the hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from undertow.core.errors import UserError
from undertow.data.examples import Examples
from undertow.defenses.contexts import NetSetting
from undertow.defenses.server.margins import Soft
from undertow.defenses.server.server_tuning import synthetic_data
from undertow.models.net import Net


def block_names(net: Net) -> list[str]:
    """Return the names of the network's blocks: the longest list of modules of one class.

    Raises:
        UserError: there are fewer than two.
    """
    lists = [
        [f"{name}.{i}" for i in range(len(part))]
        for name, part in net.module.named_modules()
        if isinstance(part, nn.ModuleList) and len({type(block) for block in part}) == 1
    ]
    found = max(lists, key=len, default=[])
    if len(found) < 2:
        raise UserError("crow compares the outputs of blocks of equal width, and this network has no two; it is for transformers")
    return found


def consistency_losses(
    network: NetSetting,
    local: Tensor,
    rows: Sequence[int],
    epsilon: float,
    relative: bool,
    measure: Callable[[Sequence[Tensor], Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of some synthetic samples, and the inconsistency under perturbed embeddings.

    Args:
        network: with synthetic data.
        local: the state ``[D]``; gradients flow to it.
        rows: which samples.
        epsilon: of the perturbation, in units of the embeddings' root mean square where ``relative``.
        relative: as said.
        measure: of the hidden states ``[N, T, d]`` of all layers and the mask of real places.

    Raises:
        UserError: no synthetic data, no texts, or a network without blocks of equal width.
    """
    data, net = _texts(network), network.net
    batch = data.take(rows)
    inputs, labels = batch.inputs.to(local.device), batch.labels.to(local.device)
    names, soft = block_names(net), Soft.of(net, net.of_state(local), inputs)
    if relative:
        epsilon *= float(soft.table.square().mean().sqrt())
    clean = soft.values(inputs).requires_grad_()
    real = (inputs != 0).to(clean.dtype)

    def inconsistency(values: Tensor) -> Tensor:
        return measure(_hidden(soft, values, inputs, names), real)

    (slope,) = torch.autograd.grad(inconsistency(clean), clean)
    perturbed = (clean + epsilon * slope.sign()).detach()
    loss = nn.functional.cross_entropy(net.call(soft.tensors, inputs), labels)
    return loss, inconsistency(perturbed)


def _texts(network: NetSetting) -> Examples:
    data = synthetic_data("crow", network)
    if data.inputs.is_floating_point() or data.labels.dim() > 1:
        raise UserError("crow works on texts with one class each, and the data are none; leave it out")
    return data


def _hidden(soft: Soft, values: Tensor, inputs: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Return the embeddings and each block's output.

    Raises:
        UserError: outputs of several widths.
    """
    found = [values]

    def see(module: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    handles = [soft.net.module.get_submodule(name).register_forward_hook(see) for name in names]
    try:
        soft.logits(values, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if len({tuple(state.shape) for state in found}) > 1:
        raise UserError("crow compares the outputs of blocks of equal width, and those of this network differ; leave it out")
    return found
