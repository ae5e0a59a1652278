"""What a compromised participant may do and what it sees.

Whatever the attack, it holds the poison that trigger, target and PR describe. :class:`Attack` is data poisoning: compromised
participants train on it as all others train on theirs. An attack that trains or sends something else overrides :meth:`Attack.send` and
sets ``malicious``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from undertow.config import Attack as Options
from undertow.config import Config, short_form
from undertow.core.errors import UserError
from undertow.core.registry import Registry, parameters, refuse_unknown
from undertow.tasks.contract import Local, Task

ATTACKS = Registry("attack", "undertow.attacks")


@dataclass(frozen=True)
class View:
    """What the compromised participants of a round know, all of them one attacker's.

    Attributes:
        state: the global state ``[D]`` they were sent.
        attackers: which of the clients they are, ascending, at least one.
        round: from 1.
        first: the round the attacker began in.
        participants: how many take part in this round, these among them.
        weight: what one update counts for in the new global state, G + weight·U + ...: η / n, or 1 / (participants) where the server averages.
    """

    state: Tensor
    attackers: Sequence[int]
    round: int
    first: int
    participants: int
    weight: float


class Attack:
    """Base of all attacks: data poisoning, and when it takes place.

    Attributes:
        malicious: whether the compromised send something that no training of theirs gave; otherwise :meth:`send` is not asked.
        of_server: whether the poison is in the server's synthetic data and in no client's.
    """

    malicious = False
    of_server = False

    def send(self, task: Task, view: View) -> Local:
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
    except (TypeError, ValueError) as error:
        raise UserError(f"attack.kind = {options.kind}: {error}") from error
    if not isinstance(made, Attack):
        raise UserError(
            f"attack.kind = {options.kind} makes a {type(made).__name__}; derive it from undertow.attacks.contract.Attack"
        )
    return made


def acts(config: Config, t: int) -> bool:
    """Tell whether compromised participants attack in round ``t``."""
    return t in config.attack.rounds if config.attack.rounds else t >= config.attack.start


def view(config: Config, task: Task, state: Tensor, chosen: Sequence[int], attackers: Sequence[int], t: int) -> View:
    """Return what the attackers know in round ``t``."""
    rate = config.federation.global_lr
    weight = 1 / len(chosen) if rate is None else rate / len(task.sizes)
    first = min(config.attack.rounds, default=config.attack.start)
    return View(state, attackers, t, first, len(chosen), weight)
