"""From a config to what a run works with: everything is made here, once, and nothing below takes the whole config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from undertow.attacks.contract import Attack
from undertow.backdoors.placement import Threat
from undertow.config import Attack as Poisoning
from undertow.config import Audit, ClassificationTask, Config, InstructionTask, Measure, Model
from undertow.config import Federation as Options
from undertow.core.observer import Observer
from undertow.defenses.base import Defense
from undertow.defenses.data import exchange
from undertow.federation.methods import Methods, make_methods
from undertow.models.causal_lm import CausalLM
from undertow.tasks import instruction
from undertow.tasks.classification import Classification
from undertow.tasks.contract import Task, TrainingPlan
from undertow.tasks.next_word import NextWord
from undertow.tasks.over_tensors import OverTensors
from undertow.tasks.poisoned_examples import TensorThreat


@dataclass(frozen=True)
class Federation:
    """Everything that is fixed before round 1.

    Attributes:
        seed: every random draw derives from it.
        options: who takes part, and how updates are averaged.
        poisoning: how much poison there is, and when it acts.
        measuring: what is measured, and how often.
        auditing: in which rounds the server audits the global adapter.
        task: data, model, training and measurement.
        attack: what attacking clients do; None without.
        defenses: by name, in the order of the config.
    """

    seed: int
    options: Options
    poisoning: Poisoning
    measuring: Measure
    auditing: Audit
    task: Task
    attack: Attack | None
    defenses: list[tuple[str, Defense]]

    @classmethod
    def of(cls, config: Config, task: Task, methods: Methods) -> Federation:
        """Return the federation of a task that is made."""
        return cls(
            config.seed, config.federation, config.attack, config.measure, config.audit, task, methods.attack, methods.defenses
        )


def resolve(
    config: Config,
    observer: Observer,
    *,
    bases: Callable[[Model], CausalLM] | None = None,
    folder: Path | None = None,
    held: instruction.Held | None = None,
) -> Federation:
    """Make methods and task; the task loads its data, poisons them, and lets clients sanitize theirs.

    Args:
        config: what to do.
        observer: is told what happens.
        bases: gives the base in place of ``load_base``.
        folder: the run directory, where what a generator wrote is kept.
        held: what of the data is here, where the clients' files are on other machines.

    Raises:
        UserError: anything the user can fix.
    """
    if isinstance(config.task, InstructionTask):
        return exchange.alone(resolving(config, observer, bases, held))
    methods = make_methods(config)
    return Federation.of(config, over_tensors(config, methods, observer, folder), methods)


def resolving(
    config: Config,
    observer: Observer,
    bases: Callable[[Model], CausalLM] | None = None,
    held: instruction.Held | None = None,
) -> exchange.Pooling[Federation]:
    """Go through :func:`resolve` of instruction tuning, with a step for each exchange of counts between clients.

    Args:
        config, observer, bases, held: as for :func:`resolve`.
    """
    methods, task = make_methods(config), config.task
    assert isinstance(task, InstructionTask)
    assert isinstance(methods.threat, Threat)
    made = yield from instruction.building(
        task.data, task.model, _plan(config), methods.threat, config.measure, methods.defenses, observer, bases, held
    )
    return Federation.of(config, made, methods)


def _plan(config: Config) -> TrainingPlan:
    return TrainingPlan(config.seed, config.training, config.federation)


def over_tensors(
    config: Config, methods: Methods, observer: Observer, folder: Path | None = None, synthetic: bool = True
) -> OverTensors:
    """Make a task over tensors; ``synthetic``: with the server's data of a generator, where the config asks for them."""
    task, threat, plan = config.task, methods.threat, _plan(config)
    assert isinstance(threat, TensorThreat)
    if isinstance(task, ClassificationTask):
        written = task.synthetic if synthetic else None
        return Classification.build(
            task.data, task.model, plan, threat, config.measure, written, methods.defenses, observer, folder
        )
    assert not isinstance(task, InstructionTask)
    return NextWord.build(task.data, task.model, plan, threat, config.measure, None, methods.defenses, observer, folder)
