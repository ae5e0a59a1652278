"""What a server with synthetic data does itself: it pre-trains, trains an update of its own, and fuses what clients send."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undertow.config import Synthetic, Training
from undertow.core.errors import UserError
from undertow.data.examples import Examples
from undertow.tasks.contract import TrainingPlan
from undertow.tasks.families import Families
from undertow.tasks.server_data import ServerData
from undertow.training import stacked
from undertow.training.clients import ClientUpdates
from undertow.training.distillation import distill, ensemble


@dataclass(frozen=True)
class ServerSide:
    """The server's part in training.

    Attributes:
        options: how synthetic data are used.
        plan: how the clients train.
        names: of the networks.
        families: the networks.
        data: synthetic samples.
        where: the networks train.
        clients: K; the server's draws are those of a client with this number, which no client has.
        augment: of every batch.
    """

    options: Synthetic
    plan: TrainingPlan
    names: Sequence[str]
    families: Families
    data: ServerData
    where: torch.device
    clients: int
    augment: Callable[[Examples, np.random.Generator], Examples]

    def pretrain(self, state: Tensor) -> Tensor:
        """Return the state ``[D]`` after ``synthetic.pretrain_epochs`` passes over the synthetic samples, as a client would train.

        Raises:
            UserError: it diverged.
        """
        options, training = self.options, self.plan.training
        if not options.pretrain_epochs:
            return state
        rate = options.pretrain_lr or training.lr
        training = training.model_copy(update={"local_epochs": options.pretrain_epochs, "lr": rate})
        state = state + self.update(state, self.data.pretraining, training, 0)
        if not torch.isfinite(state).all():
            raise UserError(
                f"pre-training on synthetic data with a learning rate of {rate:g} diverged; lower synthetic.pretrain_lr"
            )
        return state

    def update(self, state: Tensor, data: Examples, training: Training, t: int) -> Tensor:
        """Return what training every family on the server's own data changes, ``[D]``."""
        change = torch.zeros(self.families.layout.size)
        for net, own in zip(self.families.nets, self.families.columns, strict=True):
            job, start = stacked.ExampleJob(self.clients, data), state[own].to(self.where)
            trained = stacked.train(net, training, start, [job], self.plan.seed, t, augment=self.augment)
            change[own] = trained.updates[0]
        return change

    def fuse(self, state: Tensor, delta: Tensor, sent: ClientUpdates, t: int) -> tuple[Tensor, dict[str, Any] | None]:
        """Return the new global state ``[D]`` and a report.

        ``average``: G + delta. ``join``: G + (K * delta + own) / (K + 1), with own = :meth:`update` and K the clients of a family
        in this round. ``distill``: from G + delta on, every family is taught by the mean of the logits of all models that clients
        sent.

        Args:
            state: global, G.
            delta: the aggregated change.
            sent: by the clients.
            t: the round.
        """
        options, families, data = self.options, self.families, self.data.fusing
        if options.fusion == "average":
            return state + delta, None
        if options.fusion == "join":
            change, joined = self.update(state, data, self.plan.training, t), state.clone()
            for part in families.parts(sent.clients):
                k, own = len(part.rows), part.columns
                joined[own] += (k * delta[own] + change[own]) / (k + 1)
            return joined, {"joined": len(data)}
        teachers = families.teachers(state.to(self.where), sent.updates.to(self.where), sent.clients)
        taught, fused, students = ensemble(teachers, data.inputs), state + delta, []
        for name, net, own in zip(self.names, families.nets, families.columns, strict=True):
            student, report = distill(net, fused[own].to(self.where), taught, data, options, self.plan.seed, t)
            fused[own] = student.to(fused)
            students.append({"network": name, **report})
        right = float((taught.argmax(-1).cpu() == data.labels).double().mean())
        return fused, {"teachers": len(teachers), "samples": len(data), "ensemble_accuracy": right, "students": students}
