"""The recurrent network of the paper's word prediction, in plain tensor operations so that clients can be trained side by side."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undertow.models.net import NETS

#: Uniform range of embeddings and decoder at the start; as PyTorch's word language model, which the paper's code builds on.
_EMBEDDING_RANGE = 0.1


class Lstm(nn.Module):
    """A word model: embedding, LSTM layers, decoder.

    For the input x_t of a layer and its state (h, c), with the gates i, f, g, o in this order as in ``torch.nn.LSTM``::

        (i, f, g, o) = W_ih x_t + b_ih + W_hh h + b_hh
        c <- sigmoid(f) * c + sigmoid(i) * tanh(g)
        h <- sigmoid(o) * tanh(c)

    The state is zero before the first word of a sequence. The products W_ih x_t of all t are one multiplication, those with
    W_hh one for each step. ``torch.nn.LSTM`` computes the same but not under ``torch.func.vmap`` with a weight for each
    client. Parameters are named as its own are; as in every module of torch, their start comes from torch's global
    generator, which the caller seeds.

    With ``tied`` the decoder's matrix is the embedding's: one parameter, so that it is averaged once.

    Args:
        words: size of the dictionary.
        hidden: size of embedding and states.
        layers: LSTM layers.
        dropout: share of embedding and of each layer's output set to zero in training, where noise is given.
        tied: use the embedding as decoder.
    """

    def __init__(self, words: int, hidden: int, layers: int, dropout: float, tied: bool) -> None:
        super().__init__()
        self.hidden, self.layers, self.dropout = hidden, layers, dropout
        self.embedding = _uniform((words, hidden), _EMBEDDING_RANGE)
        reach = hidden**-0.5
        for layer in range(layers):
            self.register_parameter(f"weight_ih_l{layer}", _uniform((4 * hidden, hidden), reach))
            self.register_parameter(f"weight_hh_l{layer}", _uniform((4 * hidden, hidden), reach))
            self.register_parameter(f"bias_ih_l{layer}", _uniform((4 * hidden,), reach))
            self.register_parameter(f"bias_hh_l{layer}", _uniform((4 * hidden,), reach))
        self.decoder = None if tied else _uniform((words, hidden), _EMBEDDING_RANGE)
        self.decoder_bias = nn.Parameter(torch.zeros(words))

    def noise_shapes(self, n: int, length: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the noise that dropout takes for ``n`` sequences; none where there is no dropout."""
        return ((n, length, self.hidden),) * (self.layers + 1) if self.dropout else ()

    def forward(self, inputs: Tensor, noise: tuple[Tensor, ...] | None = None) -> Tensor:
        """Return the logits of the next word after each word.

        Args:
            inputs: int64 ``[n, length]``.
            noise: uniform in [0, 1), of the shapes of :meth:`noise_shapes`; None = no dropout.

        Returns:
            ``[n, length, words]``.
        """
        x = self._drop(F.embedding(inputs, self.embedding), noise, 0)
        for layer in range(self.layers):
            x = self._drop(self._layer(x, layer), noise, layer + 1)
        return F.linear(x, self.embedding if self.decoder is None else self.decoder, self.decoder_bias)

    def _layer(self, x: Tensor, layer: int) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = (getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        steps = F.linear(x, w_ih, b_ih + b_hh).unbind(dim=1)
        h = c = x.new_zeros(x.shape[0], self.hidden)
        found = []
        for t, step in enumerate(steps):
            # the state before the first word is zero, so there is nothing to multiply
            i, f, g, o = (step + F.linear(h, w_hh) if t else step).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            found.append(h)
        return torch.stack(found, dim=1)

    def _drop(self, x: Tensor, noise: tuple[Tensor, ...] | None, place: int) -> Tensor:
        if not noise or not self.dropout:
            return x
        return x * (noise[place] >= self.dropout) / (1 - self.dropout)


@NETS.register("lstm", source="Bagdasaryan et al. 2020, section 4.2 (2 layers of 200, tied); dropout 0.2 in their code")
def lstm(
    inputs: tuple[int, ...], outputs: int, hidden: int = 200, layers: int = 2, dropout: float = 0.2, tied: bool = True
) -> nn.Module:
    """Next-word LSTM of ``layers`` layers with embedding and states of size ``hidden``; ``tied``: decoder = embedding.

    Args:
        inputs: shape of one input, ``(length,)``; sequences of any length can be read.
        outputs: words of the dictionary.
        hidden: from 1.
        layers: from 1.
        dropout: from 0, below 1; on the embedding and on each layer's output.
        tied: one matrix for embedding and decoder.

    Raises:
        ValueError: inputs that are no rows of words, or an option outside its range.
    """
    if len(inputs) != 1:
        raise ValueError(f"inputs of shape {inputs} ({prod(inputs)} values) are no words; lstm is for task next-word")
    for name, value in (("hidden", hidden), ("layers", layers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} = {value!r} is no whole number from 1")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout!r} is no share from 0, below 1")
    if not isinstance(tied, bool):
        raise ValueError(f"tied = {tied!r} is neither true nor false")
    return Lstm(outputs, hidden, layers, float(dropout), tied)


def _uniform(shape: tuple[int, ...], reach: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-reach, reach))
