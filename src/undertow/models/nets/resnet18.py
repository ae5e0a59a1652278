"""ResNet-18 as it is used on CIFAR-10: the image model of "How To Backdoor Federated Learning"."""

from __future__ import annotations

from torch import Tensor, nn

from undertow.models.net import NETS
from undertow.models.nets._norm import image_shape, norm_layer


@NETS.register("resnet18", source="He et al. 2016; HTB section 4.1 (CIFAR-10)")
def resnet18(inputs: tuple[int, ...], outputs: int, width: int = 64, norm: str = "group") -> nn.Module:
    """Eight residual blocks in four stages of ``width`` times 1, 2, 4, 8 channels, a 3 x 3 first layer and no first pooling.

    HTB's code normalises by batch (``norm=batch``); the default is by group, which has no running statistics that FedAvg
    would have to average (:func:`undertow.models.nets._norm.norm_layer`). Inputs are not standardised by the data set's
    mean and deviation, which the first normalisation makes needless.

    Args:
        inputs: shape of one image, (channels, height, width).
        outputs: number of classes.
        width: channels of the first stage; 64 in the paper (11.2 million parameters), 16 trains on a CPU (0.7 million).
        norm: ``group``, ``batch`` or ``none``.

    Raises:
        UserError: no image, or an option outside its rule.
    """
    channels, _, _ = image_shape("resnet18", inputs, width)
    return _ResNet(channels, outputs, width, norm)


class _Block(nn.Module):
    """x -> relu(f(x) + shortcut(x)), f = conv 3x3, norm, relu, conv 3x3, norm (He et al. 2016, figure 2)."""

    def __init__(self, channels: int, made: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, made, 3, stride, padding=1, bias=False)
        self.norm1 = norm_layer("resnet18", norm, made)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(made, made, 3, padding=1, bias=False)
        self.norm2 = norm_layer("resnet18", norm, made)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == made
            else nn.Sequential(nn.Conv2d(channels, made, 1, stride, bias=False), norm_layer("resnet18", norm, made))
        )
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``[n, made, height / stride, width / stride]``."""
        hidden = self.relu1(self.norm1(self.conv1(inputs)))
        found: Tensor = self.relu2(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))
        return found


class _ResNet(nn.Module):
    def __init__(self, channels: int, outputs: int, width: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = norm_layer("resnet18", norm, width)
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        made = width
        for stage in range(4):
            wider = width * 2**stage
            blocks += [_Block(made, wider, 1 if stage == 0 else 2, norm), _Block(wider, wider, 1, norm)]
            made = wider
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(made, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``[n, outputs]`` for images ``[n, channels, height, width]``."""
        features = self.blocks(self.relu(self.norm(self.conv(inputs))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits
