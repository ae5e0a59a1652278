"""The methods that a config names, made once, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from undertow.attacks.contract import Attack, make_attack
from undertow.backdoors.pattern import make_backdoor
from undertow.backdoors.placement import Threat, make_threat
from undertow.config import ClassificationTask, Config, InstructionTask
from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.registry import short_form
from undertow.defenses import composition
from undertow.defenses.base import Defense
from undertow.defenses.making import make_defenses
from undertow.tasks.poisoned_examples import TensorThreat


@dataclass(frozen=True)
class Methods:
    """What a config names.

    Attributes:
        attack: what attacking clients do; None without.
        threat: trigger and target of an instruction task, the pattern of any other.
        defenses: by name, in the order of the config.
    """

    attack: Attack | None
    threat: Threat | TensorThreat
    defenses: list[tuple[str, Defense]]


def make_methods(config: Config, defenses: Sequence[Options] | None = None) -> Methods:
    """Make attack, trigger and target or pattern, and defenses.

    Args:
        config: of the run.
        defenses: in place of the config's.

    Raises:
        UserError: no such method or parameter, a value that it refuses, or methods that do not go together.
    """
    attack, task = make_attack(config.attack), config.task
    written = isinstance(task, ClassificationTask) and task.synthetic.generator is not None
    made = make_defenses(list(config.defenses if defenses is None else defenses), written)
    composition.check_sums(made, config.federation)
    if attack is not None and attack.of_server and not isinstance(task, ClassificationTask):
        raise UserError(
            f"attack.kind = {config.attack.kind} poisons synthetic data, which task={task.kind} has none of; choose another"
        )
    if isinstance(task, InstructionTask):
        return Methods(attack, make_threat(config.attack, task.backdoor), made)
    return Methods(attack, TensorThreat(config.attack, attack, make_backdoor(task.backdoor, task.kind)), made)


def check_methods(config: Config) -> None:
    """Look up every name that only a registry knows, and every file of the data; a wrong one would show when its run has begun.

    Raises:
        UserError: as :func:`make_methods`, or no such data, file, template, network or generator.
    """
    from undertow.data.early import refuse_missing
    from undertow.data.load import DATASETS
    from undertow.data.population import POPULATIONS
    from undertow.data.template import TEMPLATES
    from undertow.generators.contract import GENERATORS
    from undertow.models.net import NETS

    make_methods(config)
    task = config.task
    if isinstance(task, InstructionTask):
        DATASETS.get(task.data.name)
        TEMPLATES.get(task.data.template)
        refuse_missing(task.data)
        return
    POPULATIONS.get(short_form(task.data.name, "population")["name"])
    networks = task.model.networks if isinstance(task, ClassificationTask) else []
    for name in [*networks, task.model.name]:
        NETS.get(short_form(name, "network")["name"])
    if isinstance(task, ClassificationTask) and task.synthetic.generator is not None:
        GENERATORS.get(short_form(task.synthetic.generator, "generator")["name"])
