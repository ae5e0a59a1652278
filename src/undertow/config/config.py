"""A whole experiment's values, checked together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from undertow.config.format0 import convert, given, is_old
from undertow.config.groups import Attack, Audit, Defense, Federate, Federation, Group, Measure, Training
from undertow.config.names import before, by_short_names, leaves, put
from undertow.config.tasks import (
    ClassificationBackdoor,
    ClassificationData,
    ClassificationModel,
    ClassificationTask,
    Data,
    InstructionBackdoor,
    InstructionTask,
    Model,
    NextWordBackdoor,
    NextWordData,
    NextWordModel,
    Synthetic,
    Task,
)
from undertow.core.errors import UserError, warn_renamed
from undertow.core.registry import short_form

#: What a config file of this version says of itself.
FORMAT = 1

#: Fields that say how long to wait, not what a run computes: a run is resumed with other values of them.
_WAITING = {"deadline", "min_clients", "node_wait"}


#: What was left out of digests as a default once, and still is: names of folders stay.
_FORMER_DEFAULTS = {"measure.max_new_tokens": 256}


class Config(Group):
    """A whole experiment."""

    seed: int = Field(0, ge=0, description="Every random draw derives from it.")
    task: Task = Field(default_factory=lambda: InstructionTask())  # type: ignore[call-arg]
    federation: Federation = Field(default_factory=lambda: Federation())  # type: ignore[call-arg]
    training: Training = Field(default_factory=lambda: Training())  # type: ignore[call-arg]
    attack: Attack = Field(default_factory=lambda: Attack())  # type: ignore[call-arg]
    defenses: list[Defense] = Field(
        default_factory=list, description="In order; each a name or {name, params}. Empty = plain FedAvg."
    )
    measure: Measure = Field(default_factory=lambda: Measure())  # type: ignore[call-arg]
    audit: Audit = Field(default_factory=lambda: Audit())  # type: ignore[call-arg]
    federate: Federate = Field(default_factory=lambda: Federate())  # type: ignore[call-arg]
    compare: str | None = Field(None, description="A finished run without poison, shown beside this one in the report.")
    tracking: Literal["tensorboard", "wandb", "mlflow"] | None = Field(
        None, description="A tracker that is told config, figures, result and report page, each an extra of that name."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_this_format(cls, values: Any) -> Any:
        """Convert a former format, and fill in which task it is."""
        if not isinstance(values, Mapping):
            return values
        values = convert(values) if is_old(values) else dict(values)
        found = values.pop("format", FORMAT)
        if found != FORMAT:
            raise ValueError(
                f"format = {found!r}: this version of undertow reads formats 0 and {FORMAT}; use the one that wrote it"
            )
        if isinstance(task := values.get("task"), Mapping):
            kind = task.get("kind", "instruction")
            if kind == "next_word":
                warn_renamed("task 'next_word'", "'next-word'")
                kind = "next-word"
            values["task"] = {**task, "kind": kind}
        return values

    @field_validator("defenses", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip() not in ("", "none")]
        if isinstance(value, list):
            return [short_form(item) if isinstance(item, str) else item for item in value]
        return value

    @model_validator(mode="after")
    def _attack_within_the_run(self) -> Config:
        outside = [t for t in self.attack.rounds if not 1 <= t <= self.federation.rounds]
        if outside and self.attack.kind != "none" and self.federation.rounds:
            raise ValueError(
                f"attack.rounds names round {outside[0]} of a run with {self.federation.rounds}; name rounds from 1 to that, or "
                "attack.rounds=[] for all"
            )
        return self

    @model_validator(mode="after")
    def _audit_of_an_adapter(self) -> Config:
        if self.audit.every and not isinstance(self.task, InstructionTask):
            raise ValueError(f"audit.every = {self.audit.every}: only adapters of task=instruction can be audited; set it to 0")
        return self

    @model_validator(mode="after")
    def _a_file_a_client(self) -> Config:
        if isinstance(self.task, InstructionTask) and self.task.data.partition.kind == "files":
            files = self.task.data.partition.files
            if len(files) != self.federation.clients:
                raise ValueError(
                    f"data.partition.files names {len(files)} files for {self.federation.clients} clients; give one file a client"
                )
        return self

    @model_validator(mode="after")
    def _enough_clients(self) -> Config:
        least = self.federate.min_clients
        if least is not None and least > self.federation.clients:
            raise ValueError(
                f"federate.min_clients = {least} of {self.federation.clients} clients; give at most that, or null for all "
                "participants"
            )
        return self

    @model_validator(mode="after")
    def _foundation_model(self) -> Config:
        if not isinstance(self.task, ClassificationTask):
            return self
        synthetic, several = self.task.synthetic, len(self.task.model.networks) > 0
        if synthetic.fusion != "average" and synthetic.generator is None:
            raise ValueError(
                f"synthetic.fusion = {synthetic.fusion} needs synthetic data; set synthetic.generator, or fusion=average"
            )
        if synthetic.fusion == "distill" and self.federation.secure_aggregation:
            raise ValueError(
                "synthetic.fusion = distill teaches by every client's model, and federation.secure_aggregation shows their sum "
                "alone; leave one out"
            )
        if several and self.federation.secure_aggregation:
            raise ValueError("model.networks and federation.secure_aggregation exclude each other; leave one out")
        return self

    @property
    def instruction(self) -> InstructionTask:
        """The task, where it is instruction tuning.

        Raises:
            UserError: it is of another kind.
        """
        if not isinstance(self.task, InstructionTask):
            raise UserError(f"task = {self.task.kind}: this is for task=instruction alone; give a config of that kind")
        return self.task

    @property
    def data(self) -> Data | ClassificationData | NextWordData:
        """Short for ``task.data``."""
        return self.task.data

    @property
    def model(self) -> Model | ClassificationModel | NextWordModel:
        """Short for ``task.model``."""
        return self.task.model

    @property
    def backdoor(self) -> InstructionBackdoor | ClassificationBackdoor | NextWordBackdoor:
        """Short for ``task.backdoor``."""
        return self.task.backdoor

    @property
    def synthetic(self) -> Synthetic | None:
        """Short for ``task.synthetic``; None for a task without."""
        return self.task.synthetic if isinstance(self.task, ClassificationTask) else None

    def values(self) -> dict[str, Any]:
        """Effective values as plain data, for YAML and JSON; a config again."""
        return {"format": FORMAT, **self.model_dump(mode="json")}

    def short_values(self) -> dict[str, Any]:
        """Effective values as plain data, nested by the short names of fields, for tables and pages."""
        return by_short_names(self.values())

    def identity(self) -> dict[str, Any]:
        """The values that make a run what it is: all but ``compare`` and ``tracking``, and how long to wait for nodes."""
        return self.model_dump(mode="json", exclude={"compare": True, "tracking": True, "federate": _WAITING})

    def digest(self) -> str:
        """Eight hexadecimal digits that name these values; values left at their default do not count, so a new field changes no
        name."""
        left_out: Any = {"compare": True, "tracking": True, "task": True, "federate": _WAITING}
        found: dict[str, Any] = {}
        for name, value in leaves(self.model_dump(mode="json", exclude_defaults=True, exclude=left_out)):
            if _FORMER_DEFAULTS.get(name) != value:
                put(found, before(name), value)
        if self.task.kind == "instruction" and self.measure.max_new_tokens == "auto":
            put(found, "measure.max_new_tokens", "auto")
        for group, value in given(self.task.model_dump(mode="json")).items():
            found[group] = {**found.get(group, {}), **value} if isinstance(value, dict) else value
        if not found.get("federate"):
            found.pop("federate", None)
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
