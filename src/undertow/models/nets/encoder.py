"""A small transformer encoder for texts, in plain tensor operations so that clients can be trained side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from undertow.models.net import NETS

#: Standard deviation of the embeddings at the start; as BERT's (Devlin et al. 2019, published code).
_SPREAD = 0.02

_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class Encoder(nn.Module):
    """Embeddings and learned positions, transformer blocks, the mean over all places that are not padding, a linear head.

    Padding is the number 0: no place attends to it and the mean leaves it out, so that how far a text is padded changes
    nothing. A row of padding alone, as batches are filled up with, has finite logits.

    Args:
        ids: how many numbers an input can hold.
        length: of an input, at most.
        outputs: number of classes.
        width: of a place's vector.
        layers: blocks.
        heads: of each block's attention, a divisor of ``width``.
        act: ``gelu`` or ``relu``.
    """

    def __init__(self, ids: int, length: int, outputs: int, width: int, layers: int, heads: int, act: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(_Block(width, heads, act) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        nn.init.normal_(self.embedding.weight, std=_SPREAD)
        nn.init.normal_(self.positions, std=_SPREAD)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``[n, outputs]`` for texts int64 ``[n, L]``, L at most ``length``."""
        real = inputs != 0
        x = self.embedding(inputs) + self.positions[: inputs.shape[1]]
        # Finite, so that a row of padding alone attends evenly instead of dividing zero by zero.
        mask = (~real).to(x.dtype)[:, None, None] * torch.finfo(x.dtype).min  # [n, 1, 1, L]
        for block in self.blocks:
            x = block(x, mask)
        weight = real.to(x.dtype)
        mean = (self.norm(x) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
        logits: Tensor = self.head(mean)
        return logits


class _Block(nn.Module):
    """x <- x + attention(norm(x)), then x <- x + mlp(norm(x)) (pre-norm: Xiong et al. 2020, figure 1b)."""

    def __init__(self, width: int, heads: int, act: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, act)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``[n, L, width]``; ``mask`` is added to the scores ``[n, heads, L, L]``."""
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width))
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class _Mlp(nn.Module):
    """Two linear layers with a module ``act`` between, whose outputs defenses can bound."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.act = _ACTIVATIONS[act]()
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(self.act(self.up(x)))
        return found


@NETS.register("encoder", source="ours; Vaswani et al. 2017 (encoder), Xiong et al. 2020 (pre-norm)")
def encoder(
    inputs: tuple[int, ...], outputs: int, ids: int, width: int = 64, layers: int = 2, heads: int = 2, act: str = "gelu"
) -> nn.Module:
    """A transformer encoder over numbered words or tokens; averages all places and classifies.

    Args:
        inputs: shape of one text, (length,).
        outputs: number of classes.
        ids: how many numbers a text can hold, 0 = padding among them.
        width: of a place's vector, from 1.
        layers: blocks, from 1.
        heads: of the attention, a divisor of ``width``.
        act: ``gelu`` or ``relu``, between the linear layers of a block: the module ``blocks.N.mlp.act``.

    Raises:
        ValueError: inputs that are no rows of numbers, or an option outside its rule.
    """
    if len(inputs) != 1:
        raise ValueError(f"inputs of shape {inputs} are no texts; encoder is for classes of texts")
    for name, value in (("width", width), ("layers", layers), ("heads", heads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} = {value!r} is no whole number from 1")
    if width % heads:
        raise ValueError(f"heads = {heads} does not divide width = {width}")
    if act not in _ACTIVATIONS:
        raise ValueError(f"act = {act!r} is neither gelu nor relu")
    return Encoder(ids, inputs[0], outputs, width, layers, heads, act)
