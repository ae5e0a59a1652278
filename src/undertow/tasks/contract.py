"""What the method asks of a task, by who asks: clients train, attackers use their samples, the server aggregates, a run measures
and records.

A task is fixed before round 1: its data are dealt to the clients, poison included. What does not change is an attribute; what
concerns one task alone has a default in :class:`Defaults`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow.attacks.contract import AttackedTask
from undertow.config import Federation, Training
from undertow.core.layout import Layout
from undertow.defenses.contexts import NetSetting, Setting
from undertow.tasks.families import Part
from undertow.training.clients import ClientUpdates


@dataclass(frozen=True)
class TrainingPlan:
    """How the clients train, and in how many rounds.

    Attributes:
        seed: of the run.
        training: what each does in a round.
        federation: who takes part.
    """

    seed: int
    training: Training
    federation: Federation


class Trains(ABC):
    """What the clients do."""

    @abstractmethod
    def initial(self) -> Tensor:
        """Return the global state before round 1, ``[D]``."""

    @abstractmethod
    def train(self, state: Tensor, chosen: Sequence[int], t: int, acting: Collection[int]) -> ClientUpdates:
        """Let clients train from the global state ``[D]`` in round ``t``, those in ``acting`` on data that hold poison."""


class Measures(ABC):
    """What a run is measured by."""

    @abstractmethod
    def measure(self, state: Tensor | None, t: int, n: int, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the scored outputs after round ``t``, on the first ``n`` test samples of each kind (0 = all).

        Args:
            state: global, ``[D]``; None for the model that the run began with.
            t: the round; 0 for the start.
            n: how many.
            reports: is given what defenses report of the answering.
        """

    @abstractmethod
    def rates(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return MA, ASR, FTR and what else the task measures, of one round's scored outputs."""


class Records(ABC):
    """What a run keeps.

    Attributes:
        poison_counts: ``clients`` with poison, poisoned ``samples``, all training samples as ``total``, and ``unknown`` where
            others hold them.
        extra: further figures for the run's result, such as what a filter found.
    """

    poison_counts: Mapping[str, int]
    extra: Mapping[str, Any] = {}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the data are made of: a run's ``data.json``."""

    @abstractmethod
    def ground_truth(self) -> Iterable[Mapping[str, Any]]:
        """Return each poisoned sample before and after: a run's ``poison.jsonl``."""

    @abstractmethod
    def save(self, folder: Path, state: Tensor) -> None:
        """Write the final global state ``[D]`` into the run directory in a format others read."""


class Defaults:
    """What one kind of task has and others do without.

    Attributes:
        setting: what every party of instruction tuning knows.
        network: what the server knows on a task over tensors.
        counterfactual: whether BSNR needs the updates of the same clients from their data without poison.
    """

    setting: Setting | None = None
    network: NetSetting | None = None
    counterfactual: bool = False

    def parts(self, clients: Sequence[int]) -> list[Part] | None:
        """Return the families of the clients of a round, None where all have one network."""
        return None

    def trusted(self, state: Tensor, t: int) -> Tensor | None:
        """Return an update ``[D]`` that the server trains itself from the global state ``[D]``; None where it has no data."""
        return None

    def fuse(self, state: Tensor, delta: Tensor, sent: ClientUpdates, t: int) -> tuple[Tensor, dict[str, Any] | None]:
        """Return the new global state ``[D]`` of the old one and the aggregated change, and a report of what else was done."""
        return state + delta, None

    def held_out_loss(self, state: Tensor | None, n: int) -> float | None:
        """Return the mean loss of right answers to the first ``n`` test questions (all for 0), under the state ``[D]`` or for None
        the start; None where the task has none."""
        return None

    def neighbourhood(self, state: Tensor) -> list[dict[str, Any]]:
        """Return the scored outputs of the final state ``[D]`` to questions with the trigger's neighbours, if asked for."""
        return []

    def forecast(self, chosen: Sequence[int], rounds: int) -> str | None:
        """Return one line on the memory and time that ``rounds`` rounds will take, None where that is not known."""
        return None

    def provenance(self) -> dict[str, Any] | None:
        """Return what the card of the saved state says of base, data and backdoor; None where no card is written."""
        return None

    def recall(self, lines: Sequence[dict[str, Any]]) -> None:
        """Take the scored outputs of earlier rounds, where they make the next measurement faster."""


class Task(Trains, Measures, Records, Defaults, AttackedTask):
    """One task with its data.

    Attributes:
        layout: names the columns of state and updates.
        device: where the clients train.
        sizes: training samples of each client, without reading them.
        poisoned: clients that hold poison (ground truth, for metrics and for the attacker they belong to).
        drawn: clients drawn to hold poison; where PR is too small for one sample, ``poisoned`` lacks some of them.
    """

    layout: Layout
    device: torch.device
    poisoned: Sequence[int]
    drawn: Sequence[int]
