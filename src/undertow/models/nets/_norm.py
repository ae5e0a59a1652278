"""Normalisation layers that the image networks share."""

from __future__ import annotations

from math import gcd

from torch import nn

from undertow.core.errors import UserError


def norm_layer(network: str, norm: str, channels: int) -> nn.Module:
    """Return the layer that ``norm`` names, for ``channels`` channels.

    ``group``: GroupNorm with 8 groups (fewer where 8 does not divide the channels). It has no running statistics, so
    that every number a participant sends is a trained parameter, and a batch of few classes does not shift another
    participant's normalisation (Hsieh et al. 2020, section 5). ``batch``: BatchNorm, whose running mean and variance are
    state that FedAvg averages too. ``none``: nothing.

    Args:
        network: its name, for the error.
        norm: ``group``, ``batch`` or ``none``.
        channels: at least 1.

    Raises:
        UserError: another name.
    """
    if norm == "group":
        return nn.GroupNorm(gcd(8, channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    raise UserError(f"network '{network}': norm = {norm}: it is group, batch or none; choose one")


def image_shape(network: str, inputs: tuple[int, ...], width: int) -> tuple[int, int, int]:
    """Check what a network is built for and return (channels, height, width of an image).

    Raises:
        UserError: the inputs are no images, or the network's ``width`` is no whole number from 1.
    """
    if len(inputs) != 3:
        raise UserError(f"network '{network}' takes images [channels, height, width], one input is {list(inputs)}; choose another")
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise UserError(f"network '{network}': width = {width}: the number of channels is a whole number from 1; correct it")
    return inputs[0], inputs[1], inputs[2]
