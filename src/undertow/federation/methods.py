"""Whether every method that a config names exists: looked up before anything is loaded, in the registries of the task's kind."""

from __future__ import annotations

from undertow.config import ClassificationTask, Config, InstructionTask


def check_methods(config: Config) -> None:
    """Look up every name that only a registry knows; otherwise a wrong one would show when its run has loaded data and model.

    Raises:
        UserError: no such method or parameter, or a value that the method refuses.
    """
    from undertow.attacks.contract import make_attack
    from undertow.core.registry import short_form
    from undertow.defenses.registry import make_defenses

    make_attack(config.attack)
    task = config.task
    synthetic = task.synthetic.generator if isinstance(task, ClassificationTask) else None
    make_defenses(config.defenses, synthetic is not None)
    if isinstance(task, InstructionTask):
        from undertow.backdoors.target import make_target
        from undertow.backdoors.trigger import make_trigger
        from undertow.data.load import DATASETS
        from undertow.data.template import TEMPLATES

        DATASETS.get(task.data.name)
        TEMPLATES.get(task.data.template)
        make_trigger(config.backdoor)
        make_target(config.backdoor)
        return
    from undertow.backdoors.pattern import make_backdoor
    from undertow.data.population import POPULATIONS
    from undertow.models.net import NETS

    POPULATIONS.get(short_form(task.data.name, "population")["name"])
    make_backdoor(config.backdoor, task.kind)
    for name in [*([] if not isinstance(task, ClassificationTask) else task.model.networks), task.model.name]:
        NETS.get(short_form(name, "network")["name"])
    if synthetic is not None:
        from undertow.generators.contract import GENERATORS

        GENERATORS.get(short_form(synthetic, "generator")["name"])
