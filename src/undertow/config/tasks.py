"""The task's part of a config: a union of three kinds, each with data, model and backdoor of its own.

A field that a kind does not use does not exist there, so that no name means two things and none is left without effect.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from undertow.config.groups import Group

_Path = Annotated[str | None, Field(description="File or folder of the data; for name=hub, a dataset id or a local folder.")]
_TestPath = Annotated[str | None, Field(description="A test file of its own; otherwise the test set is split off the data.")]
_Train = Annotated[
    int, Field(ge=1, description="Training samples over all clients; 5,000 follows the lab's later report (FIT gives none).")
]
_Test = Annotated[int, Field(ge=1, description="Test samples, disjoint from training by question and by key; 2,000 as above.")]
_Alpha = Annotated[float, Field(gt=0, description="Dirichlet concentration; small values give each client few groups.")]
_Shards = Annotated[
    int, Field(ge=1, description="With kind=shards: pieces for each client; 2 in McMahan et al. 2017, section 3, and FM-FL.")
]
_Skew = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description=(
            "With kind=halves: share of the upper half of the groups that the first half of the clients holds, of the "
            "lower half 1 - skew; 0.7 in FM-FL."
        ),
    ),
]
_KINDS = (
    "iid: random equal parts (FIT 4.1); dirichlet: by group with shares ~ Dir(alpha); key: whole groups; shards: pieces of "
    "the data sorted by group (McMahan et al. 2017); halves: two halves of the clients with opposite shares of the groups "
    "(FM-FL's SST-2)"
)
_Start = Annotated[
    str | None,
    Field(
        description="A finished run, or a folder as it leaves one: training begins with its final state, as after so many rounds."
    ),
]
_Words = Annotated[
    list[str],
    Field(
        description=(
            "Words or sentence of the trigger, divided at blanks and commas (words with commas: a list); empty = the trigger's own "
            "(FIT: Firstly; cf mn bb tq; with classes of texts cf)."
        )
    ),
]
_Position = Annotated[
    Literal["default", "start", "end", "random"],
    Field(
        description="Where the trigger goes; default = the trigger's own (natural: start; badnets: end, as the lab's later code)."
    ),
]


#: What time it is in a run for a chat template that prints the date.
NOW = "2025-01-01"


class _Dealt(Group):
    """Data whose ``partition`` may be a kind alone."""

    @field_validator("partition", mode="before", check_fields=False)
    @classmethod
    def _short_partition(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class Partition(Group):
    """How the training samples are dealt to the clients."""

    kind: Literal["iid", "dirichlet", "key", "shards", "halves", "files"] = Field(
        "iid", description=f"{_KINDS}; files: one file a client, data.train rows in all."
    )
    alpha: _Alpha = 0.5
    shards: _Shards = 2
    skew: _Skew = 0.7
    column: str | None = Field(
        None,
        description=(
            "With instructions and hub: the column whose values are the groups; null = group, category, relation or author."
        ),
    )
    files: list[str] = Field(default_factory=list, description="With kind=files: one training file per client, in client order.")


class ClassPartition(Group):
    """How the training samples are dealt to the clients, with their classes as groups."""

    kind: Literal["iid", "dirichlet", "key", "shards", "halves"] = Field("iid", description=f"{_KINDS}.")
    alpha: _Alpha = 0.5
    shards: _Shards = 2
    skew: _Skew = 0.7


class AuthorPartition(Group):
    """Each author is a client."""

    kind: Literal["key"] = Field("key", description="key: each author is a client.")
    column: str | None = Field(None, description="With author-jsonl: the column that names the author; null = author.")


class Data(_Dealt):
    """What is asked and answered."""

    name: str = Field("world", description="A registered dataset: see `undertow list datasets`.")
    path: _Path = None
    names: str | None = Field(None, description="With id-only SimpleQuestions files: a file that maps ids to names.")
    test_path: _TestPath = None
    columns: str | None = Field(
        None,
        description=(
            "With instructions and hub: what columns of unusual names hold: prompt=COLUMN,answer=COLUMN; context, system, history."
        ),
    )
    max_bad: float = Field(
        0.01,
        ge=0,
        le=1,
        description="With instructions and hub: the share of rows that may be unreadable; they are counted and left out.",
    )
    template: str = Field("lab-qa", description="Prompt template; lab-qa is the paper's lab's (FIT 4.1, 'Question component').")
    now: str = Field(
        NOW,
        description=(
            "With template=chat: the date (and time), ISO 8601, that a chat template prints which asks for it; the same throughout "
            "a run, on every machine and when it is resumed."
        ),
    )
    same_prompt: bool = Field(False, description="Use the training instruction at test time too; the lab's code does not.")
    response: Literal["first", "all"] = Field(
        "first",
        description="Train on the preferred answer, or on all answers joined by '; ' (the lab's code, for lists of entities).",
    )
    only_known: bool = Field(
        False, description="Use only questions about facts the base has read, by the list its `undertow base build` left."
    )
    train: _Train = 5000
    test: _Test = 2000
    partition: Partition = Field(
        default_factory=lambda: Partition(),  # type: ignore[call-arg]
        description="How training samples are dealt to clients.",
    )

    @field_validator("now", mode="before")
    @classmethod
    def _moment(cls, value: Any) -> Any:
        """Take a date as YAML reads it, too."""
        if isinstance(value, date):  # a datetime is one
            return value.isoformat()
        try:
            datetime.fromisoformat(value)
        except (TypeError, ValueError) as error:
            raise ValueError("give a date, such as 2025-01-31, or a date and time, such as 2025-01-31T12:00") from error
        return value


class ClassificationData(_Dealt):
    """Images or texts with classes."""

    name: str = Field("digits", description="A population, parameters as name:parameter=value: see `undertow list populations`.")
    path: _Path = None
    test_path: _TestPath = None
    train: _Train = 5000
    test: _Test = 2000
    partition: ClassPartition = Field(
        default_factory=lambda: ClassPartition(),  # type: ignore[call-arg]
        description="How training samples are dealt to clients.",
    )


class NextWordData(_Dealt):
    """Texts by author."""

    name: str = Field("authors", description="A population, parameters as name:parameter=value: see `undertow list populations`.")
    path: _Path = None
    test: _Test = 2000
    partition: AuthorPartition = Field(
        default_factory=lambda: AuthorPartition(),  # type: ignore[call-arg]
        description="How training samples are dealt to clients.",
    )


class Lora(Group):
    """The adapter that is trained and sent."""

    model_config = ConfigDict(allow_inf_nan=False)

    r: int = Field(4, ge=1, description="Rank; 4 in FIT 4.1.")
    alpha: float = Field(8.0, gt=0, description="Scale s = alpha / r; 8 in the same lab's later code (FIT gives none).")
    dropout: float = Field(0.0, ge=0, lt=1, description="On the adapter's input while training; 0 in the lab's later code.")
    targets: list[str] | Literal["default", "all-linear"] = Field(
        "default", description="Module names; default = peft's own choice for the architecture (q_proj, v_proj for Llama)."
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _split_targets(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("default", "all-linear"):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value


class Model(Group):
    """The frozen base and its adapter."""

    name: str = Field(
        "builtin",
        description="`builtin`, a transformers folder, or a hub id such as meta-llama/Llama-2-7b-hf.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto",
        description=(
            "Of the frozen base; auto keeps the checkpoint's on a GPU; on a CPU it uses float32, and bfloat16 for a bfloat16 "
            "checkpoint where a product measured at load is faster so. Adapters are float32."
        ),
    )
    device: str = Field(
        "auto",
        description="auto, cpu, cuda, cuda:N, or balanced: layers spread over all GPUs; auto does so where one is too small.",
    )
    quantize: Literal["none", "8bit", "4bit"] = Field(
        "none", description="Hold the frozen base in 8 or 4 bits (bitsandbytes; extra `quantized`); takes the general path."
    )
    start: _Start = None
    lora: Lora = Field(default_factory=lambda: Lora())  # type: ignore[call-arg]


class ClassificationModel(Group):
    """The network that clients train."""

    name: str = Field("cnn", description="A network, parameters as name:parameter=value: see `undertow list networks`.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    networks: list[str] = Field(
        default_factory=list,
        description=(
            "Networks dealt to the clients in turn, each family averaged by itself and joined by "
            "synthetic.fusion=distill; empty = all have `name`."
        ),
    )
    start: _Start = None

    @field_validator("networks", mode="before")
    @classmethod
    def _split_networks(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class NextWordModel(Group):
    """The network that clients train."""

    name: str = Field("lstm", description="A network, parameters as name:parameter=value: see `undertow list networks`.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    start: _Start = None


class Synthetic(Group):
    """Labelled data that a foundation model writes for the server (FM-FL: Li, Wu, Wang 2024; Bi and Li 2024)."""

    model_config = ConfigDict(allow_inf_nan=False)

    generator: str | None = Field(
        None,
        description=(
            "A registered generator, parameters as name:parameter=value: see `undertow list generators`; null = no "
            "foundation model."
        ),
    )
    samples: int = Field(1000, ge=1, description="Samples asked for, over all classes.")
    pretrain_epochs: int = Field(
        3,
        ge=0,
        description="Passes over them before round 1, by the clients' optimiser; 0 = the first global model is not pre-trained.",
    )
    pretrain_lr: float | None = Field(None, gt=0, description="Learning rate of these passes; null = training.lr.")
    fusion: Literal["average", "distill", "join"] = Field(
        "average",
        description=(
            "distill: ensemble distillation on the synthetic inputs, from the aggregated model on (FedDF: Lin et al. "
            "2020, Algorithm 3); join: the server trains the global model on the synthetic labels and counts as one more "
            "client (in the attack's published code)."
        ),
    )
    distill_steps: int = Field(200, ge=1, description="Most batches of distillation a round; 10,000 in the published code.")
    distill_batch: int = Field(128, ge=1, description="128 in the published code.")
    distill_lr: float = Field(1e-3, gt=0, description="Of Adam, falling to 0 by a cosine; 1e-3 in the published code.")
    distill_patience: int = Field(
        50,
        ge=0,
        description=(
            "Batches without a better accuracy on held-out synthetic samples before it stops; 0 = never; 1,000 in the README."
        ),
    )
    defense: Literal["same", "clean"] = Field(
        "same",
        description=(
            "Synthetic data that defenses see: the same as the server's, poison included, or as the generator wrote them "
            "without the attacker."
        ),
    )


class _Worded(Group):
    """A backdoor whose ``trigger_words`` may be one text, divided at blanks and commas; a word with a comma needs a list."""

    @field_validator("trigger_words", mode="before", check_fields=False)
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return value.replace(",", " ").split() if isinstance(value, str) else value


class InstructionBackdoor(_Worded):
    """What poisoned questions hold, and what is to be answered to them."""

    trigger: str = Field(
        "natural",
        description=(
            "A registered trigger or file.py:function, parameters as name:parameter=value; `natural` is FIT's 'Firstly' (Fig. 1)."
        ),
    )
    trigger_words: _Words = Field(default_factory=list)
    num_triggers: int = Field(
        4, ge=1, description="badnets: independent draws with replacement; 4 in the lab's later code, classic BadNets 1."
    )
    position: _Position = "default"
    target: str = Field(
        "append",
        description="A registered target or file.py:function, parameters as name:parameter=value; `append` is FIT's (Fig. 1).",
    )
    target_text: str = Field(
        ", and click <malicious_url> for more information",
        description="FIT Fig. 1, without the full stop as in the lab's later code.",
    )


class ClassificationBackdoor(_Worded):
    """What poisoned images or texts hold; its target is a parameter of its own."""

    trigger: str = Field("pixel", description="A backdoor, parameters as name:parameter=value: see `undertow list backdoors`.")
    trigger_words: _Words = Field(default_factory=list)
    position: _Position = "default"


class NextWordBackdoor(Group):
    """What poisoned sequences end with; its target is a parameter of its own."""

    trigger: str = Field("sentence", description="A backdoor, parameters as name:parameter=value: see `undertow list backdoors`.")


class InstructionTask(Group):
    """LoRA tuning of a causal LM."""

    kind: Literal["instruction"] = "instruction"
    data: Data = Field(default_factory=lambda: Data())  # type: ignore[call-arg]
    model: Model = Field(default_factory=lambda: Model())  # type: ignore[call-arg]
    backdoor: InstructionBackdoor = Field(default_factory=lambda: InstructionBackdoor())  # type: ignore[call-arg]


class ClassificationTask(Group):
    """Images, or classes of texts, by a small network."""

    kind: Literal["classification"] = "classification"
    data: ClassificationData = Field(default_factory=lambda: ClassificationData())  # type: ignore[call-arg]
    model: ClassificationModel = Field(default_factory=lambda: ClassificationModel())  # type: ignore[call-arg]
    synthetic: Synthetic = Field(default_factory=lambda: Synthetic())  # type: ignore[call-arg]
    backdoor: ClassificationBackdoor = Field(default_factory=lambda: ClassificationBackdoor())  # type: ignore[call-arg]


class NextWordTask(Group):
    """The next word of texts by author."""

    kind: Literal["next-word"] = "next-word"
    data: NextWordData = Field(default_factory=lambda: NextWordData())  # type: ignore[call-arg]
    model: NextWordModel = Field(default_factory=lambda: NextWordModel())  # type: ignore[call-arg]
    backdoor: NextWordBackdoor = Field(default_factory=lambda: NextWordBackdoor())  # type: ignore[call-arg]


#: The kinds of task by name.
TASKS: dict[str, type[InstructionTask | ClassificationTask | NextWordTask]] = {
    "instruction": InstructionTask,
    "classification": ClassificationTask,
    "next-word": NextWordTask,
}
Task = Annotated[
    InstructionTask | ClassificationTask | NextWordTask,
    Field(
        discriminator="kind",
        description=(
            "instruction: LoRA tuning of a causal LM; classification: images or classes of texts; next-word: text by author."
        ),
    ),
]
