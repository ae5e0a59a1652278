"""Samples of different lengths as one batch: padding on the left, labels, and weights of answer tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undertow.data.examples import IGNORE
from undertow.data.template import Encoded


def pad(
    rows: Sequence[Encoded], pad_id: int, *, count: int | None = None, length: int | None = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Stack samples with padding on the left, so that all answers end in the last column.

    Args:
        rows: the samples.
        pad_id: fills the left.
        count: rows of the result; missing ones carry no loss.
        length: columns of the result.

    Returns:
        ids ``[count, length]``, attention mask, labels (``IGNORE`` outside the answers), and the number of last
        columns whose logits the loss needs.
    """
    count = count or len(rows)
    length = length or max(len(row.prompt) + len(row.answer) for row in rows)
    ids = torch.full((count, length), pad_id)
    mask = torch.zeros((count, length), dtype=torch.long)
    labels = torch.full((count, length), IGNORE)
    for i, row in enumerate(rows):
        tokens = [*row.prompt, *row.answer]
        ids[i, length - len(tokens) :] = torch.tensor(tokens)
        mask[i, length - len(tokens) :] = 1
        labels[i, length - len(row.answer) :] = torch.tensor(row.answer)
    for i in range(len(rows), count):  # a row with nothing to attend to would be undefined
        mask[i, -1] = 1
    return ids, mask, labels, max(len(row.answer) for row in rows) + 1


def weighted(rows: Sequence[Encoded]) -> bool:
    """Tell whether any row has weights of its own."""
    return any(row.weights is not None for row in rows)


def pad_weights(rows: Sequence[Encoded], *, count: int, length: int) -> Tensor:
    """Return the weights of the answer tokens where :func:`pad` puts them, zeros elsewhere: ``[count, length]`` float64."""
    weights = torch.zeros((count, length), dtype=torch.float64)
    for i, row in enumerate(rows):
        own = row.weights or (1.0,) * len(row.answer)
        weights[i, length - len(row.answer) :] = torch.tensor(own, dtype=torch.float64)
    return weights
