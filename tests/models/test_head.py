"""The output head in pieces, and frozen weights that nobody copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, GPT2Config, GraniteConfig

from undertow.config import Lora
from undertow.data.template import Encoded
from undertow.defenses.loss.dece import DeceptiveCrossEntropy
from undertow.inference.decoding import generate
from undertow.models import head as module
from undertow.models.causal_lm import CausalLM
from undertow.models.general import plain_head, states_at
from undertow.models.head import GivenLogits, Head
from undertow.models.lora import adapter_layout, find_targets
from undertow.models.token_loss import TokenLoss, token_losses
from undertow.training import batched
from undertow.training.token_nll import token_nll


@dataclass(frozen=True)
class Squared(TokenLoss):
    def __call__(self, entropy: Tensor) -> Tensor:
        return entropy.square() / 3


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made anew, and the largest that was copied or went through a batched product.

    A batched product copies an expanded operand inside, where no operation is seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.any = self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "bmm" in str(func):
            self.copied = max(self.copied, *(a.numel() for a in args if isinstance(a, Tensor)))
        if isinstance(out, Tensor) and not func.is_view:
            self.any = max(self.any, out.numel())
            if any(name in str(func) for name in ("copy", "clone", "contiguous", "expand")):
                self.copied = max(self.copied, out.numel())
        return out


@contextmanager
def small_pieces(monkeypatch: pytest.MonkeyPatch, rows: int, words: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(module, "WHOLE", 0)
        patch.setattr(module, "PIECE", 4 * rows * words)
        patch.setattr(module, "ROWS", 2 * rows)
        patch.setattr(module, "WORDS", words // 3)  # the last run is short
        patch.setattr(module, "LARGE", 0)
        yield


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "multiplier": {"multiplier": 0.25},
    "capped": {"cap": 3.0, "multiplier": 2.0, "bias": True},
}


def make_head(kind: str, dtype: torch.dtype, words: int = 101, width: int = 12) -> Head:
    draw = torch.Generator().manual_seed(0)
    options: dict[str, Any] = dict(HEADS[kind])
    bias = torch.randn(words, generator=draw, dtype=dtype) if options.pop("bias", False) else None
    return Head(torch.randn(words, width, generator=draw, dtype=dtype), bias, **options)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("loss", [None, Squared(), DeceptiveCrossEntropy(0.1, 0.9)], ids=["ce", "of-ce", "of-logits"])
def test_pieces_change_no_digit_of_losses_and_gradients(kind: str, loss: TokenLoss | None, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head(kind, torch.float64)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(17, 12, generator=draw, dtype=torch.float64, requires_grad=True)
    targets, above = torch.randint(0, 101, (17,), generator=draw), torch.rand(17, generator=draw, dtype=torch.float64)
    z = (nn.functional.linear(x, head.weight, head.bias)) * head.multiplier
    wanted = token_losses(head.cap * torch.tanh(z / head.cap) if head.cap else z, targets, loss)
    (slope,) = torch.autograd.grad((wanted * above).sum(), x)
    for rows in (1, 5, 17):
        with small_pieces(monkeypatch, rows, 101):
            found = head.losses(x, targets, loss)
            (gradient,) = torch.autograd.grad((found * above).sum(), x)
            with torch.no_grad():
                torch.testing.assert_close(head.losses(x, targets, loss), found, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-12)


def test_a_target_that_is_almost_certain_keeps_its_gradient_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is the difference of nearly equal vectors there, and bfloat16 has three digits."""
    head = make_head("plain", torch.bfloat16)
    targets = torch.arange(2)
    x = (1.8 * head.weight[:2]).requires_grad_()
    z = head.logits(x).detach().double()
    exact = nn.functional.cross_entropy(z, targets, reduction="none")
    assert 0 < float(exact.max()) < 0.05
    errors = z.softmax(1) - nn.functional.one_hot(targets, 101)
    with small_pieces(monkeypatch, 2, 101):
        entropy = head.losses(x, targets)
        (found,) = torch.autograd.grad(entropy.sum(), x)
    torch.testing.assert_close(entropy.double(), exact, rtol=0.02, atol=1e-4)
    wanted = errors @ head.weight.double()
    gaps = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(gaps.max()) < 0.02


def test_sums_over_a_large_vocabulary_keep_their_digits() -> None:
    """Of a whole softmax the rows' errors go one way, and the mean of the head's rows turns them into a gradient."""
    draw = torch.Generator().manual_seed(0)
    words = torch.randn(262_144, 16, generator=draw) + 1.0
    head, targets = Head(words), torch.arange(8)
    x = (2 * torch.randn(8, 16, generator=draw)).requires_grad_()
    z = x.detach().double() @ words.double().T
    exact = nn.functional.cross_entropy(z, targets, reduction="none")
    errors = z.softmax(1) - nn.functional.one_hot(targets, len(words))
    wanted = errors @ words.double()
    entropy = head.losses(x, targets)
    (found,) = torch.autograd.grad(entropy.sum(), x)
    torch.testing.assert_close(entropy.double(), exact, rtol=1e-6, atol=5e-6)
    assert float((found - wanted).norm() / wanted.norm()) < 3e-6
    own = head.errors(x.detach(), targets).double()
    assert float((own.sum(1)).abs().max()) < 5e-6


@pytest.mark.parametrize("kind", HEADS)
def test_the_likeliest_token_and_chances_are_those_of_whole_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head(kind, torch.float32)
    x = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(2))
    tokens = torch.randint(0, 101, (3, 4), generator=torch.Generator().manual_seed(3))
    logs = head.logits(x).log_softmax(-1)
    with small_pieces(monkeypatch, 5, 101):
        assert torch.equal(head.likeliest(x), logs.argmax(-1))
        own, best, chance = head.scores(x, tokens)
    torch.testing.assert_close(own, logs.gather(2, tokens[..., None])[..., 0])
    assert torch.equal(best, logs.argmax(-1))
    torch.testing.assert_close(chance, logs.max(-1).values)


def test_logits_that_are_given_have_the_same_figures() -> None:
    logits = torch.randn(5, 3, 37, generator=torch.Generator().manual_seed(2))
    tokens = torch.randint(0, 37, (5, 3), generator=torch.Generator().manual_seed(3))
    own, best, chance = GivenLogits().scores(logits, tokens)
    logs = logits.log_softmax(-1)
    torch.testing.assert_close(own, logs.gather(2, tokens[..., None])[..., 0])
    assert torch.equal(best, logits.argmax(-1))
    assert torch.equal(GivenLogits().likeliest(logits), best)
    torch.testing.assert_close(chance, logs.max(-1).values)


def test_no_rows_are_no_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(0, 12, requires_grad=True)
    with small_pieces(monkeypatch, 2, 101):
        found = make_head("plain", torch.float32).losses(x, torch.zeros(0, dtype=torch.long))
        (slope,) = torch.autograd.grad(found.sum(), x)
    assert found.shape == (0,)
    assert slope.shape == (0, 12)


@pytest.mark.parametrize("loss", [None, DeceptiveCrossEntropy(0.1, 0.9)], ids=["ce", "of-logits"])
def test_many_logits_are_never_held_whole(loss: TokenLoss | None, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head("plain", torch.float32, words=5000, width=8)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
    targets = torch.randint(0, 5000, (64,), generator=torch.Generator().manual_seed(3))
    with small_pieces(monkeypatch, 4, 5000), Largest() as seen:
        torch.autograd.grad(head.losses(x, targets, loss).sum(), x)
        head.likeliest(x)
        head.scores(x, targets)
    assert seen.any <= 8 * 5000  # two pieces at most: a mask of the whole is a piece too
    with Largest() as seen:
        torch.autograd.grad(head.losses(x, targets, loss).sum(), x)
    assert seen.any >= 64 * 5000, "the measure sees whole logits"


Load = Callable[..., CausalLM]


@pytest.mark.parametrize("kind", ["gemma2", "opt", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_step_copies_the_frozen_heads_weight(load_tiny: Load, kind: str, dtype: str) -> None:
    base = load_tiny(kind, dtype=dtype)
    size = base.head.weight.numel()
    assert not isinstance(base.head, GivenLogits)
    block = [[Encoded((3, 4, 5 + i, 6 + k), (7 + i, 8)) for i in range(3)] for k in range(2)]
    stack = torch.zeros(2, base.layout.size, requires_grad=True)
    prompts = [[3, 4, 5, 6 + i] for i in range(3)]
    ids = torch.tensor(prompts)
    with Largest() as seen:
        torch.autograd.grad(batched.losses(base, stack, block).sum(), stack)
        generate(base, None, prompts, max_new_tokens=2, batch_size=3)
        token_nll(base, block[0])
        # What transformers itself does for its own generate, and peft with it.
        base.model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=2)
    assert seen.copied < size


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (GraniteConfig(logits_scaling=3.0), True),
        (Gemma2Config(final_logit_softcapping=2.0, head_dim=8), True),
        (GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32), True),
        (GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32), False),
    ],
)
def test_a_head_is_what_the_model_computes_or_the_model_itself(config: Any, plain: bool) -> None:
    from transformers import AutoModelForCausalLM

    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    for name, value in {**sizes, "intermediate_size": 48, "layer_types": ["full_attention"]}.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    if not plain:
        model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: output.sin())
    layout = adapter_layout(model, find_targets(model, Lora(targets="all-linear")), Lora())
    head = plain_head(model, layout)
    assert isinstance(head, GivenLogits) != plain
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    whole = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    states, _ = states_at(model, head, torch.tensor([5, 1]), input_ids=ids, use_cache=False)
    torch.testing.assert_close(head.logits(states), whole[[5, 1]], rtol=1e-5, atol=1e-5)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits.flatten(0, 1), whole), "no hook is left"
