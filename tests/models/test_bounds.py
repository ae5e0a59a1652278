from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tiny import ARCHITECTURES
from undertow.core.errors import UserError
from undertow.models.bounds import Bounds, bounded, clipped_share, load_bounds, maxima, places, save_bounds
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import adapted
from undertow.models.net import Net, make_net
from undertow.models.nets.encoder import Encoder
from undertow.models.nets.resnet18 import resnet18

Load = Callable[..., CausalLM]


def two_layers() -> nn.Sequential:
    """x -> h = relu(W x + b) -> V h, with numbers that a reader can follow."""
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        module[0].bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
        module[2].weight.copy_(torch.tensor([[1.0, 10.0, 100.0], [1.0, -1.0, 1.0]]))
    return module


X = torch.tensor([[1.0, 2.0], [3.0, -1.0]])  # h = [1, 2, 2] and [3, 0, 1]


def test_min_of_h_and_z_by_hand() -> None:
    module = two_layers()
    with bounded(module, Bounds({"1": torch.tensor([2.0, 1.0, 1.5])})):
        assert module(X).tolist() == [[1 + 10 + 150, 1 - 1 + 1.5], [2 + 0 + 100, 2 - 0 + 1]]
    # from below too: h = [1, 2, 2] -> [1, 1, 1.5]; [3, 0, 1] -> [2, 0.5, 1]
    with bounded(module, Bounds({"1": torch.tensor([2.0, 1.0, 1.5])}, {"1": torch.tensor([0.0, 0.5, 0.0])})):
        assert module(X).tolist() == [[161.0, 1.5], [2 + 5 + 100, 2 - 0.5 + 1]]
    assert module(X).tolist() == [[1 + 20 + 200, 1 - 2 + 2], [3 + 0 + 100, 3 - 0 + 1]]


def test_channels_of_images_are_axis_one() -> None:
    module = nn.Sequential(nn.Identity(), nn.ReLU())
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    z = torch.tensor([3.0, 50.0, 200.0])
    with bounded(module, Bounds({"1": z})):
        found = module(images)
    for channel in range(3):
        assert torch.equal(found[:, channel], images[:, channel].clamp(max=float(z[channel])))


def test_gradients_reach_the_bounds_where_they_clip() -> None:
    module = two_layers().requires_grad_(False)
    z = torch.tensor([2.0, 1.0, 5.0], requires_grad=True)
    with bounded(module, Bounds({"1": z})):
        (gradient,) = torch.autograd.grad(module(X)[:, 0].sum(), z)
    # channel 0 is clipped for the second input alone, channel 1 for the first, channel 2 for none; V's row is [1, 10, 100]
    assert gradient.tolist() == [1.0, 10.0, 0.0]


def test_functional_call_and_vmap_see_the_bounds() -> None:
    net = Net(two_layers())
    states = torch.stack([net.initial(), 2 * net.initial()])
    z = torch.tensor([0.5, 0.25, 1.0])
    with bounded(net.module, Bounds({"1": z})):
        stacked = torch.vmap(lambda state: net.call(net.of_state(state), X))(states)
        each = [net.logits(state, X) for state in states]
    for state, one, other in zip(states, stacked, each, strict=True):
        named = net.of_state(state)
        hidden = (X @ named["0.weight"].T + named["0.bias"]).clamp(min=0).minimum(z)
        torch.testing.assert_close(one, hidden @ named["2.weight"].T)
        torch.testing.assert_close(other, one)


def test_hooks_go_whatever_happens_and_weights_stay() -> None:
    module = two_layers()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    plain = module(X)

    def fails() -> None:
        with bounded(module, Bounds({"1": torch.zeros(3)})):
            raise RuntimeError(f"inside: {module(X).tolist()}")

    with pytest.raises(RuntimeError, match=r"inside: \[\[0.0, 0.0\]"):
        fails()
    with (
        pytest.raises(UserError, match="bounds of '7', which this network does not have"),
        bounded(module, Bounds({"1": torch.zeros(3), "7": torch.zeros(3)})),
    ):
        pass
    assert not any(part._forward_hooks for part in module.modules())
    assert torch.equal(module(X), plain)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_bounds_of_another_width_are_refused() -> None:
    module = two_layers()
    with pytest.raises(UserError, match="for 2 channels and it has 3"), bounded(module, Bounds({"1": torch.zeros(2)})):
        module(X)


def test_largest_and_smallest_activations_and_the_share_clipped() -> None:
    module = two_layers()
    high, low = maxima(lambda: [module(X[:1]), module(X[1:])], module, ["1"])
    assert high["1"].tolist() == [3.0, 2.0, 2.0]
    assert low["1"].tolist() == [1.0, 0.0, 1.0]
    # of 1 2 2 3 0 1 the 2 of channel 1 and the 3 are above, and the 0 is below
    assert clipped_share(lambda: module(X), module, Bounds({"1": torch.tensor([2.0, 1.5, 2.0])})) == pytest.approx(2 / 6)
    two_sided = Bounds({"1": torch.tensor([2.0, 1.5, 2.0])}, {"1": torch.tensor([0.0, 0.5, 1.0])})
    assert clipped_share(lambda: module(X), module, two_sided) == pytest.approx(3 / 6)
    with pytest.raises(UserError, match="no pass goes through '1'"):
        maxima(lambda: None, module, ["1"])
    with pytest.raises(UserError, match="are not finite"):
        maxima(lambda: module(X * torch.nan), module, ["1"])


def test_a_module_that_is_used_twice_has_one_bound_for_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(2 * self.act(x))

    module = Twice()
    assert places(module) == ["act"]
    high, _ = maxima(lambda: module(X), module, ["act"])
    assert high["act"].tolist() == [6.0, 4.0]
    with bounded(module, Bounds({"act": torch.tensor([1.5, 1.0])})):
        assert module(X).tolist() == [[1.5, 1.0], [1.5, 0.0]]

    class Uneven(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.act(x)[:, :1])

    uneven = Uneven()
    with pytest.raises(UserError, match="outputs of 2 and of 1 channels"):
        maxima(lambda: uneven(X), uneven, ["act"])


def test_places_of_the_shipped_networks() -> None:
    assert places(make_net("cnn", (1, 8, 8), 10, 0).module) == ["features.2", "features.5", "head.2"]
    residual = places(resnet18((1, 8, 8), 10, width=4))
    assert residual == ["relu", *(f"blocks.{i}.relu{j}" for i in range(8) for j in (1, 2))]
    assert places(Encoder(9, 5, 2, 8, 2, 2, "gelu")) == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    with pytest.raises(UserError, match="Lstm has no activation to bound"):
        places(make_net("lstm:hidden=4", (5,), 9, 0).module)


def test_every_activation_of_resnet18_is_a_place() -> None:
    module = resnet18((1, 8, 8), 3, width=4).eval()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    high, low = maxima(lambda: module(images), module, places(module))
    assert len(high) == 17  # one after the first convolution, two a block
    assert all(float(z.min()) >= 0 for z in low.values())
    with torch.no_grad(), bounded(module, Bounds({name: torch.zeros_like(z) for name, z in high.items()})):
        torch.testing.assert_close(module(images), module.head.bias.expand(2, 3))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_activation_of_every_block_of_a_language_model(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind)
    found = places(base.model)
    assert len(found) == base.model.config.num_hidden_layers
    high, _ = maxima(lambda: base.model(input_ids=torch.tensor([[1, 5, 7]]), use_cache=False), base.model, found)
    assert len(high) == len(found)


def test_which_places() -> None:
    module = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.GELU(), nn.SiLU())
    assert places(module) == ["0", "2", "3"]
    assert places(module, 2) == ["0", "2"]
    assert places(module, "2") == ["2"]
    assert places(module, ["3", "0"]) == ["0", "3"]
    assert places(module, "1") == ["1"]
    assert places(module, "linear") == ["0", "2", "3"], "the last linear layer gives the answer"
    assert places(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "linear") == ["0", "1"]
    for which, told in (
        (0, "give 1 to 3"),
        (4, "give 1 to 3"),
        ("4", "'4' is no module of this network"),
        ([], "at least one of 0, 2, 3"),
        (["0", "0"], "each name once"),
        (1.5, "1.5 is no module"),
    ):
        with pytest.raises(UserError, match=told):
            places(module, which)


def test_bounds_and_an_adapter_together(load_tiny: Load) -> None:
    base = load_tiny("llama", r=2, alpha=4)
    flat = 0.3 * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 5, 7, 9]])
    names = places(base.model)

    def logits() -> Tensor:
        with torch.no_grad(), adapted(base.model, base.layout, flat[None]):
            return base.model(input_ids=ids, use_cache=False).logits

    plain = logits()
    seen: list[Tensor] = []
    high, low = maxima(lambda: seen.append(logits()), base.model, names)
    assert torch.equal(seen[0], plain)
    with bounded(base.model, Bounds(high, low)):
        assert torch.equal(logits(), plain)
    with bounded(base.model, Bounds({name: 0 * z for name, z in high.items()}, {name: 0 * z for name, z in low.items()})):
        silent = logits()
    assert not torch.allclose(silent, plain, atol=1e-3)
    # with the activations at 0 the MLPs add nothing, as where their last linears are 0
    handles = [
        layer.mlp.register_forward_hook(lambda part, inputs, output: torch.zeros_like(output)) for layer in base.model.model.layers
    ]
    torch.testing.assert_close(logits(), silent, atol=1e-5, rtol=1e-4)
    for handle in handles:
        handle.remove()


def test_a_file_of_bounds_gives_the_same_outputs_elsewhere(tmp_path: Path) -> None:
    module, other = two_layers(), two_layers()
    bounds = Bounds({"1": torch.tensor([2.0, 1.0, 1.5])}, {"1": torch.tensor([0.0, 0.5, 0.0])})
    save_bounds(tmp_path / "bounds.safetensors", bounds)
    read = load_bounds(tmp_path / "bounds.safetensors", other)
    with bounded(module, bounds), bounded(other, read):
        assert torch.equal(module(X), other(X))
    assert [file.name for file in tmp_path.iterdir()] == ["bounds.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"upper/9": torch.zeros(3)}, "bounds of '9', which this network does not have"),
        ({"upper/1": torch.tensor([1.0, torch.inf])}, "no row of finite numbers"),
        ({"upper/1": torch.zeros(2, 2)}, "no row of finite numbers"),
        ({"upper/1": torch.zeros(3, dtype=torch.int64)}, "no row of finite numbers"),
        ({"1": torch.zeros(3)}, "'1' is no bound"),
        ({"lower/1": torch.zeros(3)}, "has no upper bound"),
        ({"upper/1": torch.zeros(3), "lower/1": torch.ones(3)}, "has no upper bound of 3 channels above it"),
        ({}, "is empty"),
    ],
)
def test_a_file_that_holds_no_bounds_of_the_network_is_refused(tensors: dict[str, Tensor], told: str, tmp_path: Path) -> None:
    file = tmp_path / "bounds.safetensors"
    save_file(tensors, file)
    with pytest.raises(UserError, match=told) as error:
        load_bounds(file, two_layers())
    assert "\n" not in str(error.value)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file of bounds"):
        load_bounds(tmp_path / "none.safetensors", two_layers())
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(UserError, match="holds no bounds"):
        load_bounds(tmp_path / "cut.safetensors", two_layers())
