"""Classification of images or texts by a small network (Bagdasaryan et al. 2020, section 5.1; Li, Wu, Wang 2024)."""

from __future__ import annotations

from torch import Tensor

from undertow.data.texts import TextPopulation
from undertow.tasks.over_tensors import OverTensors

#: Characters of a text that are shown of its begin and of its end, where a trigger may stand.
_BEGIN, _END = 120, 60


class Classification(OverTensors):
    """Images or texts with one label each."""

    kind = "classification"

    def shown(self, example: Tensor, place: int) -> str:
        """Return a text, shortened in the middle; of an image its size and its mean value by channel, which tell images apart."""
        if isinstance(self.population, TextPopulation):
            text = self.population.vocabulary.decode(example)
            return text if len(text) <= _BEGIN + _END else f"{text[:_BEGIN].rstrip()} … {text[-_END:].lstrip()}"
        _, height, width = example.shape
        means = ", ".join(f"{float(channel.mean()):.3f}" for channel in example)
        return f"image {height} x {width}, mean {means}"
