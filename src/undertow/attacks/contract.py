"""What an attacking client may do and what it sees.

Whatever the attack, the client holds the poison that trigger, target and PR describe. :class:`Attack` is data poisoning: benign
clients train on it as all others train on theirs. An attack whose clients train or send something else overrides
:meth:`Attack.send` and sets ``malicious``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from undertow.config import Attack as Options
from undertow.config import Training, short_form
from undertow.core.errors import UserError
from undertow.core.registry import Registry, parameters, refuse_unknown
from undertow.training.clients import ClientUpdates, Items

ATTACKS = Registry("attack", "undertow.attacks")


@dataclass(frozen=True)
class View:
    """What the malicious clients of a round know, all of them one attacker's.

    Attributes:
        state: the global state ``[D]`` they were sent.
        attackers: which of the clients they are, ascending, at least one.
        round: from 1.
        first: the round the attacker began in.
        participants: how many take part in this round, these among them.
        weight: what one update counts for in the new global state, G + weight·U + ...: η / n, or 1 / (participants) where the
            server averages.
    """

    state: Tensor
    attackers: Sequence[int]
    round: int
    first: int
    participants: int
    weight: float


class AttackedTask(Protocol):
    """What malicious clients have of a task: their samples, and the loss of any model on them.

    Attributes:
        seed: of the run.
        training: what benign clients do.
        device: where clients train.
        sizes: training samples of each client.
        trained: how many of the first columns of a state are parameters; what follows training moves by itself, such as running
            means.
    """

    seed: int
    training: Training
    device: torch.device
    sizes: Sequence[int]
    trained: int

    def items(self, clients: Sequence[int]) -> Items:
        """Return what malicious clients hold together: their own samples, PR of them poisoned."""

    def backdoor(self, clients: Sequence[int]) -> Items:
        """Return the poisoned ones of :meth:`items`."""

    def losses(self, stack: Tensor, block: Sequence[Items]) -> Tensor:
        """Return the mean loss ``[K]`` of each row of ``stack [K, D]`` on its own samples, differentiable."""


class Attack:
    """Base of all attacks: data poisoning, and when it takes place.

    Attributes:
        malicious: whether the clients send something that no training of theirs gave; otherwise :meth:`send` is not asked.
        of_server: whether the poison is in the server's synthetic data and in no client's.
    """

    malicious = False
    of_server = False

    def send(self, task: AttackedTask, view: View) -> ClientUpdates:
        """Return what the attackers send: rows of U for ``view.attackers``."""
        raise NotImplementedError


def make_attack(options: Options) -> Attack | None:
    """Build the attack that ``attack.kind`` names, ``name`` or ``name:parameter=value:...``; None for ``none``.

    Raises:
        UserError: an unknown name or parameter, or a value that the attack refuses.
    """
    if options.kind == "none":
        return None
    short = short_form(options.kind, "attack")
    make = ATTACKS.get(short["name"])
    refuse_unknown(ATTACKS.kind, short["name"], short["params"], parameters(make))
    try:
        made = make(**short["params"])
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"attack.kind = {options.kind}: {error}") from error
    if not isinstance(made, Attack):
        raise UserError(
            f"attack.kind = {options.kind} makes a {type(made).__name__}; derive it from undertow.attacks.contract.Attack"
        )
    return made


def acts(options: Options, t: int) -> bool:
    """Tell whether clients with poison use it in round ``t``."""
    return t in options.rounds if options.rounds else t >= options.start


def weight(global_lr: float | None, participants: int, clients: int) -> float:
    """Return what one update counts for: η / n, n = all ``clients``, or 1 / ``participants`` where the server averages."""
    return 1 / participants if global_lr is None else global_lr / clients


def view(options: Options, state: Tensor, attackers: Sequence[int], t: int, participants: int, weight: float) -> View:
    """Return what the attackers know in round ``t``."""
    return View(state, attackers, t, min(options.rounds, default=options.start), participants, weight)
