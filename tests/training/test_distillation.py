"""Ensemble distillation: its loss, what it learns, and that it is the same every time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from undertow.config import Synthetic
from undertow.data.examples import Examples
from undertow.models.net import Net
from undertow.training.distillation import HELD, distill, divergence, ensemble

DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(80, 4, generator=DRAW)
LABELS = (INPUTS[:, 0] > 0).long()
OPTIONS = Synthetic(generator="file", distill_steps=60, distill_batch=16, distill_lr=0.05, distill_patience=0)  # type: ignore[call-arg]


def linear(seed: int = 0, wide: int = 0, norm: bool = False) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (
            [nn.Linear(4, wide), nn.BatchNorm1d(wide) if norm else nn.ReLU(), nn.Linear(wide, 2)] if wide else [nn.Linear(4, 2)]
        )
        return Net(nn.Sequential(*layers))


def perfect(net: Net) -> Tensor:
    """Return the state of a linear network that tells the classes apart."""
    return net.layout.flatten({"0.weight": torch.tensor([[-9.0, 0, 0, 0], [9.0, 0, 0, 0]]), "0.bias": torch.zeros(2)})


def test_divergence_is_the_formula() -> None:
    taught, found = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    total = 0.0
    for t, f in zip(taught.tolist(), found.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, t)) for v in t]
        q = [math.exp(v) / sum(map(math.exp, f)) for v in f]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(divergence(taught, found)) == pytest.approx(total / 2, rel=1e-6)
    assert float(divergence(taught, taught)) == pytest.approx(0, abs=1e-7)


def test_ensemble_is_the_mean_of_logits_whatever_the_networks() -> None:
    one, other = linear(1), linear(2, wide=3)
    found = ensemble([(one, one.initial()), (other, other.initial())], INPUTS)
    assert torch.allclose(found, (one.module(INPUTS) + other.module(INPUTS)) / 2, atol=1e-6)


@pytest.mark.parametrize("wide", [0, 8])
def test_a_student_learns_what_the_ensemble_knows(wide: int) -> None:
    """The labels given are wrong, so that only the teacher can have taught it; they judge, so that the start would be kept."""
    teacher, student = linear(1), linear(3, wide)
    taught = ensemble([(teacher, perfect(teacher))], INPUTS)
    data = Examples(INPUTS, taught.argmax(-1))
    state, report = distill(student, student.initial(), taught, data, OPTIONS, 0, 1)
    agree = float((student.logits(state, INPUTS).argmax(-1) == taught.argmax(-1)).double().mean())
    assert agree > 0.9
    assert report["loss"][1] < report["loss"][0]
    assert report["held_out"] == int(HELD * len(data))


def test_the_state_that_judges_best_is_taken_the_start_included() -> None:
    """A perfect student with a teacher that is always wrong: whatever it learns is worse."""
    net = linear(1)
    start = perfect(net)
    taught = -ensemble([(net, start)], INPUTS)
    state, report = distill(net, start, taught, Examples(INPUTS, LABELS), OPTIONS, 0, 1)
    assert torch.equal(state, start)
    assert (report["taken"], report["accuracy"]) == (0, [1.0, 1.0])


def test_it_stops_where_nothing_gets_better() -> None:
    net = linear(1)
    start = perfect(net)
    patient = OPTIONS.model_copy(update={"distill_patience": 20})
    _, report = distill(net, start, ensemble([(net, start)], INPUTS), Examples(INPUTS, LABELS), patient, 0, 1)
    assert report["steps"] == 20


def test_too_few_samples_to_hold_any_out_take_the_last_state() -> None:
    net, few = linear(3), Examples(INPUTS[:6], LABELS[:6])
    teacher = linear(1)
    taught = ensemble([(teacher, perfect(teacher))], few.inputs)
    state, report = distill(net, net.initial(), taught, few, OPTIONS, 0, 1)
    assert report["held_out"] == 0
    assert report["taken"] == OPTIONS.distill_steps
    assert not torch.equal(state, net.initial())


def test_running_statistics_move_and_the_module_does_not() -> None:
    net = linear(4, wide=5, norm=True)
    before = {name: t.clone() for name, t in net.module.state_dict().items()}
    start = net.initial()
    taught = torch.randn(80, 2, generator=torch.Generator().manual_seed(1))
    few = Examples(INPUTS[:8], LABELS[:8])
    state, _ = distill(net, start, taught[:8], few, OPTIONS, 0, 1)
    assert not torch.equal(state[net.trained :], start[net.trained :])
    assert all(torch.equal(t, before[name]) for name, t in net.module.state_dict().items())


def test_the_same_round_gives_the_same_bits_and_another_does_not() -> None:
    net, data = linear(3, wide=8), Examples(INPUTS, LABELS)
    taught = torch.from_numpy(np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32))
    free = OPTIONS.model_copy(update={"distill_steps": 5})
    few = Examples(data.inputs[:9], data.labels[:9])  # none held out: the last state
    one, again, other = (distill(net, net.initial(), taught[:9], few, free, 0, t)[0] for t in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(data) == 80
