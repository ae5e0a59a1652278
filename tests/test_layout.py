from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undertow.core.layout import Layout

SHAPES = {"m.q.lora_A": (2, 3), "m.q.lora_B": (4, 2), "m.v.lora_A": (2, 3), "m.v.lora_B": (5, 2)}


def test_columns_follow_the_order_of_the_names() -> None:
    layout = Layout.of(SHAPES, scale=2.0)
    assert layout.size == sum(layout.sizes) == 6 + 8 + 6 + 10
    assert [slot.start for slot in layout.slots] == [0, 6, 14, 20]
    named = layout.unflatten(torch.arange(30.0))
    assert named["m.q.lora_B"].tolist() == [[6, 7], [8, 9], [10, 11], [12, 13]]


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=5))
def test_flatten_undoes_unflatten(shapes: list[list[int]]) -> None:
    layout = Layout.of({f"t{i}": tuple(shape) for i, shape in enumerate(shapes)})
    flat = torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layout.flatten(layout.unflatten(flat)), flat)


def test_a_stack_is_split_as_views() -> None:
    layout = Layout.of(SHAPES)
    stack = torch.zeros(3, layout.size)
    pairs = layout.pairs(stack)
    assert [(name, tuple(a.shape), tuple(b.shape)) for name, a, b in pairs] == [
        ("m.q", (3, 2, 3), (3, 4, 2)),
        ("m.v", (3, 2, 3), (3, 5, 2)),
    ]
    pairs[1][2][1] += 1
    assert stack[1, 20:].sum() == 10
    assert stack.sum() == 10


def test_what_does_not_fit_is_refused() -> None:
    layout = Layout.of(SHAPES)
    good = layout.unflatten(torch.zeros(layout.size))
    with pytest.raises(ValueError, match="the vector has 29 columns, the layout 30"):
        layout.unflatten(torch.zeros(29))
    cases = {
        "1 tensor names differ from the layout, such as x": {**good, "x": torch.zeros(1)},
        "such as m.v.lora_B": {name: t for name, t in good.items() if name != "m.v.lora_B"},
        "has shape": {**good, "m.q.lora_A": torch.zeros(3, 2)},
        "NaN or infinity": {**good, "m.q.lora_A": torch.full((2, 3), float("nan"))},
    }
    for message, tensors in cases.items():
        with pytest.raises(ValueError, match=message):
            layout.flatten(tensors)


def test_the_empty_layout_has_no_columns() -> None:
    assert Layout.of({}).size == 0
