"""The word model: equality with torch's own LSTM, clients side by side, tied weights, dropout from given noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from undertow.data.examples import IGNORE
from undertow.models.net import NETS
from undertow.models.nets.lstm import Lstm, lstm

WORDS, HIDDEN, N, LENGTH = 17, 6, 3, 5


def made(seed: int = 0, *, layers: int = 2, dropout: float = 0.2, tied: bool = True) -> Lstm:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = lstm((LENGTH,), WORDS, hidden=HIDDEN, layers=layers, dropout=dropout, tied=tied)
    assert isinstance(net, Lstm)
    return net.double()


def inputs(seed: int = 1, n: int = N) -> Tensor:
    return torch.randint(WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


def noise(net: Lstm, seed: int = 2) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(shape, generator=draw, dtype=torch.float64) for shape in net.noise_shapes(N, LENGTH))


def oracle(net: Lstm) -> nn.LSTM:
    theirs = nn.LSTM(HIDDEN, HIDDEN, net.layers, batch_first=True).double()
    theirs.load_state_dict({name: value for name, value in net.state_dict().items() if name.startswith(("weight", "bias"))})
    return theirs


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_values_and_gradients_equal_those_of_torchs_lstm(layers: int, tied: bool) -> None:
    net = made(layers=layers, tied=tied)
    theirs = oracle(net)
    decoder = net.embedding if net.decoder is None else net.decoder
    expected = F.linear(theirs(F.embedding(inputs(), net.embedding))[0], decoder, net.decoder_bias)
    found = net(inputs())
    assert found.shape == (N, LENGTH, WORDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (found * weight).sum().backward()
    own = {name: value.grad for name, value in net.named_parameters()}
    net.zero_grad()
    expected = F.linear(theirs(F.embedding(inputs(), net.embedding))[0], decoder, net.decoder_bias)
    (expected * weight).sum().backward()
    reference = {
        name: value.grad for name, value in [*net.named_parameters(), *theirs.named_parameters()] if value.grad is not None
    }
    assert set(own) == set(reference)
    for name, value in reference.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_clients_side_by_side_get_the_gradients_they_get_one_by_one(tied: bool) -> None:
    nets = [made(seed, tied=tied) for seed in range(4)]
    stacked, _ = stack_module_state(nets)  # type: ignore[arg-type]
    batches = torch.stack([inputs(seed) for seed in range(4)])
    labels = torch.stack([inputs(seed + 10) for seed in range(4)])
    labels[:, 0, :2] = IGNORE
    drawn = tuple(torch.stack(parts) for parts in zip(*(noise(net, seed) for seed, net in enumerate(nets)), strict=True))

    def loss(parameters: dict[str, Tensor], batch: Tensor, label: Tensor, drops: tuple[Tensor, ...]) -> Tensor:
        logits = functional_call(nets[0], parameters, (batch, drops))
        return F.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=IGNORE)

    together = vmap(grad(loss))(stacked, batches, labels, drawn)
    for k, net in enumerate(nets):
        net.zero_grad()
        logits = net(batches[k], tuple(part[k] for part in drawn))
        F.cross_entropy(logits.flatten(0, 1), labels[k].flatten(), ignore_index=IGNORE).backward()
        for name, value in net.named_parameters():
            assert value.grad is not None
            torch.testing.assert_close(together[name][k], value.grad, rtol=0, atol=1e-12)


def test_a_tied_decoder_is_one_parameter() -> None:
    tied, free = made(), made(tied=False)
    assert sum(value.numel() for value in free.parameters()) - sum(value.numel() for value in tied.parameters()) == WORDS * HIDDEN
    assert sum(value.shape == (WORDS, HIDDEN) for value in tied.state_dict().values()) == 1
    # the paper's own size: 50,000 words (and three marks), 200, two layers
    paper = lstm((64,), 50_003)
    assert sum(value.numel() for value in paper.parameters()) == 50_003 * 200 + 2 * (2 * 800 * 200 + 2 * 800) + 50_003


def test_a_word_is_predicted_from_those_before_it_alone() -> None:
    net = made()
    one, other = inputs(), inputs()
    other[:, 3:] = (other[:, 3:] + 1) % WORDS
    assert torch.equal(net(one)[:, :3], net(other)[:, :3])
    assert not torch.equal(net(one)[:, 3:], net(other)[:, 3:])
    assert net(one[:, :2]).shape == (N, 2, WORDS)


def test_dropout_takes_its_noise_from_the_caller() -> None:
    net = made(dropout=0.5).train()
    state = torch.get_rng_state()
    drawn = noise(net)
    assert [part.shape for part in drawn] == [(N, LENGTH, HIDDEN)] * 3
    assert torch.equal(net(inputs(), drawn), net(inputs(), drawn))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(net(inputs(), drawn), net(inputs()))
    # nothing dropped: every kept value is doubled; everything dropped: the bias alone is left
    keep, drop = (tuple(torch.full_like(part, value) for part in drawn) for value in (0.5, 0.49))
    torch.testing.assert_close(net(inputs(), drop), net.decoder_bias.expand(N, LENGTH, WORDS))
    theirs = nn.LSTM(HIDDEN, HIDDEN, 1, batch_first=True).double()
    single = made(layers=1, dropout=0.5)
    theirs.load_state_dict({name: value for name, value in single.state_dict().items() if name.startswith(("weight", "bias"))})
    expected = F.linear(2 * theirs(2 * F.embedding(inputs(), single.embedding))[0], single.embedding, single.decoder_bias)
    torch.testing.assert_close(single(inputs(), keep[:2]), expected, rtol=0, atol=1e-12)
    assert made(dropout=0.0).noise_shapes(N, LENGTH) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden = 0"),
        ({"layers": True}, "layers = True"),
        ({"layers": 1.5}, r"layers = 1\.5"),
        ({"dropout": 1.0}, r"dropout = 1\.0"),
        ({"tied": "yes"}, "tied = 'yes'"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lstm((LENGTH,), WORDS, **options)  # type: ignore[arg-type]


def test_images_are_no_words_and_the_name_is_registered() -> None:
    with pytest.raises(ValueError, match="are no words"):
        lstm((1, 8, 8), 10)
    assert NETS.get("lstm") is lstm
