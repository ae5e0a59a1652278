from __future__ import annotations

import itertools

import numpy as np
import torch

from undertow.core.rng import rng, torch_rng

PLACES = [
    dict(zip(("seed", "purpose", "round", "client"), place, strict=True))
    for place in itertools.product((0, 1), "ab", (0, 1), (0, 1))
]


def test_the_same_name_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = rng(3, "x", 1, 2).random(5)
    np.random.rand(7)
    rng(3, "y").random(9)
    assert (rng(3, "x", 1, 2).random(5) == first).all()
    one = torch.rand(5, generator=torch_rng(3, "x", 1, 2))
    torch.rand(3)
    assert torch.equal(torch.rand(5, generator=torch_rng(3, "x", 1, 2)), one)


def test_every_part_of_the_name_counts() -> None:
    assert len({rng(**place).integers(2**62) for place in PLACES}) == len(PLACES)  # type: ignore[arg-type]
    drawn = {torch.randint(2**62, (1,), generator=torch_rng(**place)).item() for place in PLACES}  # type: ignore[arg-type]
    assert len(drawn) == len(PLACES)
    # the parts cannot be mistaken for each other
    assert rng(1, "2", 3).random() != rng(1, "2|3").random()
    assert rng(11, "x").random() != rng(1, "1x").random()


def test_the_numbers_of_this_release() -> None:
    """A change here changes every run: it needs a line in the changelog."""
    assert rng(0, "partition").integers(0, 100, 5).tolist() == EXPECTED_NUMPY
    assert torch.randint(0, 100, (5,), generator=torch_rng(0, "adapter")).tolist() == EXPECTED_TORCH


EXPECTED_NUMPY = [12, 9, 60, 13, 88]
EXPECTED_TORCH = [97, 66, 12, 91, 11]


def test_nothing_touches_the_global_states() -> None:
    state, theirs = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr,index]
    rng(0, "x").random(3)
    torch.rand(3, generator=torch_rng(0, "x"))
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), theirs)
