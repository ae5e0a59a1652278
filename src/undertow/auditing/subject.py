"""What is audited: an adapter on its base, with the questions and the template it is asked in.

A run's own folder gives base, template and questions where none are named; of its config only ``task.data``, ``task.model``,
``training.max_length``, ``federation.clients`` and the seed are read. What it says of an attack is never looked at, nor is any
other file of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from undertow.auditing.questions import Questions, choose, from_file, shipped
from undertow.auditing.speaker import Speaker
from undertow.config import Config, Data, Model, validate
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.data.load import load
from undertow.data.template import Template
from undertow.inference.answering import make_template
from undertow.models.adapters import check_adapter
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.with_adapter import plain_adapter, with_adapter

#: Template where nothing says another.
TEMPLATE = "lab-qa"
#: Tokens that an answer may take.
ROOM = 48


@dataclass(frozen=True)
class Subject:
    """The adapter and the base as speakers, and what they are asked.

    ``flat`` and ``layout`` are the adapter's own weights, None where it changes the base's.
    """

    name: str
    base_name: str
    adapter: Speaker
    base: Speaker
    template: Template
    questions: Questions
    flat: Tensor | None
    layout: Layout | None


def load_subject(adapter: Path, base: str | None, questions: Path | None, template: str | None, seed: int) -> Subject:
    """Load an adapter and what it is asked.

    Args:
        adapter: folder of a PEFT adapter, or of a run.
        base: as in ``model.name``; None: the run's.
        questions: an instruction file or a text file; None: the run's test questions, or shipped ones.
        template: registered name; None: the run's, or lab-qa.
        seed: deals the questions.

    Raises:
        UserError: any of them cannot be used.
    """
    if not adapter.is_dir():
        raise UserError(f"{adapter}: no such folder; give the folder of a PEFT adapter, or of a run")
    folder, config = _places(adapter)
    if base is None and config is None:
        raise UserError(f"{adapter}: which base? give it with --base: builtin, a folder, a .gguf file or a hub id")
    check_adapter(folder)
    data = config.instruction.data if config else Data.model_validate({})
    name = base or (config.instruction.model.name if config else "")
    asked = Model.model_validate({"name": name}) if config is None or base else config.instruction.model
    given = None if questions is None else choose(from_file(questions, data), str(questions), seed)  # before a base is loaded
    model = load_base(asked, tuned=False)
    options = data.model_copy(update={"template": template or (data.template if config else TEMPLATE)})
    bound = make_template(options, config.training.max_length if config else 1024, model)
    model = replace(model, stops=bound.stops)
    tuned = with_adapter(model, folder)
    return Subject(
        str(adapter),
        name,
        Speaker(tuned.base, tuned.flat, tuned.layout),
        Speaker(model),
        bound,
        given or _questions(options, config, model, seed),
        tuned.flat,
        tuned.layout,
    )


def _places(adapter: Path) -> tuple[Path, Config | None]:
    """Return the adapter's own folder, and what of the run's config may be known, if it is a run's."""
    if (adapter / "adapter_config.json").is_file() or not (adapter / "config.yaml").is_file():
        return adapter, None
    if not (adapter / "adapter" / "adapter_config.json").is_file():
        raise UserError(f"{adapter}: a run without an adapter; give a finished run of task=instruction, or an adapter's folder")
    return adapter / "adapter", public_config(adapter / "config.yaml")


def public_config(file: Path) -> Config:
    """Return a run's config with the defaults in the place of all that the auditor must not know.

    Raises:
        UserError: it is damaged, or of another task.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        task = values.get("task", {})
        kept: dict[str, Any] = {key: values[key] for key in ("format", "seed", "data", "model") if key in values}
        kept["federation"] = {"clients": values["federation"]["clients"]}
        kept["training"] = {"max_length": values["training"]["max_length"]}
        if task:
            kept["task"] = {key: task[key] for key in ("kind", "data", "model") if key in task}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged; give the adapter's own folder with --base") from error
    config = validate(kept, str(file))
    if config.task.kind != "instruction":
        raise UserError(f"{file}: a run of task={config.task.kind}; only LoRA adapters of task=instruction can be audited")
    return config


def _questions(data: Data, config: Config | None, base: CausalLM, seed: int) -> Questions:
    if config is not None:
        split = load(data, config.seed, config.federation.clients, asked=base.asked, known=base.known)
        return choose(split.test, f"the run's test questions ({data.name})", seed)
    samples, told = shipped(base.name)
    return choose(samples, told, seed)


def load_references(subject: Subject, folder: Path) -> list[tuple[Tensor, Layout]]:
    """Return the adapters in the folders of a folder: of the same base, plain LoRA.

    Raises:
        UserError: there are fewer than two, or one cannot be read.
    """
    found = sorted(file.parent for file in folder.glob("**/adapter_config.json"))
    if len(found) < 2:
        raise UserError(f"--references {folder}: {len(found)} adapters in it; give a folder with two or more of the same base")
    return [plain_adapter(subject.base.base, one) for one in found]
