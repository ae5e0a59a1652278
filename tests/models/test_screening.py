"""Screening gives the same token as all logits do."""

from __future__ import annotations

import pytest
import torch

from undertow.models import head as module
from undertow.models.head import Head
from undertow.models.screening import Screen, largest


def weight(seed: int, words: int = 5000, width: int = 48) -> torch.Tensor:
    return torch.randn(words, width, generator=torch.Generator().manual_seed(seed))


def best(w: torch.Tensor, x: torch.Tensor) -> list[int]:
    """The first token of the largest logit in float64: argmax names no particular one of equals."""
    logits = x.double() @ w.double().t()
    return [int((row == row.max()).nonzero()[0]) for row in logits]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize(("seed", "words"), [(0, 5000), (1, 5000), (2, 4999), (3, 5120), (4, 77)])
def test_the_likeliest_token_is_that_of_exact_logits(seed: int, words: int, scale: float) -> None:
    w, x = weight(seed, words), scale * weight(seed + 100, 40)
    found = Screen.of(w).likeliest(x)
    assert found is not None
    assert found.tolist() == best(w, x)


def test_tokens_that_bfloat16_cannot_tell_apart_are_told_apart() -> None:
    """Each row's best token has a rival, further up and further down the list, that is a 1e-4 less likely."""
    w, x = weight(0), weight(1, 30)
    for i, token in enumerate(best(w, x)):
        for place in (i, 4000 + i):
            w[place] = w[token] * (1 - 1e-4) if place != token else w[token]
    scores = x.bfloat16() @ w.bfloat16().t()
    assert scores.argmax(1).tolist() != best(w, x), "the rounded scores alone would be wrong"
    found = Screen.of(w).likeliest(x)
    assert found is not None
    assert found.tolist() == best(w, x)


def test_of_equal_tokens_the_first_is_taken() -> None:
    w, x = weight(2), weight(3, 30)
    again = torch.cat([w, w])
    found = Screen.of(again).likeliest(x)
    assert found is not None
    assert found.tolist() == best(w, x)


@pytest.mark.parametrize("spoil", ["no difference", "no number", "infinite"])
def test_where_nothing_can_be_ruled_out_all_logits_are_needed(spoil: str) -> None:
    w, x = weight(4), weight(5, 3)
    if spoil == "no difference":
        w = w[:1].repeat(5000, 1)
    else:
        x[1, 7] = float("nan") if spoil == "no number" else float("inf")
    assert Screen.of(w).likeliest(x) is None


@pytest.mark.parametrize("speedup", [3.0, 1.0])
def test_a_large_head_is_screened_where_bfloat16_is_faster(monkeypatch: pytest.MonkeyPatch, speedup: float) -> None:
    used: list[int] = []
    real = Screen.likeliest
    monkeypatch.setattr(Screen, "likeliest", lambda self, x: (used.append(len(x)), real(self, x))[1])
    monkeypatch.setattr(module, "speedup", lambda _: speedup)
    monkeypatch.setattr(module, "LARGE", 5000)
    monkeypatch.setattr(module, "WHOLE", 0)
    monkeypatch.setattr(module, "PIECE", 5000 * 2 * 16)
    w, x = weight(6), weight(7, 36).view(4, 9, 48)
    assert Head(w).likeliest(x).flatten().tolist() == best(w, x.flatten(0, 1))
    assert used == ([12, 12, 12] if speedup > 2 else [])
    used.clear()
    for other in (Head(w[:4999]), Head(w, multiplier=0.5), Head(w, cap=3.0), Head(w.bfloat16()), Head(w, bias=w[:, 0])):
        assert other.likeliest(x.to(other.weight.dtype)).shape == (4, 9)
    assert used == []
    w.fill_(1.0)
    assert Head(w).likeliest(x).tolist() == Head(w).logits(x).argmax(-1).tolist()


@pytest.mark.parametrize("words", [1, 3, 255, 256, 4999, 5120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_is_that_of_argmax(words: int, dtype: torch.dtype) -> None:
    """In bfloat16 many are equal, across blocks and within one; a NaN counts as the largest, as it does there."""
    scores = weight(6, 50, words).round(decimals=1).to(dtype)
    scores[3, words // 2] = float("nan")
    scores[4] = -float("inf")
    assert largest(scores).tolist() == scores.argmax(1).tolist()
