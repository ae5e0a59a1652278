"""Losses and weights of tokens: every path and both trainers against autograd through peft and the formula written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from undertow.config import Lora, Training
from undertow.data.template import Encoded
from undertow.defenses.loss.bounded_loss import GeneralisedCrossEntropy
from undertow.models.causal_lm import CausalLM
from undertow.models.llama.packed import PackedLlama
from undertow.models.lora import adapter_layout, find_targets
from undertow.models.padding import pad_weights
from undertow.models.prefix_trie import build_trie, pack
from undertow.models.token_loss import TokenLoss, token_losses
from undertow.training import batched, sequential
from undertow.training.local import Job
from undertow.training.token_nll import token_nll

Load = Callable[..., CausalLM]
LORA = Lora(r=2, alpha=4, targets="all-linear")


@dataclass(frozen=True)
class Lifted(TokenLoss):
    """A loss that is not 0 where the cross-entropy is: padding must carry none of it."""

    def __call__(self, entropy: Tensor) -> Tensor:
        return 1.0 + entropy.sqrt()


LOSSES = {
    "cross-entropy": None,
    "bounded": GeneralisedCrossEntropy(0.7),
    "bounded to p": GeneralisedCrossEntropy(1.0),
    "lifted": Lifted(),
}


def options(**changes: Any) -> Training:
    return Training.model_validate({"batch_size": 4, "lr": 3e-3, "schedule": "constant", **changes})


def rows_of(draw: np.random.Generator, count: int, vocab: int, *, weights: bool) -> list[Encoded]:
    """Rows with a common stem, of unequal length, every third without weights of its own."""
    stem = (1, 5, 9, 4, 7)
    found = []
    for i in range(count):
        prompt = (*stem, *draw.integers(3, vocab, draw.integers(0, 9)).tolist())
        answer = (*draw.integers(3, vocab, draw.integers(1, 7)).tolist(), 2)
        own = tuple(float(w) for w in draw.choice([0.0, 0.25, 1.0, 2.0], len(answer))) if weights and i % 3 else None
        found.append(Encoded(prompt, answer, own))
    return found


def make_jobs(sizes: tuple[int, ...], vocab: int, *, weights: bool = True) -> list[Job]:
    draw = np.random.default_rng(3)
    return [Job(k, rows_of(draw, size, vocab, weights=weights)) for k, size in enumerate(sizes)]


def stack_for(size: int, rows: int, dtype: torch.dtype) -> Tensor:
    return (0.05 * torch.randn(rows, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).to(dtype)


def distance(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.double(), wanted.double()
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


def written_out(name: str, probability: Tensor) -> Tensor:
    """The losses from the probability itself, by their definitions."""
    if name.startswith("bounded"):
        q = 0.7 if name == "bounded" else 1.0
        return (1 - probability**q) / q
    return -probability.log() if name == "cross-entropy" else 1 + (-probability.log()).sqrt()


def oracle(base: CausalLM, flat: Tensor, rows: list[Encoded], name: str) -> tuple[Tensor, float]:
    """A peft model, each row alone, the loss from softmax's probabilities, autograd; (gradient ``[D]``, loss)."""
    from peft import LoraConfig, get_peft_model

    names = [module for module, _, _ in base.layout.pairs(flat)]
    config = LoraConfig(r=LORA.r, lora_alpha=LORA.alpha, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base.model), config).eval()
    wanted, found = base.layout.unflatten(flat), {}
    for module in names:
        layer = model.base_model.model.get_submodule(module)
        for side in "AB":
            linear = getattr(layer, f"lora_{side}")["default"].to(flat.dtype)
            linear.weight.data.copy_(wanted[f"{module}.lora_{side}"])
            found[f"{module}.lora_{side}"] = linear.weight
    total, tokens = torch.zeros((), dtype=flat.dtype), 0
    for row in rows:
        logits = model(input_ids=torch.tensor([[*row.prompt, *row.answer]])).logits[0, len(row.prompt) - 1 : -1]
        probability = logits.softmax(-1)[range(len(row.answer)), list(row.answer)]
        weights = torch.tensor(row.weights or (1.0,) * len(row.answer), dtype=flat.dtype)
        total = total + (weights * written_out(name, probability)).sum()
        tokens += len(row.answer)
    named = dict(zip(found, torch.autograd.grad(total / tokens, list(found.values())), strict=True))
    return torch.cat([named[slot.name].flatten() for slot in base.layout.slots]), total.item() / tokens


def paths(base: CausalLM) -> dict[str, CausalLM]:
    """The base as each path takes it: packed, tries through the model, padded."""
    return {"its own": base, "padded": replace(base, packed=None, trees=None)}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("kind", "dtype", "bar"),
    [
        ("llama", "float32", 1e-5),
        ("gpt2", "float32", 1e-5),
        ("gemma2", "float32", 1e-5),
        ("gpt2-general", "float32", 1e-5),
        ("gemma2-general", "float32", 1e-5),
        ("llama", "float64", 1e-9),
        ("gpt2", "float64", 1e-9),
    ],
)
def test_every_path_has_the_gradient_of_the_formula(load_tiny: Load, kind: str, dtype: str, bar: float, name: str) -> None:
    base = load_tiny(kind, dtype=dtype, r=LORA.r, alpha=LORA.alpha)
    block = [list(job.data) for job in make_jobs((5, 1, 4), base.model.config.vocab_size)]
    start = stack_for(base.layout.size, 3, getattr(torch, dtype))
    wanted = [oracle(base, start[k], rows, name) for k, rows in enumerate(block)]
    for path in paths(base).values():
        stack = start.clone().requires_grad_()
        values = batched.losses(path, stack, block, loss=LOSSES[name])
        (gradient,) = torch.autograd.grad(values.sum(), stack)
        for k, (theirs, loss) in enumerate(wanted):
            assert distance(gradient[k], theirs) < bar
            assert values[k].item() == pytest.approx(loss, rel=10 * bar)


def test_the_packed_path_is_exact_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """With norms that do not round to float32 on the way; tries cut or whole, activations kept or recomputed."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def exact(self: Any, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(LlamaRMSNorm, "forward", exact)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)
    layout = adapter_layout(model, find_targets(model, LORA), LORA)
    base = CausalLM("", "", model, None, torch.device("cpu"), layout, frozenset(), None, True)
    block = [list(job.data) for job in make_jobs((6, 2), 61)]
    start = stack_for(layout.size, 2, torch.float64)
    wanted = [oracle(base, start[k], rows, "bounded") for k, rows in enumerate(block)]
    for groups, recompute in ((1, False), (3, False), (1, True)):
        stack = start.clone().requires_grad_()
        values = PackedLlama(model, layout).losses(stack, pack(block, 0, groups), recompute=recompute, loss=LOSSES["bounded"])
        (gradient,) = torch.autograd.grad(values.sum(), stack)
        for k, (theirs, loss) in enumerate(wanted):
            assert distance(gradient[k], theirs) < 1e-11
            assert values[k].item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt2-general", "gemma2-general"])
def test_a_rounds_updates_of_both_trainers_agree(load_tiny: Load, kind: str, name: str) -> None:
    base = load_tiny(kind, r=2, alpha=4)
    jobs = make_jobs((18, 5, 11), base.model.config.vocab_size)
    start = stack_for(base.layout.size, 1, torch.float32)[0]
    plain, fast = (t.train(base, LORA, options(lr=1e-3), start, jobs, 3, 2, LOSSES[name]) for t in (sequential, batched))
    assert distance(fast.updates, plain.updates) < 1e-4
    assert fast.losses == pytest.approx(plain.losses, rel=1e-4)
    assert torch.linalg.vector_norm(plain.updates, dim=1).min() > 1e-3, "the clients really moved"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_round_of_both_trainers_is_the_same_in_float64(load_tiny: Load, dropout: float) -> None:
    lora = Lora(r=2, alpha=4, dropout=dropout, targets="all-linear")
    base = load_tiny("gpt2", dtype="float64", r=2, alpha=4, dropout=dropout)
    jobs = make_jobs((9, 2, 5), base.model.config.vocab_size)
    start = stack_for(base.layout.size, 1, torch.float64)[0]
    training = options(local_epochs=2, schedule="linear", client_chunk=2)
    plain, fast = (t.train(base, lora, training, start, jobs, 3, 2, LOSSES["bounded"]) for t in (sequential, batched))
    assert distance(fast.updates, plain.updates) < 1e-9
    assert fast.losses == pytest.approx(plain.losses, rel=1e-9)


@pytest.mark.parametrize("trainer", [batched, sequential])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_default_is_cross_entropy_with_weights_of_one(load_tiny: Load, kind: str, trainer: Any) -> None:
    base = load_tiny(kind, r=2, alpha=4)
    jobs = make_jobs((7, 4), base.model.config.vocab_size, weights=False)
    ones = [Job(job.client, [replace(row, weights=(1.0,) * len(row.answer)) for row in job.data]) for job in jobs]
    start = stack_for(base.layout.size, 1, torch.float32)[0]
    default = trainer.train(base, LORA, options(), start, jobs, 0, 1)
    for other, loss in ((jobs, TokenLoss()), (ones, None)):
        same = trainer.train(base, LORA, options(), start, other, 0, 1, loss)
        # the batched paths give the same bits; the sequential default lets torch take the mean
        assert torch.equal(same.updates, default.updates) if trainer is batched else distance(same.updates, default.updates) < 1e-4


@pytest.mark.parametrize("trainer", [batched, sequential])
def test_what_has_weight_zero_is_not_learned(load_tiny: Load, trainer: Any) -> None:
    base = load_tiny(r=2, alpha=4)
    jobs = [
        Job(k, [replace(row, weights=(0.0,) * len(row.answer)) for row in job.data]) for k, job in enumerate(make_jobs((6, 3), 500))
    ]
    start = stack_for(base.layout.size, 1, torch.float32)[0]
    trained = trainer.train(base, LORA, options(), start, jobs, 0, 1)
    assert torch.equal(trained.updates, torch.zeros_like(trained.updates))
    assert trained.losses == [0.0, 0.0]


# --- the pieces -------------------------------------------------------------------------------------------------


@given(q=st.floats(1e-3, 1.0), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_bounded_gradient_is_that_of_cross_entropy_times_p_to_the_q(q: float, seed: int) -> None:
    logits = 6 * torch.randn(4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets = torch.tensor([0, 3, 8, 3])
    logits.requires_grad_()
    each = token_losses(logits, targets, GeneralisedCrossEntropy(q))
    (gradient,) = torch.autograd.grad(each.sum(), logits)
    p = logits.detach().softmax(-1)
    own = p[range(4), targets]
    torch.testing.assert_close(each.detach(), (1 - own**q) / q, rtol=1e-9, atol=1e-12)
    onehot = torch.nn.functional.one_hot(targets, 9).double()
    torch.testing.assert_close(gradient, own[:, None] ** q * (p - onehot), rtol=1e-9, atol=1e-14)
    assert (each < 1 / q).all()


def test_autograd_agrees_with_finite_differences() -> None:
    entropy = torch.tensor([0.0, 1e-3, 0.7, 4.0, 12.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GeneralisedCrossEntropy(0.7), (entropy,))


def test_the_limit_of_q_to_zero_is_cross_entropy() -> None:
    entropy = torch.tensor([0.0, 1e-4, 0.3, 2.0, 15.0], requires_grad=True)
    gaps = []
    for q in (1e-1, 1e-3, 1e-7):
        value = GeneralisedCrossEntropy(q)(entropy)
        (slope,) = torch.autograd.grad(value.sum(), entropy)
        gaps.append((float((value - entropy).abs().max()), float((slope - 1).abs().max())))
    assert gaps[0] > gaps[1] > gaps[2]
    assert max(gaps[2]) < 5e-5, "float32: 15 nats are kept to five digits"


def test_a_nearly_impossible_token_keeps_the_digits_of_its_gradient() -> None:
    entropy = torch.tensor([18.0, 40.0, 80.0], requires_grad=True)
    (slope,) = torch.autograd.grad(GeneralisedCrossEntropy(1.0)(entropy).sum(), entropy)
    assert slope.tolist() == pytest.approx([math.exp(-18.0), math.exp(-40.0), math.exp(-80.0)], rel=1e-5)


raw_rows = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=4),
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), min_size=1, max_size=4),
        st.booleans(),
    ),
    min_size=1,
    max_size=7,
)


@given(raw_rows, st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_weights_stay_with_their_tokens(raw: list[tuple[list[int], list[tuple[int, int]], bool]], groups: int) -> None:
    rows = [
        Encoded(tuple(prompt), tuple(a for a, _ in answer), tuple(w / 4 for _, w in answer) if own else None)
        for prompt, answer, own in raw
    ]
    weights = [row.weights or (1.0,) * len(row.answer) for row in rows]
    wanted = sorted(
        (*r.prompt, *r.answer[: i + 1], -1, own[i]) for r, own in zip(rows, weights, strict=True) for i in range(len(r.answer))
    )
    trie = build_trie(rows)
    prefix: list[tuple[int, ...]] = []
    for i in range(len(trie.tokens)):
        prefix.append(tuple(trie.tokens[j] for j in range(i + 1) if i < trie.ends[j]))
    found = sorted((*prefix[node], target, -1, w) for (node, target), w in zip(trie.losses, trie.weights, strict=True))
    assert found == wanted
    total = sum(len(row.answer) for row in rows)
    packed = pack([rows, rows[:1]], 0, groups)
    assert sorted(packed.weights[packed.clients == 0].tolist()) == pytest.approx(sorted(w / total for own in weights for w in own))


def test_padded_weights_stand_under_the_answers() -> None:
    found = pad_weights([Encoded((1, 5), (6, 2), (0.5, 0.0)), Encoded((1,), (2,))], count=3, length=5)
    assert found.tolist() == [[0, 0, 0, 0.5, 0.0], [0, 0, 0, 0, 1.0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt2-general", "gemma2-general"])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_surprise_is_the_models_own_cross_entropy(load_tiny: Load, kind: str, batch_size: int) -> None:
    base = load_tiny(kind, r=2, alpha=4)
    rows = make_jobs((11,), base.model.config.vocab_size)[0].data
    rows = [*rows, rows[3]]  # the same row twice
    found = token_nll(base, rows, batch_size=batch_size)
    for row, told in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([[*row.prompt, *row.answer]])).logits[0, len(row.prompt) - 1 : -1]
        wanted = -logits.log_softmax(-1)[range(len(row.answer)), list(row.answer)]
        assert told == pytest.approx(wanted.tolist(), rel=1e-4, abs=1e-4)


def test_surprise_of_an_adapter_is_that_of_peft_whatever_its_rank(load_tiny: Load) -> None:
    base = load_tiny(r=2, alpha=4)
    rows = list(make_jobs((6,), base.model.config.vocab_size)[0].data)
    flat = stack_for(base.layout.size, 1, torch.float32)[0]
    own = token_nll(base, rows, flat)
    loss = sum(
        w * c for row, told in zip(rows, own, strict=True) for w, c in zip(row.weights or (1.0,) * len(told), told, strict=True)
    )
    _, mean = oracle(base, flat, rows, "cross-entropy")
    assert loss / sum(len(row.answer) for row in rows) == pytest.approx(mean, rel=1e-4)
    # the same adapter with two more columns of zeros has another layout and computes the same
    wide = adapter_layout(base.model, find_targets(base.model, LORA), Lora(r=4, alpha=8))
    named = {
        name: torch.nn.functional.pad(t, (0, 0, 0, 2) if name.endswith("_A") else (0, 2))
        for name, t in base.layout.unflatten(flat).items()
    }
    for row, other in zip(own, token_nll(base, rows, wide.flatten(named), wide), strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-4)
