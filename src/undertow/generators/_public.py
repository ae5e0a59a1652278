"""What the small generators share: the public data that they are made from, and classes in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.generators.contract import Order

T = TypeVar("T")


def parts(order: Order) -> list[int]:
    """Return how many samples each class gets: equal parts of ``order.count``, one more for the first ones where there is a
    rest."""
    each, rest = divmod(order.count, len(order.names))
    return [each + (c < rest) for c in range(len(order.names))]


def in_turn(by_class: Sequence[Sequence[T]]) -> tuple[list[T], list[int]]:
    """Return samples given by class with one of each class after the other, and their labels; any first part is as balanced."""
    longest = max((len(own) for own in by_class), default=0)
    pairs = [(own[i], label) for i in range(longest) for label, own in enumerate(by_class) if i < len(own)]
    return [sample for sample, _ in pairs], [label for _, label in pairs]


def public_texts(order: Order, name: str) -> list[list[str]]:
    """Return the public texts of each class.

    Args:
        order: of kind ``text``.
        name: of the generator, for errors.

    Raises:
        UserError: no public data, or none of a class.
    """
    inputs, labels = _public(order, name)
    found: list[list[str]] = [[] for _ in order.names]
    for text, label in zip(inputs, labels, strict=True):
        if not isinstance(text, str):
            raise UserError(f"synthetic.generator = {name}: the public data are no texts; choose a generator for images")
        if text.strip():
            found[label].append(text)
    return _each(found, order, name)


def public_images(order: Order, name: str) -> list[Tensor]:
    """Return the public images of each class, float32 ``[n_c, channels, height, width]``.

    Args:
        order: of kind ``images``.
        name: of the generator, for errors.

    Raises:
        UserError: no public data, or none of a class.
    """
    inputs, labels = _public(order, name)
    if not isinstance(inputs, Tensor):
        raise UserError(f"synthetic.generator = {name}: the public data are no images; choose a generator for texts")
    of = torch.tensor(labels, dtype=torch.int64)
    return _each([inputs[of == label].to(torch.float32) for label in range(len(order.names))], order, name)


def _public(order: Order, name: str) -> tuple[Sequence[str] | Tensor, list[int]]:
    if order.public is None or not len(order.public.labels):
        raise UserError(
            f"synthetic.generator = {name} is made from data that no client holds, and none are left over; lower data.train or "
            "data.test, or take file or, for texts, causal-lm or endpoint"
        )
    return order.public.inputs, order.public.labels


def _each(found: list[T], order: Order, name: str) -> list[T]:
    for label, own in zip(order.names, found, strict=True):
        if not len(own):  # type: ignore[arg-type]
            raise UserError(
                f"synthetic.generator = {name}: none of the data that no client holds are of class '{label}'; lower data.train "
                "or data.test, or take file or, for texts, causal-lm or endpoint"
            )
    return found
