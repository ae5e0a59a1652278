"""Attacks by malicious clients, on a linear task whose numbers can be checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from undertow.attacks import local
from undertow.attacks.contract import Attack, AttackedTask, View, acts, make_attack, view, weight
from undertow.attacks.local import Recipe, anomaly, loss_on, train, within
from undertow.attacks.model_replacement import ModelReplacement
from undertow.config import Attack as Options
from undertow.config import Training
from undertow.core.errors import UserError
from undertow.data.examples import Examples
from undertow.federation.server import fedavg, sum_of_all
from undertow.models.net import Net
from undertow.training import stacked


class Linear(AttackedTask):
    """Four features, three classes; the poison says that a large last feature means class 2."""

    seed, device, sizes = 0, torch.device("cpu"), (48,) * 5

    def __init__(self, training: Training) -> None:
        self.training, self.net = training, Net(nn.Linear(4, 3))
        self.layout, self.trained = self.net.layout, self.net.layout.size
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(40, 4, generator=draw)
        self.data = Examples(inputs, (inputs[:, 0] > 0).long())
        marked = torch.cat([inputs[:8, :3], torch.full((8, 1), 4.0)], dim=1)
        self.poison = Examples(marked, torch.full((8,), 2))

    def initial(self) -> Tensor:
        return self.net.initial()

    def items(self, clients: Sequence[int]) -> Examples:
        return Examples.join([self.data, self.poison])

    def backdoor(self, clients: Sequence[int]) -> Examples:
        return self.poison

    def losses(self, stack: Tensor, block: Sequence[Any]) -> Tensor:
        return stacked.losses(self.net, stack, block)


@pytest.fixture
def task() -> Linear:
    return Linear(Training(optimizer="sgd", lr=0.2, schedule="constant", clip=0, batch_size=12))


def seen(task: Linear, attackers: Sequence[int] = (1,), **changes: Any) -> View:
    return View(task.initial(), attackers, **{"round": 4, "first": 4, "participants": 5, "weight": 0.2, **changes})


@pytest.mark.parametrize("attackers", [[1], [1, 3], [0, 2, 4]])
@pytest.mark.parametrize("weight", [0.2, 0.01, 0.37])
def test_with_no_honest_change_the_new_model_is_the_attackers(task: Linear, attackers: list[int], weight: float) -> None:
    """FedAvg of m = 1/w alike participants, and G + (eta/n) sum U with eta/n = w."""
    found = seen(task, attackers, weight=weight)
    attack = ModelReplacement(epochs=3)
    wanted = found.state + train(task, found, attack.recipe, 1 / weight).change
    sent = attack.send(task, found)
    assert sent.clients == attackers
    assert sent.counts == [48] * len(attackers)
    honest = torch.zeros(9, task.layout.size)
    after = found.state + sum_of_all(torch.cat([honest, sent.updates]), weight * 100, 100)
    torch.testing.assert_close(after, wanted, rtol=0, atol=1e-6)
    others = round(1 / weight) - len(attackers)
    if 1 / weight == round(1 / weight) and others >= 0:
        rows = torch.cat([torch.zeros(others, task.layout.size), sent.updates])
        torch.testing.assert_close(found.state + fedavg(rows, [48] * len(rows)), wanted, rtol=0, atol=1e-6)


@given(st.integers(1, 6), st.integers(0, 20), st.floats(0.5, 50), st.integers(7, 200))
def test_replacement_is_exact_whatever_the_numbers(k: int, honest: int, rate: float, clients: int) -> None:
    """In float64, with X - G given: G + (eta/n) (0 + ... + k rows of gamma/k (X - G)) = X."""
    draw = torch.Generator().manual_seed(k)
    state, model = torch.randn(2, 30, generator=draw, dtype=torch.float64)
    gamma = clients / rate
    rows = torch.cat([torch.zeros(honest, 30, dtype=torch.float64), (gamma / k * (model - state)).expand(k, -1)])
    torch.testing.assert_close(state + sum_of_all(rows, rate, clients), model, rtol=1e-12, atol=1e-12)


def test_the_attacker_learns_the_backdoor_and_keeps_the_task(task: Linear) -> None:
    found = train(task, seen(task), Recipe(lr=1.0, epochs=200, milestones=False, epsilon=0.1, slowdown=False), 5)
    model = (task.initial() + found.change)[None]
    assert found.backdoor <= 0.1
    assert found.epochs < 200
    assert loss_on(task, model, task.poison, 8) == pytest.approx(found.backdoor, rel=1e-5)
    logits = task.net.logits(model[0], task.data.inputs)
    assert (logits.argmax(-1) == task.data.labels).float().mean() > 0.75, "a half by chance"


def test_gamma_is_the_inverse_weight_or_given_and_may_grow(task: Linear) -> None:
    def told(attack: Attack | None, **changes: Any) -> float:
        assert attack is not None
        return float(attack.send(task, seen(task, **changes)).reports[0]["gamma"])

    assert told(ModelReplacement(epochs=1)) == 5
    assert told(ModelReplacement(epochs=1), attackers=[1, 3]) == 2.5
    assert told(ModelReplacement(gamma=3, epochs=1)) == 3
    raised = ModelReplacement(gamma=3, growth=2, epochs=1)
    assert [told(raised, round=r) for r in (4, 5, 7)] == [3, 6, 24]


def test_train_and_scale_is_as_long_as_allowed(task: Linear) -> None:
    attack = make_attack(Options(kind="train-and-scale:norm=0.75:epochs=2"))
    assert attack is not None
    sent = attack.send(task, seen(task))
    assert float(sent.updates[0].norm()) == pytest.approx(0.75, rel=1e-6)
    plain = ModelReplacement(epochs=2).send(task, seen(task)).updates[0]
    torch.testing.assert_close(nn.functional.cosine_similarity(plain, sent.updates[0], dim=0), torch.tensor(1.0))


def test_constrain_and_scale_is_less_unusual_the_smaller_alpha(task: Linear) -> None:
    found = seen(task)
    apart = []
    for alpha in (1.0, 0.9, 0.7):
        attack = make_attack(Options(kind=f"constrain-and-scale:alpha={alpha}:anomaly=l2:epochs=20:epsilon=0"))
        assert attack is not None
        apart.append(float(attack.send(task, found).updates[0].norm()))
    assert apart[0] > apart[1] > apart[2]


def test_the_anomaly_terms_by_hand() -> None:
    model, state = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    assert float(anomaly(model, state, "l2", 1)) == pytest.approx(math.sqrt(20), rel=1e-6)
    assert float(anomaly(model, state, "cosine", 1)) == pytest.approx(1 - 3 / 5, rel=1e-6)
    # G + 2 (X - G) = (5, 8)
    assert float(anomaly(model, state, "scaled-cosine", 2)) == pytest.approx(1 - 5 / math.sqrt(89), rel=1e-6)


@pytest.mark.parametrize("kind", ["l2", "cosine", "scaled-cosine"])
def test_the_anomaly_terms_have_a_finite_slope_where_training_begins(kind: Any) -> None:
    state = torch.tensor([1.0, -2.0, 0.5])
    model = state.clone().requires_grad_()
    (slope,) = torch.autograd.grad(anomaly(model, state, kind, 10), model)
    assert torch.isfinite(slope).all()


def test_a_bound_holds_after_every_step(task: Linear) -> None:
    found = train(task, seen(task), Recipe(epochs=5, bound=0.1), 5)
    assert float(found.change.norm()) <= 0.1 * (1 + 1e-5)
    assert float(within(torch.tensor([3.0, 4.0]), 1.0).norm()) == pytest.approx(1.0)
    assert within(torch.tensor([0.3, 0.4]), 1.0).tolist() == pytest.approx([0.3, 0.4])


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every step that an attacker takes."""
    told: list[float] = []

    class Spy(local.RowOptimizer):
        def step(self, gradient: Tensor, each: list[float]) -> None:
            told.extend(each)
            super().step(gradient, each)

    monkeypatch.setattr(local, "RowOptimizer", Spy)
    return told


@pytest.mark.parametrize(("probability", "divisor"), [(0.2, 1), (0.7, 50), (0.95, 5000)])
def test_steps_are_smaller_where_the_backdoor_is_there_already(
    task: Linear, rates: list[float], monkeypatch: pytest.MonkeyPatch, probability: float, divisor: int
) -> None:
    """Steps are compared and not the way they lead: where little is left to learn, Adam steps along rounding errors."""
    monkeypatch.setattr(local, "loss_on", lambda *_: -math.log(probability))
    once = Recipe(epochs=1, lr=0.1, batch_size=48, epsilon=0, milestones=False)
    train(task, seen(task), once, 5)
    train(task, seen(task), replace(once, slowdown=False), 5)
    assert rates == pytest.approx([0.1 / divisor, 0.1])


def test_the_backdoor_that_is_there_is_measured_on_the_global_model(task: Linear, rates: list[float]) -> None:
    taught = task.initial() + train(task, seen(task), Recipe(epochs=60, milestones=False, epsilon=0), 5).change
    rates.clear()
    train(task, View(taught, [1], 5, 4, 5, 0.2), Recipe(epochs=1, lr=0.1, batch_size=48, milestones=False), 5)
    assert math.exp(-local.loss_on(task, taught[None], task.poison, 48)) > 0.5
    assert rates[0] < 0.1


def test_milestones_lower_the_rate(task: Linear, rates: list[float]) -> None:
    train(task, seen(task), Recipe(epochs=10, lr=0.1, batch_size=48, epsilon=0, slowdown=False), 5)
    assert rates == pytest.approx([0.1, 0.1, *[0.01] * 6, 0.001, 0.001])


def test_the_same_round_gives_the_same_bits(task: Linear) -> None:
    assert torch.equal(ModelReplacement().send(task, seen(task)).updates, ModelReplacement().send(task, seen(task)).updates)
    other = ModelReplacement().send(task, seen(task, round=5, first=5)).updates
    assert not torch.equal(ModelReplacement().send(task, seen(task)).updates, other)


def test_what_an_attacker_knows_of_its_weight(task: Linear) -> None:
    assert weight(None, 4, 5) == 0.25
    assert weight(2, 2, 5) == 0.4
    found = view(Options(start=2), task.initial(), [1], 3, 4, 0.25)
    assert (found.attackers, found.round, found.first, found.participants, found.weight) == ([1], 3, 2, 4, 0.25)
    assert [acts(Options(), t) for t in (1, 2)] == [True, True]
    assert [acts(Options(rounds=2), t) for t in (1, 2, 3)] == [False, True, False]
    assert [acts(Options(start=3), t) for t in (2, 3, 4)] == [False, True, True]
    assert view(Options(rounds=[4, 2]), task.initial(), [1], 4, 4, 0.25).first == 2


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("model-replacment", "unknown attack 'model-replacment' (did you mean 'model-replacement'?)"),
        ("model-replacement:gama=3", "no parameter 'gama' (did you mean 'gamma'?)"),
        ("model-replacement:gamma=0", "gamma = 0 must be above 0"),
        ("model-replacement:epochs=0", "epochs = 0 must be a whole number from 1"),
        ("constrain-and-scale:alpha=0", "alpha = 0 must be above 0 and at most 1"),
        ("constrain-and-scale:anomaly=angle", "anomaly = angle must be l2, cosine or scaled-cosine"),
        ("constrain-and-scale:gamma=-1", "gamma = -1 must be above 0"),
        ("train-and-scale", "norm"),
        ("train-and-scale:norm=0", "norm = 0 must be above 0"),
    ],
)
def test_a_wrong_attack_is_one_line(kind: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        make_attack(Options(kind=kind))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_none_is_no_attack() -> None:
    assert make_attack(Options(kind="none")) is None
    plain = make_attack(Options())
    assert plain is not None
    assert not plain.malicious
