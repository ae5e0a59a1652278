"""The configuration in the field's own terms: every value has a rule, a default and a source.

A config is YAML; any field can be overridden on the command line as ``group.field=value``. Unknown keys are
refused with the nearest known name, and the effective values are written into the run directory.
"""

from undertow.config.config import FORMAT, Config
from undertow.config.describe import described, every_field, field_names
from undertow.config.groups import Attack, Audit, Bsnr, Defense, Federate, Federation, Group, Measure, Training
from undertow.config.names import by_short_names, long_name, short_name
from undertow.config.reading import load, shipped, validate, with_overrides
from undertow.config.tasks import (
    NOW,
    TASKS,
    AuthorPartition,
    ClassificationBackdoor,
    ClassificationData,
    ClassificationModel,
    ClassificationTask,
    ClassPartition,
    Data,
    InstructionBackdoor,
    InstructionTask,
    Lora,
    Model,
    NextWordBackdoor,
    NextWordData,
    NextWordModel,
    NextWordTask,
    Partition,
    Synthetic,
    Task,
)
from undertow.core.registry import short_form

__all__ = [
    "FORMAT",
    "NOW",
    "TASKS",
    "Attack",
    "Audit",
    "AuthorPartition",
    "Bsnr",
    "ClassPartition",
    "ClassificationBackdoor",
    "ClassificationData",
    "ClassificationModel",
    "ClassificationTask",
    "Config",
    "Data",
    "Defense",
    "Federate",
    "Federation",
    "Group",
    "InstructionBackdoor",
    "InstructionTask",
    "Lora",
    "Measure",
    "Model",
    "NextWordBackdoor",
    "NextWordData",
    "NextWordModel",
    "NextWordTask",
    "Partition",
    "Synthetic",
    "Task",
    "Training",
    "by_short_names",
    "described",
    "every_field",
    "field_names",
    "load",
    "long_name",
    "shipped",
    "short_form",
    "short_name",
    "validate",
    "with_overrides",
]
