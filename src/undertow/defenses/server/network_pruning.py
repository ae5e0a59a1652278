"""Fine-pruning in its paper's own form: neurons of the last convolution, or of the last block, that clean data hardly use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.data.examples import IGNORE, Examples
from undertow.defenses.contexts import NetSetting
from undertow.defenses.server.server_tuning import synthetic_data, tune_network
from undertow.models.bounds import channels, places, watched
from undertow.models.net import Net

#: Shares that are tried.
_STEPS = 20

#: Examples of a pass that needs no gradient.
_ROWS = 256


def prune_network(
    network: NetSetting, state: Tensor, share: float | None, drop: float, passes: int
) -> tuple[Tensor, dict[str, Any]]:
    """Return the state ``[D]`` with the least active channels of one place cut, and tuned; and a report (Liu et al. 2018, section
    3.3).

    The place is the last activation of images, the last of all where there are none, whose channels the weights of one module
    decide alone; a channel is cut by setting these to 0, and stays cut while the rest is tuned. As
    :class:`undertow.defenses.server.fine_pruning.FinePruning` says, the least active share is the last that costs at most ``drop``
    of the accuracy.

    Args:
        network: with synthetic data, which serve as clean ones.
        state: ``[D]``.
        share: of the channels; None = as far as the accuracy allows.
        drop: of the accuracy.
        passes: of tuning.

    Raises:
        UserError: no synthetic data, or no such place.
    """
    data, net = synthetic_data("fine-pruning", network), network.net
    before, activity = _looked_at(net, state, data)
    place, feeder = _place(net, state, data, activity)
    order = torch.sort(activity[place], stable=True).indices
    cut, after, keep = 0.0, before, torch.ones(net.layout.size)
    for step in [share] if share is not None else [i / _STEPS for i in range(1, _STEPS)]:
        mask = kept_channels(net, feeder, order[: int(step * len(order))])
        accuracy = _looked_at(net, state * mask, data)[0]
        if share is None and accuracy < before - drop:
            break
        cut, after, keep = step, accuracy, mask
    tuned = tune_network(network, state * keep, data, passes, keep=keep)
    return tuned, {"pruned": True, "place": place, "share": cut, "before": before, "after": after}


def kept_channels(net: Net, feeder: str, cut: Tensor) -> Tensor:
    """Return 0 for the weights and biases of a module's output channels ``cut``, 1 elsewhere: ``[D]``."""
    keep = torch.ones(net.layout.size)
    for name, own in net.of_state(keep).items():
        if name in (f"{feeder}.weight", f"{feeder}.bias"):
            own[cut] = 0.0
    return keep


@torch.no_grad()
def _looked_at(net: Net, state: Tensor, data: Examples) -> tuple[float, dict[str, Tensor]]:
    """Return the accuracy on the data, and every place's mean |activation| by channel, ``[C]`` float64; images' places last."""
    sums: dict[str, Tensor] = {}
    images: set[str] = set()
    counts: dict[str, int] = {}
    right = counted = 0
    tensors = net.of_state(state.to(next(net.module.parameters()).device))
    device = next(iter(tensors.values())).device

    def see(name: str, output: Tensor) -> None:
        rows = channels(output)
        total = rows.abs().sum(0, dtype=torch.float64).cpu()
        sums[name] = sums[name] + total if name in sums else total
        counts[name] = counts.get(name, 0) + len(rows)
        if output.dim() == 4:
            images.add(name)

    with watched(net.module, places(net.module), see):
        for start in range(0, len(data), _ROWS):
            block = data.take(range(start, min(start + _ROWS, len(data))))
            said = net.call(tensors, block.inputs.to(device)).argmax(-1).cpu()
            right += int(((said == block.labels) & (block.labels != IGNORE)).sum())
            counted += int((block.labels != IGNORE).sum())
    means = {name: total / counts[name] for name, total in sums.items()}
    ordered = sorted(means, key=lambda name: name in images)
    return right / max(1, counted), {name: means[name] for name in ordered}


@torch.no_grad()
def _place(net: Net, state: Tensor, data: Examples, activity: dict[str, Tensor]) -> tuple[str, str]:
    """Return the last place of ``activity`` that can be cut, and the module whose weights decide its channels.

    Which module feeds a place is not written anywhere, so it is tried: with its weights at 0 the place must be 0 everywhere.
    """
    modules = [name for name, _ in net.module.named_modules()]
    named = net.of_state(state)
    device = next(net.module.parameters()).device
    few = data.inputs[:8].to(device)
    for place in reversed(activity):
        width = len(activity[place])
        for feeder in reversed(modules[: modules.index(place)]):
            weight = named.get(f"{feeder}.weight")
            if weight is None or weight.shape[0] != width:
                continue
            peaks: list[float] = []
            mute = (state * kept_channels(net, feeder, torch.arange(width))).to(device)

            def see(name: str, output: Tensor, peaks: list[float] = peaks) -> None:
                peaks.append(float(output.abs().max()))

            with watched(net.module, [place], see):
                net.call(net.of_state(mute), few)
            if peaks and max(peaks) == 0:
                return place, feeder
    raise UserError("fine-pruning finds no activation of this network whose channels one layer's weights decide; leave it out")
