import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from undertow.config import validate
from undertow.core.errors import UserError
from undertow.data.populations.digits import digits
from undertow.models.nets.cnn import cnn
from undertow.models.nets.resnet18 import resnet18


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def inputs(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(shape, dtype=np.float32))


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 5, 7), (2, 1, 1), (1, 9, 40)])
def test_both_take_images_of_any_size(shape: tuple[int, int, int], norm: str):
    for module in (cnn(shape, 7, norm=norm), resnet18(shape, 7, width=4, norm=norm)):
        assert module.eval()(inputs(2, *shape)).shape == (2, 7)


def test_sizes():
    # 1-16 and 16-32 convolutions, two norms, 4 x 4 x 32 features to 64 units to 10 classes
    assert size(cnn((1, 8, 8), 10)) == (9 + 1) * 16 + 32 + (16 * 9 + 1) * 32 + 64 + (512 + 1) * 64 + 65 * 10
    assert size(cnn((3, 32, 32), 10)) == 127_114
    # the published count of the CIFAR variant of ResNet-18; both norms have two parameters a channel
    assert size(resnet18((3, 32, 32), 10)) == size(resnet18((3, 32, 32), 10, norm="batch")) == 11_173_962
    assert size(resnet18((3, 32, 32), 10, width=16)) == 701_466


def test_only_batch_norm_has_state_beside_the_parameters():
    for make in (cnn, resnet18):
        assert not list(make((3, 8, 8), 4, width=4).buffers())
        assert list(make((3, 8, 8), 4, width=4, norm="batch").buffers())


def test_resnet_halves_its_maps_three_times_and_groups_see_one_image_only():
    module = resnet18((3, 32, 32), 10, width=8)
    shapes: list[tuple[int, ...]] = []
    for block in module.blocks:
        block.register_forward_hook(lambda _, __, made: shapes.append(tuple(made.shape[1:])))
    batch = inputs(3, 3, 32, 32)
    logits = module(batch)
    assert shapes[1::2] == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4)]
    torch.testing.assert_close(module(batch[1:2]), logits[1:2])


def test_the_same_seed_gives_the_same_network():
    made = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            made.append(resnet18((1, 8, 8), 3, width=4))
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda norm: cnn((3, 16, 16), 5, width=8, norm=norm),
        lambda norm: resnet18((3, 16, 16), 5, width=4, norm=norm),
    ],
    ids=["cnn", "resnet18"],
)
@pytest.mark.parametrize("norm", ["group", "none", "batch"])
def test_gradients_of_stacked_copies_equal_those_one_by_one(make, norm: str):
    modules = [make(norm).double() for _ in range(3)]
    parameters, buffers = stack_module_state(modules)  # type: ignore[arg-type]
    batch = inputs(3, 4, 3, 16, 16).double()
    labels = torch.tensor([[0, 1, 2, 3]] * 3)

    def loss(values, state, x, y):
        return cross_entropy(functional_call(modules[0], (values, state), (x,)), y)

    found = vmap(grad(loss))(parameters, buffers, batch, labels)
    for k, module in enumerate(modules):
        module.zero_grad()
        cross_entropy(module(batch[k]), labels[k]).backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(found[name][k], p.grad, rtol=1e-6, atol=1e-9)


def test_the_cnn_learns_the_digits():
    population = digits(validate({"data": {"train": 1400, "test": 397}}, "test").data, 0, 10)
    pool, draw = population.pool, np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = cnn((1, 8, 8), 10)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(8):
        for places in np.array_split(draw.permutation(len(pool)), len(pool) // 32):
            batch = pool.take(places)
            optimizer.zero_grad()
            cross_entropy(module(batch.inputs), batch.labels).backward()
            optimizer.step()
    right = module(population.test.inputs).argmax(1) == population.test.labels
    assert float(right.float().mean()) >= 0.97


@pytest.mark.parametrize("make", [cnn, resnet18])
def test_wrong_options_are_refused(make):
    with pytest.raises(UserError, match="takes images"):
        make((64,), 10)
    with pytest.raises(UserError, match="width = 0"):
        make((1, 8, 8), 10, width=0)
    with pytest.raises(UserError, match="norm = layer: it is group, batch or none"):
        make((1, 8, 8), 10, norm="layer")
