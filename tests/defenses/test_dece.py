from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import make, same_bits_when_resumed
from torch.nn import functional

from undertow.config import Config, Lora, Training
from undertow.core.errors import UserError
from undertow.data.template import Encoded
from undertow.defenses.loss.dece import DeCE, DeceptiveCrossEntropy
from undertow.models.causal_lm import CausalLM
from undertow.models.token_loss import token_losses
from undertow.training import batched, sequential
from undertow.training.local import Job

Make = Callable[..., Config]
Load = Callable[..., CausalLM]


def written_out(logits: torch.Tensor, targets: torch.Tensor, s: float, a: float) -> torch.Tensor:
    """The definition, one token and one word of the vocabulary after the other."""
    found = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        weights = torch.tensor(row, dtype=torch.float64).exp()
        total = 0.0
        for v, p in enumerate((weights / weights.sum()).tolist()):
            q = 1 - s if v == target else s / (len(row) - 1)
            total -= q * float(torch.tensor(a * max(p, 1e-7) + (1 - a) * q, dtype=torch.float64).log()) if q else 0.0
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


@given(s=st.floats(0, 0.9), a=st.floats(0.01, 1.0), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_loss_is_its_definition(s: float, a: float, seed: int) -> None:
    logits = 8 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets = torch.tensor([0, 6, 3, 3, 1])
    torch.testing.assert_close(token_losses(logits, targets, DeceptiveCrossEntropy(s, a)), written_out(logits, targets, s, a))


def test_without_smoothing_and_blending_it_is_cross_entropy_and_with_smoothing_torchs_own() -> None:
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 10, 4, 4, 2, 7])
    plain = functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(token_losses(logits, targets, DeceptiveCrossEntropy(0.0, 1.0)), plain)
    # torch spreads its smoothing over all V words, DeCE over the V - 1 others
    smooth = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=0.05 * 11 / 10)
    torch.testing.assert_close(token_losses(logits, targets, DeceptiveCrossEntropy(0.05, 1.0)), smooth)


def test_a_token_that_the_model_finds_impossible_has_a_bounded_loss_and_ignored_ones_none() -> None:
    logits = torch.tensor([[40.0, 0.0, -40.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    each = token_losses(logits, torch.tensor([2, -100]), DeceptiveCrossEntropy(0.05, 0.5))
    assert each[1] == 0
    assert each[0] < -(0.95 * torch.tensor(0.5 * 0.95).log() + 0.05 * torch.tensor(0.5 * 0.025).log())
    (slope,) = torch.autograd.grad(each.sum(), logits)
    assert slope[1].abs().max() == 0
    assert torch.isfinite(slope).all()


def test_the_blend_falls_with_the_round() -> None:
    assert [DeCE(base=0.9).token_loss(t, 99) for t in (1, 2, 40)] == [DeceptiveCrossEntropy(0.05, 0.9**t) for t in (1, 2, 40)]
    assert DeCE().token_loss(3, 3) == DeceptiveCrossEntropy(0.05, 0.985**3)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"smoothing": 1.0}, "smoothing = 1.0 must be below 1"),
        ({"smoothing": -0.1}, "at least 0"),
        ({"base": 0}, "above 0"),
        ({"base": 1.1}, "at most 1"),
    ],
)
def test_parameters_out_of_their_range_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"defense 'dece' with .*{told}"):
        make("dece", **params)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt2-general", "gemma2-general"])
def test_both_trainers_and_all_paths_agree(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind, r=2, alpha=4)
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(3, base.model.config.vocab_size, (9, 10), generator=draw).tolist()
    weights = [None, (1.0, 0.0, 2.0, 1.0)]
    data = [Encoded((1, *row[: 3 + i % 4]), (*row[7:], 2), weights[i % 2]) for i, row in enumerate(words)]
    jobs = [Job(0, data[:6]), Job(1, data[6:])]
    start = 0.05 * torch.randn(base.layout.size, generator=draw)
    training = Training.model_validate({"batch_size": 4, "lr": 1e-3, "schedule": "constant"})
    lora = Lora(r=2, alpha=4, targets="all-linear")
    plain, fast = (
        t.train(base, lora, training, start, jobs, 3, 2, DeceptiveCrossEntropy(0.05, 0.6)) for t in (sequential, batched)
    )
    assert torch.linalg.vector_norm(fast.updates - plain.updates) < 1e-4 * torch.linalg.vector_norm(plain.updates)
    assert fast.losses == pytest.approx(plain.losses, rel=1e-4)


def test_a_run_is_resumed_to_the_same_bits(small_config: Make, tmp_path: Path) -> None:
    config = small_config({"defenses": [{"name": "dece", "params": {"base": 0.7}}], "federation.rounds": 3, "measure.every": 3})
    same_bits_when_resumed(config, tmp_path, 3)
