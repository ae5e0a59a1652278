from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from undertow.core.errors import UserError
from undertow.models.net import NETS, Net, make_net


def convolutional(norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm or nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def llama(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            vocab_size=20,
            max_position_embeddings=16,
            **changes,
        )
    )


def images(n: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))


def words(n: int) -> Tensor:
    return torch.randint(0, 20, (n, 6), generator=torch.Generator().manual_seed(n))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_parameters_come_first_in_module_order_then_the_running_statistics() -> None:
    module = convolutional()
    net = Net(module)
    parameters = [name for name, _ in module.named_parameters()]
    assert [slot.name for slot in net.layout.slots] == [*parameters, "1.running_mean", "1.running_var"]
    assert net.trained == sum(p.numel() for p in module.parameters())
    assert net.layout.size == net.trained + 8
    state = net.initial()
    assert state.dtype == torch.float32
    wanted = torch.cat([*(p.detach().flatten() for p in module.parameters()), torch.zeros(4), torch.ones(4)])
    assert torch.equal(state, wanted)


def test_a_frozen_parameter_has_no_column_but_counts() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    net = Net(module)
    assert [slot.name for slot in net.layout.slots] == ["1.weight", "1.bias"]
    inputs = torch.randn(5, 3)
    for dtype in (torch.float32, torch.float64):
        found = net.logits(net.initial().to(dtype), inputs)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), module(inputs).detach())


def test_nothing_to_train_or_counted_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        Net(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="momentum=None"):
        Net(convolutional(nn.BatchNorm2d(4, momentum=None)))


def test_logits_are_those_of_a_module_that_holds_the_state() -> None:
    net = Net(convolutional())
    state = net.initial() + 0.1 * torch.rand(net.layout.size)
    other = copy.deepcopy(net.module)
    other.load_state_dict({**other.state_dict(), **net.of_state(state)})
    other.eval()
    inputs = images(7)
    found = net.logits(state, inputs, rows=3)  # blocks of 3, 3 and 1
    assert not found.requires_grad
    torch.testing.assert_close(found, other(inputs).detach())
    assert not torch.allclose(found, net.logits(net.initial(), inputs))


def test_evaluation_leaves_module_and_state_alone() -> None:
    net = Net(convolutional())
    state = net.initial()
    kept, before = state.clone(), {name: t.clone() for name, t in net.module.state_dict().items()}
    net.logits(state + 1, images(4))
    net.logits(state, images(4))
    assert torch.equal(state, kept)
    assert all(torch.equal(t, before[name]) for name, t in net.module.state_dict().items())


def test_whole_language_models_give_logits_of_every_position() -> None:
    module = llama(tie_word_embeddings=True)
    net = Net(module)
    assert net.layout.size == sum(p.numel() for p in module.parameters()), "the tied matrix once"
    found = net.logits(net.initial(), words(5), rows=2)
    torch.testing.assert_close(found, module(words(5)).logits.detach())


def test_a_training_copy_shares_values_and_switches_on_batch_statistics_only() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net = Net(module)
    made = net.training_copy()
    assert made[1].training
    assert not made[2].training, "it would draw from the global generator"
    assert not any(part.training for part in module.modules())
    assert made[0].weight is module[0].weight
    assert made[1].num_batches_tracked is not module[1].num_batches_tracked


class _Noisy(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear, self.hidden = nn.Linear(1, 1), hidden

    def noise_shapes(self, n: int, length: int) -> tuple[tuple[int, ...], ...]:
        return ((n, length), (n, self.hidden)) if self.hidden else ()


def test_noise_is_drawn_in_the_shapes_the_module_asks_for() -> None:
    found = Net(_Noisy(3)).noise(4, 5, torch.Generator().manual_seed(1))
    assert found is not None
    assert [tuple(u.shape) for u in found] == [(4, 5), (4, 3)]
    again = Net(_Noisy(3)).noise(4, 5, torch.Generator().manual_seed(1))
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert all(((u >= 0) & (u < 1)).all() for u in found)
    assert Net(_Noisy(0)).noise(4, 5, torch.Generator()) is None
    assert Net(nn.Linear(1, 1)).noise(4, 5, torch.Generator()) is None


# --- make_net ---------------------------------------------------------------------------------------------------

OWN = """
from torch import nn

def small(inputs, outputs, width=4, broken=False):
    if broken:
        raise ValueError("a width that\\nis broken")
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs[0], width), nn.Linear(width, outputs))

def nothing(inputs, outputs):
    return 3

def anything(inputs, outputs, **options):
    return nn.Linear(inputs[0], options["made"])
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def test_the_seed_alone_decides_the_initial_values(own: str) -> None:
    first = make_net(f"{own}:small", (3,), 2, 0).initial()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(make_net(f"{own}:small", (3,), 2, 0).initial(), first)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is as it was"
    assert not torch.equal(make_net(f"{own}:small", (3,), 2, 1).initial(), first)


def test_parameters_in_the_short_form_reach_the_network(own: str) -> None:
    assert make_net(f"{own}:small:width=5", (3,), 2, 0).layout.size == 3 * 5 + 5 + 5 * 2 + 2
    assert make_net(f"{own}:anything:made=5", (3,), 2, 0).layout.size == 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("OWN:small:widht=5", "did you mean 'width'.*it has width, broken"),
        ("OWN:nothing:a=1", "it has none"),
        ("OWN:small:broken=true", "a width that is broken"),
        ("OWN:small:width=wide", "correct it"),
        ("OWN:nothing", "returned a int"),
        ("no-such-network", "unknown network"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(own: str, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make_net(text.replace("OWN", own), (3,), 2, 0)
    assert "\n" not in str(caught.value)


# Models of transformers have files of their own: test_causal_lm_net.py, test_text_nets.py.
@pytest.mark.parametrize("name", [entry.name for entry in NETS.entries() if entry.name not in ("causal-lm", "sequence-classifier")])
def test_every_shipped_network_learns_as_a_net(name: str) -> None:
    texts = {"lstm": ("lstm:hidden=4", None), "encoder": ("encoder:width=4", 20)}
    made, ids = texts.get(name, (f"{name}:width=2", None))
    net = make_net(made, (5,) if name in texts else (1, 8, 8), 7, 0, ids)
    inputs = words(3)[:, :5] % 7 if name in texts else images(3)
    state = net.initial().requires_grad_()
    logits = net.call(net.of_state(state), inputs)
    assert logits.shape == ((3, 5, 7) if name == "lstm" else (3, 7))
    (gradient,) = torch.autograd.grad(logits.square().sum(), state)
    assert gradient.isfinite().all()
    assert gradient.count_nonzero() > 0
