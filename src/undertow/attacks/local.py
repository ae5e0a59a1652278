"""How an attacker trains its own model X from the global model G before it sends it (Bagdasaryan et al. 2020, Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from undertow.attacks.contract import AttackedTask, View
from undertow.core.rng import rng
from undertow.training.batched import RowOptimizer
from undertow.training.clients import Items, some

Anomaly = Literal["l2", "cosine", "scaled-cosine"]


@dataclass(frozen=True)
class Recipe:
    """What the attacker trains with.

    Attributes:
        lr: learning rate; None = that of the benign clients.
        epochs: E_adv, at most this many.
        batch_size: None = that of the benign clients.
        milestones: whether lr falls to a tenth after 0.2 and again after 0.8 of the epochs.
        epsilon: training ends after an epoch with a backdoor loss of at most this.
        slowdown: divide lr by 50 where the global model has the backdoor with more than 0.5, by 5,000 with more than 0.9.
        alpha: weight of the classification loss; 1 = no anomaly term.
        anomaly: L_ano: ``l2`` |X - G|, ``cosine`` 1 - cos(X, G), ``scaled-cosine`` 1 - cos(G + γ(X - G), G).
        bound: S: X is projected to |X - G| <= S after every step; None = not at all.

    Raises:
        ValueError: a value out of its range.
    """

    lr: float | None = None
    epochs: int = 6
    batch_size: int | None = None
    milestones: bool = True
    epsilon: float = 1e-4
    slowdown: bool = True
    alpha: float = 1.0
    anomaly: Anomaly = "cosine"
    bound: float | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "bound"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} = {value} must be above 0")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} = {value} must be a whole number from 1")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha} must be above 0 and at most 1")
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon = {self.epsilon} must be at least 0")
        if self.anomaly not in ("l2", "cosine", "scaled-cosine"):
            raise ValueError(f"anomaly = {self.anomaly} must be l2, cosine or scaled-cosine")


@dataclass(frozen=True)
class Backdoored:
    """The attacker's model.

    Attributes:
        change: X - G, ``[D]``.
        loss: mean training loss, α·L_class + (1 - α)·L_ano.
        backdoor: loss on the backdoor samples alone at the end.
        epochs: how many it took.
        samples: it trained on, per epoch.
    """

    change: Tensor
    loss: float
    backdoor: float
    epochs: int
    samples: int


def train(task: AttackedTask, view: View, recipe: Recipe, gamma: float) -> Backdoored:
    """Train X from G on the attackers' samples, poison included, minimising α·L_class + (1 - α)·L_ano.

    Stops after an epoch when the loss on the backdoor samples is at most ε. The published code divides lr where the global model
    already answers to the backdoor with an accuracy beyond 0.2 and 0.6. Here it is exp(-loss) on the backdoor samples, the mean
    probability of what the attacker wants, since a task need not have classes; and beyond 0.5 and 0.9, since that is higher by
    chance.

    Args:
        task: gives samples and losses.
        view: of the attackers, who share their data.
        recipe: how.
        gamma: the factor that the update will be scaled by, for ``scaled-cosine``.
    """
    items, poison = task.items(view.attackers), task.backdoor(view.attackers)
    training = task.training.model_copy(
        update={"lr": recipe.lr or task.training.lr, "batch_size": recipe.batch_size or task.training.batch_size}
    )
    start = view.state[None].to(task.device)
    local = start.clone()
    rate = training.lr
    if recipe.slowdown:
        found = math.exp(-loss_on(task, start, poison, training.batch_size))
        rate /= (50 if found > 0.5 else 1) * (100 if found > 0.9 else 1)
    optimizer = RowOptimizer(training, local[:, : task.trained])
    total, steps, epoch = 0.0, 0, 0
    for epoch in range(1, recipe.epochs + 1):
        order = rng(task.seed, f"the attacker's epoch {epoch}", view.round, view.attackers[0]).permutation(len(items))
        lowered = sum(epoch - 1 >= part * recipe.epochs for part in (0.2, 0.8)) if recipe.milestones else 0
        for first in range(0, len(order), training.batch_size):
            batch = some(items, order[first : first + training.batch_size])
            stack = local.clone().requires_grad_()
            loss = recipe.alpha * task.losses(stack, [batch])[0]
            if recipe.alpha < 1:
                loss = loss + (1 - recipe.alpha) * anomaly(stack[0], start[0], recipe.anomaly, gamma)
            (gradient,) = torch.autograd.grad(loss, stack)
            optimizer.step(gradient[:, : task.trained], [rate * 0.1**lowered])
            if recipe.bound is not None:
                local.copy_(start + within(local - start, recipe.bound))
            total, steps = total + float(loss.detach()), steps + 1
        backdoor = loss_on(task, local, poison, training.batch_size)
        if backdoor <= recipe.epsilon:
            break
    return Backdoored((local - start)[0].cpu(), total / steps, backdoor, epoch, len(items))


def anomaly(model: Tensor, state: Tensor, kind: Anomaly, gamma: float) -> Tensor:
    """Return L_ano of the model X ``[D]`` against the global state G ``[D]``, differentiable."""
    if kind == "l2":
        # The root has no slope at 0, where training begins.
        return ((model - state).square().sum() + 1e-12).sqrt()
    sent = state + gamma * (model - state) if kind == "scaled-cosine" else model
    return 1 - nn.functional.cosine_similarity(sent, state, dim=0)


def within(change: Tensor, bound: float) -> Tensor:
    """Return ``change``, shortened to the length ``bound`` where it is longer."""
    length = float(torch.linalg.vector_norm(change, dtype=torch.float64))
    return change * (bound / length) if length > bound else change


@torch.no_grad()
def loss_on(task: AttackedTask, state: Tensor, items: Items, batch_size: int) -> float:
    """Return the mean loss of the state ``[1, D]`` on ``items``, each batch weighed by its size."""
    total = 0.0
    for first in range(0, len(items), batch_size):
        batch = some(items, torch.arange(first, min(len(items), first + batch_size)).numpy())
        total += len(batch) * float(task.losses(state, [batch])[0])
    return total / len(items)
