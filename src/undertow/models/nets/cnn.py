"""A small convolutional network for images of any size."""

from __future__ import annotations

from torch import Tensor, nn

from undertow.models.net import NETS
from undertow.models.nets._norm import image_shape, norm_layer


@NETS.register("cnn", source="ours; GroupNorm in place of BatchNorm after Hsieh et al. 2020")
def cnn(inputs: tuple[int, ...], outputs: int, width: int = 16, hidden: int = 64, norm: str = "group") -> nn.Module:
    """Convolutions with pooling until a side is 4 or less, then two linear layers.

    Channels are ``width`` in the first layer and double with each pooling, up to ``4 * width``. 38,378 parameters for
    8 x 8 digits, 127,114 for 32 x 32 colour images.

    Args:
        inputs: shape of one image, (channels, height, width).
        outputs: number of classes.
        width: channels of the first layer, at least 1.
        hidden: units between the two linear layers, at least 1.
        norm: ``group``, ``none``, or ``batch`` (:func:`undertow.models.nets._norm.norm_layer`).

    Raises:
        UserError: no image, or an option outside its rule.
    """
    channels, height, across = image_shape("cnn", inputs, width)
    image_shape("cnn", inputs, hidden)
    layers: list[nn.Module] = [*_convolution(channels, width, norm)]
    made = width
    while min(height, across) > 4:
        wider = min(2 * made, 4 * width)
        layers += [*_convolution(made, wider, norm), nn.MaxPool2d(2)]
        made, height, across = wider, height // 2, across // 2
    return _Cnn(layers, made * height * across, hidden, outputs)


def _convolution(channels: int, made: int, norm: str) -> list[nn.Module]:
    return [nn.Conv2d(channels, made, 3, padding=1), norm_layer("cnn", norm, made), nn.ReLU()]


class _Cnn(nn.Module):
    def __init__(self, layers: list[nn.Module], features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``[n, outputs]`` for images ``[n, channels, height, width]``."""
        logits: Tensor = self.head(self.features(inputs))
        return logits
