"""Classification of images by a small network (Bagdasaryan et al. 2020, section 5.1)."""

from __future__ import annotations

from torch import Tensor

from undertow.tasks.over_tensors import OverTensors


class Classification(OverTensors):
    """Images with one label each."""

    def shown(self, example: Tensor, place: int) -> str:
        """Return the size of an image and its mean value by channel, which tell images apart in a list."""
        _, height, width = example.shape
        means = ", ".join(f"{float(channel.mean()):.3f}" for channel in example)
        return f"image {height} x {width}, mean {means}"
