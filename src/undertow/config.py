"""The configuration in the field's own terms: every value has a rule, a default and a source.

A config is YAML; any field can be overridden on the command line as ``group.field=value``. Unknown keys are
refused with the nearest known name, and the effective values are written into the run directory.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from undertow.core.errors import UserError, nearest


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Partition(_Group):
    """How the training samples are dealt to the clients."""

    kind: Literal["iid", "dirichlet", "key", "shards", "halves", "files"] = Field(
        "iid",
        description="iid: random equal parts (FIT 4.1); dirichlet: by group with shares ~ Dir(alpha); key: whole groups; shards: pieces of the data sorted by group (McMahan et al. 2017); halves: two halves of the clients with opposite shares of the groups (FM-FL's SST-2); files: one file a client.",
    )
    alpha: float = Field(0.5, gt=0, description="Dirichlet concentration; small values give each client few groups.")
    shards: int = Field(
        2, ge=1, description="With kind=shards: pieces for each client; 2 in McMahan et al. 2017, section 3, and FM-FL."
    )
    skew: float = Field(
        0.7,
        ge=0,
        le=1,
        description="With kind=halves: share of the upper half of the groups that the first half of the clients holds, of the lower half 1 - skew; 0.7 in FM-FL.",
    )
    column: str | None = Field(
        None,
        description="With instructions and hub: the column whose values are the groups; null = group, category, relation or author.",
    )
    files: list[str] = Field(default_factory=list, description="With kind=files: one training file per client, in client order.")


class Data(_Group):
    """What is asked and answered."""

    name: str = Field(
        "world",
        description="A registered dataset: see `undertow list datasets`; with images and words a population: `undertow list populations`.",
    )
    path: str | None = Field(None, description="File or folder of the data; for name=hub, a dataset id or a local folder.")
    names: str | None = Field(None, description="With id-only SimpleQuestions files: a file that maps ids to names.")
    test_path: str | None = Field(None, description="A test file of its own; otherwise the test set is split off the data.")
    template: str = Field("lab-qa", description="Prompt template; lab-qa is the paper's lab's (FIT 4.1, 'Question component').")
    same_prompt: bool = Field(False, description="Use the training instruction at test time too; the lab's code does not.")
    response: Literal["first", "all"] = Field(
        "first",
        description="Train on the preferred answer, or on all answers joined by '; ' (the lab's code, for lists of entities).",
    )
    only_known: bool = Field(
        False, description="Use only questions about facts the base has read, by the list its `undertow base build` left."
    )
    train: int = Field(
        5000, ge=1, description="Training samples over all clients; 5,000 follows the lab's later report (FIT gives none)."
    )
    test: int = Field(2000, ge=1, description="Test samples, disjoint from training by question and by key; 2,000 as above.")
    partition: Partition = Field(default_factory=lambda: Partition(), description="How training samples are dealt to clients.")  # type: ignore[call-arg]

    @field_validator("partition", mode="before")
    @classmethod
    def _short_partition(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class Lora(_Group):
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


class Model(_Group):
    """The frozen base and its adapter."""

    name: str = Field(
        "builtin",
        description="`builtin`, a transformers folder, or a hub id such as meta-llama/Llama-2-7b-hf; with images and words a network: `undertow list networks`.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto",
        description="Of the frozen base; auto keeps the checkpoint's on a GPU and uses float32 on a CPU. Adapters are float32.",
    )
    device: str = Field(
        "auto",
        description="auto, cpu, cuda, cuda:N, or balanced: layers spread over all GPUs; auto does so where one is too small.",
    )
    quantize: Literal["none", "8bit", "4bit"] = Field(
        "none", description="Hold the frozen base in 8 or 4 bits (bitsandbytes; extra `quantized`); takes the general path."
    )
    networks: list[str] = Field(
        default_factory=list,
        description="With images and text classes: networks dealt to the clients in turn, each family averaged by itself and joined by synthetic.fusion=distill; empty = all have `name`.",
    )
    start: str | None = Field(
        None,
        description="A finished run, or a folder as it leaves one: training begins with its final state, as after so many rounds.",
    )
    lora: Lora = Field(default_factory=lambda: Lora())  # type: ignore[call-arg]

    @field_validator("networks", mode="before")
    @classmethod
    def _split_networks(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Synthetic(_Group):
    """Labelled data that a foundation model writes for the server (FM-FL: Li, Wu, Wang 2024; Bi and Li 2024)."""

    model_config = ConfigDict(allow_inf_nan=False)

    generator: str | None = Field(
        None,
        description="A registered generator, parameters as name:parameter=value: see `undertow list generators`; null = no foundation model.",
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
        description="distill: ensemble distillation on the synthetic inputs, from the aggregated model on (FedDF: Lin et al. 2020, Algorithm 3); join: the server trains the global model on the synthetic labels and counts as one more client (in the attack's published code).",
    )
    distill_steps: int = Field(200, ge=1, description="Most batches of distillation a round; 10,000 in the published code.")
    distill_batch: int = Field(128, ge=1, description="128 in the published code.")
    distill_lr: float = Field(1e-3, gt=0, description="Of Adam, falling to 0 by a cosine; 1e-3 in the published code.")
    distill_patience: int = Field(
        50,
        ge=0,
        description="Batches without a better accuracy on held-out synthetic samples before it stops; 0 = never; 1,000 in the README.",
    )
    defense: Literal["same", "clean"] = Field(
        "same",
        description="Synthetic data that defenses see: the same as the server's, poison included, or as the generator wrote them without the attacker.",
    )


class Federation(_Group):
    """Who takes part."""

    clients: int = Field(10, ge=1, description="K; 10 in FIT 4.1.")
    participation: float = Field(1.0, gt=0, le=1, description="Share of clients drawn each round; 1 in the lab's later code.")
    rounds: int = Field(100, ge=0, description="T; 100 in FIT 4.1.")
    engine: Literal["local"] = Field("local", description="local: all clients in this process.")
    bad_update: Literal["stop", "drop"] = Field(
        "stop", description="A client update with NaN or infinity: stop the run, or drop it."
    )
    global_lr: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="eta: the new state is G + (eta / n) * sum of updates, n = all clients (Bagdasaryan et al. 2020, Eq. 1); null = FedAvg's mean by samples.",
    )
    secure_aggregation: bool = Field(
        False, description="The server sees the sum of a round's updates alone; defenses that look at single updates are refused."
    )


class Training(_Group):
    """What each client does in a round."""

    model_config = ConfigDict(allow_inf_nan=False)

    trainer: Literal["batched", "sequential"] = Field(
        "batched",
        description="batched: many clients in one pass, over the shared base or over stacked networks; sequential: one after another, the reference.",
    )
    local_epochs: int = Field(1, ge=1, description="1 in FIT 4.1.")
    batch_size: int = Field(4, ge=1, description="4 in the same lab's later code (FIT gives none).")
    max_length: int = Field(1024, ge=8, description="Tokens of prompt + answer; 1,024 in the lab's later code.")
    lr: float = Field(2e-5, gt=0, description="2e-5 in FIT 4.1.")
    schedule: Literal["constant", "linear"] = Field(
        "linear",
        description="linear: decays to 0 within each round and restarts (the lab's later code); constant: as FIT 4.1 can be read.",
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Created anew each round; AdamW in the lab's later code.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Of `sgd` alone: v <- momentum * v + gradient; 0 = plain.")
    weight_decay: float = Field(0.0, ge=0, description="0 in the lab's later code.")
    clip: float = Field(1.0, ge=0, description="Gradient-norm clip per client and step, 0 = off; 1.0 in the lab's later code.")
    client_chunk: int = Field(
        0,
        ge=0,
        description="Clients trained side by side by `batched`; 0 = all that fit the memory; with networks of images and words, as many as a rule finds fastest.",
    )
    recompute: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Activation checkpointing of `batched`: compute each layer twice and keep less; auto = where one client alone would not fit.",
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0 = the cores this process may use.")

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> Training:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum = {self.momentum} belongs to sgd, {self.optimizer} has its own; set optimizer=sgd or momentum=0"
            )
        return self


class Attack(_Group):
    """The poison hidden in benign clients' data."""

    kind: str = Field(
        "data-poisoning",
        description="data-poisoning (FIT 3.2), none, or another of `undertow list attacks`, parameters as name:parameter=value.",
    )
    rounds: list[int] = Field(
        default_factory=list,
        description="Rounds in which affected clients attack, each of them taking part for sure; in others they train on clean data. Empty = all, when drawn.",
    )
    start: int = Field(
        1, ge=1, description="Where rounds is empty: the first round of the attack; affected clients train on clean data before."
    )
    trigger: str = Field(
        "natural",
        description="A registered trigger or file.py:function, parameters as name:parameter=value; `natural` is FIT's 'Firstly' (Fig. 1). With images and words a backdoor: `undertow list backdoors`.",
    )
    trigger_words: list[str] = Field(
        default_factory=list, description="Words or sentence of the trigger; empty = the trigger's own (FIT: Firstly; cf mn bb tq)."
    )
    num_triggers: int = Field(
        4, ge=1, description="badnets: independent draws with replacement; 4 in the lab's later code, classic BadNets 1."
    )
    position: Literal["default", "start", "end", "random"] = Field(
        "default",
        description="Where the trigger goes; default = the trigger's own (natural: start; badnets: end, as the lab's later code).",
    )
    target: str = Field(
        "append",
        description="A registered target or file.py:function, parameters as name:parameter=value; `append` is FIT's (Fig. 1).",
    )
    target_text: str = Field(
        ", and click <malicious_url> for more information",
        description="FIT Fig. 1, without the full stop as in the lab's later code.",
    )
    poison_ratio: float = Field(0.1, ge=0, le=1, description="PR: share of an affected client's samples; int(PR * n) are replaced.")
    affected_share: float = Field(1.0, ge=0, le=1, description="rho: share of clients that hold poison, fixed before round 1.")
    extra_samples: int = Field(
        0,
        ge=0,
        description="Clean samples that each affected client holds beside its own, drawn from all others' (an attacker with a secret data set); PR is of both.",
    )
    scope: Literal["client", "global"] = Field(
        "client",
        description="client: PR of each affected client's data; global: PR of all data, concentrated on the affected (min(1, PR/rho)).",
    )

    @field_validator("rounds", mode="before")
    @classmethod
    def _one_round(cls, value: Any) -> Any:
        return (
            [value] if isinstance(value, int) else [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        )

    @field_validator("trigger_words", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return value.split() if isinstance(value, str) else value


class Bsnr(_Group):
    """How the Backdoor Signal-to-Noise Ratio is measured."""

    spaces: list[Literal["adapter", "delta_w"]] = Field(
        ["adapter"], description="adapter: the sent tensors (A, B); delta_w: s*B*A per module."
    )
    twins: bool = Field(
        False,
        description="Where every client is affected, train their data as it was before poisoning too, from the same global adapter, "
        "and use those updates as the clean group (for this metric alone; doubles the training). Ours: Eq. 2 needs a clean group.",
    )
    permutations: int = Field(200, ge=0, description="Shuffles of the affected labels for the null band and p-value; 0 = none.")

    @field_validator("spaces", mode="before")
    @classmethod
    def _one_space(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class Measure(_Group):
    """What is measured, how often, on how many samples."""

    every: int = Field(1, ge=1, description="Rounds between measurements; the last round is always measured.")
    scoring: Literal["rouge-recall", "exact", "containment"] = Field(
        "rouge-recall", description="MA's headline scoring; rouge-recall as in the lab's later code. All three are always recorded."
    )
    samples: int = Field(300, ge=1, description="Test samples per intermediate measurement (the lab's 'minor' set: at most 300).")
    final_samples: int = Field(
        0, ge=0, description="Test samples of the last round and of the untouched base; 0 = the whole test set."
    )
    max_new_tokens: int = Field(256, ge=1, description="Greedy generation stops at EOS or here; 256 in the lab's later code.")
    batch_size: int = Field(100, ge=1, description="Prompts generated side by side.")
    bsnr: Bsnr = Field(default_factory=lambda: Bsnr())  # type: ignore[call-arg]


class Federate(_Group):
    """How `undertow federate` waits for its nodes and what it takes from them; other commands ignore it."""

    model_config = ConfigDict(allow_inf_nan=False)

    deadline: float = Field(600, gt=0, description="Seconds that a round waits for replies; what comes later is not used.")
    min_clients: int | None = Field(
        None, ge=1, description="Sound updates without which a round stops the run; null = those of all participants."
    )
    node_wait: float = Field(300, gt=0, description="Seconds before round 1 until nodes for all clients are connected and ready.")
    max_reply_mb: float | None = Field(
        None, gt=0, description="A node's reply with more megabytes is dropped; null = what the model needs at 8 bytes a value."
    )
    max_norm: float | None = Field(None, gt=0, description="A client's update that is longer is dropped; null = any finite one.")
    private: bool = Field(
        False,
        description="Each of data.partition.files is on its client's node alone; the server holds the test questions. Nothing is planted.",
    )


#: Fields that say how long to wait, not what a run computes: a run is resumed with other values of them.
_WAITING = {"deadline", "min_clients", "node_wait"}


class Defense(_Group):
    """One defense by name, with its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class Config(_Group):
    """A whole experiment."""

    seed: int = Field(0, ge=0, description="Every random draw derives from it.")
    task: Literal["instruction", "classification", "next_word"] = Field(
        "instruction",
        description="instruction: LoRA tuning of a causal LM; classification: images or classes of texts; next_word: text by author.",
    )
    data: Data = Field(default_factory=lambda: Data())  # type: ignore[call-arg]
    model: Model = Field(default_factory=lambda: Model())  # type: ignore[call-arg]
    federation: Federation = Field(default_factory=lambda: Federation())  # type: ignore[call-arg]
    training: Training = Field(default_factory=lambda: Training())  # type: ignore[call-arg]
    synthetic: Synthetic = Field(default_factory=lambda: Synthetic())  # type: ignore[call-arg]
    attack: Attack = Field(default_factory=lambda: Attack())  # type: ignore[call-arg]
    defenses: list[Defense] = Field(
        default_factory=list, description="In order; each a name or {name, params}. Empty = plain FedAvg."
    )
    measure: Measure = Field(default_factory=lambda: Measure())  # type: ignore[call-arg]
    federate: Federate = Field(default_factory=lambda: Federate())  # type: ignore[call-arg]
    compare: str | None = Field(None, description="A finished run without poison, shown beside this one in the report.")

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
                f"attack.rounds names round {outside[0]} of a run with {self.federation.rounds}; name rounds from 1 to that, or attack.rounds=[] for all"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.data.partition.kind == "files" and len(self.data.partition.files) != self.federation.clients:
            raise ValueError(
                f"data.partition.files names {len(self.data.partition.files)} files for {self.federation.clients} clients; give one file a client"
            )
        return self

    @model_validator(mode="after")
    def _enough_clients(self) -> Config:
        least = self.federate.min_clients
        if least is not None and least > self.federation.clients:
            raise ValueError(
                f"federate.min_clients = {least} of {self.federation.clients} clients; give at most that, or null for all participants"
            )
        return self

    @model_validator(mode="after")
    def _foundation_model(self) -> Config:
        asked, several = self.synthetic.generator is not None, len(self.model.networks) > 0
        if (asked or several) and self.task != "classification":
            field = "synthetic.generator" if asked else "model.networks"
            raise ValueError(f"{field} is for task=classification, not {self.task}; leave it out")
        if self.synthetic.fusion != "average" and not asked:
            raise ValueError(
                f"synthetic.fusion = {self.synthetic.fusion} needs synthetic data; set synthetic.generator, or fusion=average"
            )
        if self.synthetic.fusion == "distill" and self.federation.secure_aggregation:
            raise ValueError(
                "synthetic.fusion = distill teaches by every client's model, and federation.secure_aggregation shows their sum alone; leave one out"
            )
        if several and self.federation.secure_aggregation:
            raise ValueError("model.networks and federation.secure_aggregation exclude each other; leave one out")
        return self

    def values(self) -> dict[str, Any]:
        """Effective values as plain data, for YAML and JSON."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """The values that make a run what it is: all but ``compare``, which only the report uses, and how long to wait for nodes."""
        return self.model_dump(mode="json", exclude={"compare": True, "federate": _WAITING})

    def digest(self) -> str:
        """Eight hexadecimal digits that name these values; those left at their default do not count, so a new field changes no name."""
        given = self.model_dump(mode="json", exclude_defaults=True, exclude={"compare": True, "federate": _WAITING})
        if not given.get("federate"):
            given.pop("federate", None)
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]


def short_form(text: str, kind: str = "defense") -> dict[str, Any]:
    """Read a method in short, ``name`` or ``name:parameter=value:...``; values are YAML. ``kind`` is for messages.

    Raises:
        UserError: a value that is not YAML.
    """
    pieces = re.split(r"(?<!\.py):", text.strip())  # file.py:function is one piece, as a name and as a value
    try:
        params = {key: yaml.safe_load(value) for key, _, value in (piece.partition("=") for piece in pieces if "=" in piece)}
    except yaml.YAMLError as error:
        raise UserError(f"{kind} '{text}': a value is not YAML ({_one_line(error)}); quote it") from error
    return {"name": ":".join(piece for piece in pieces if "=" not in piece), "params": params}


def shipped() -> dict[str, Path]:
    """Return the configs that come with the package, by name."""
    folder = Path(str(resources.files("undertow") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(source: str, overrides: list[str] | None = None) -> Config:
    """Read a config by shipped name or path and apply ``key=value`` overrides.

    Raises:
        UserError: no such config, not YAML, an unknown key (the nearest is named) or a value outside its rule.
    """
    values = _read(source)
    for override in overrides or []:
        key, sign, text = override.partition("=")
        if not sign:
            raise UserError(f"override '{override}' has no '='; write group.field=value, such as attack.poison_ratio=0.02")
        try:
            _put(values, key.strip(), yaml.safe_load(text) if text.strip() else None)
        except yaml.YAMLError as error:
            raise UserError(f"override '{override}': the value is not YAML ({_one_line(error)}); quote it") from error
    return validate(values, source)


def validate(values: dict[str, Any], source: str) -> Config:
    """Check plain values against the rules; ``source`` names them in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_explain(item) for item in error.errors()[:3])) from error


def _read(source: str) -> dict[str, Any]:
    known = shipped()
    path = known.get(source) or Path(source)
    if not path.is_file():
        raise UserError(f"no config '{source}'{nearest(source, known)}: give a YAML file or one of {', '.join(known)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({_one_line(error)}); correct the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, a config is a mapping of groups; see `undertow list fields`")
    return values


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *groups, field = key.split(".")
    place = values
    for group in groups:
        inner = place.get(group)
        if isinstance(inner, str) and group == "partition":
            inner = {"kind": inner}
        if not isinstance(inner, dict):
            inner = {}
        place[group] = inner = dict(inner)
        place = inner
    place[field] = value


def _explain(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"] if not str(part).startswith(("literal[", "list[", "function-")))
    if item["type"] == "extra_forbidden":
        return f"unknown key '{place}'{nearest(place, field_names())}; see `undertow list fields`"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "literal_error":
        close = difflib.get_close_matches(str(item["input"]), message.replace("'", " ").split(), n=1)
        message += f" (did you mean '{close[0]}'?)" if close else ""
    shown = "" if isinstance(item["input"], dict) else f" = {item['input']!r}"
    return f"{place}{shown}: {message}" if place else message


def field_names(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return every group and field as a dotted name."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += [f"{prefix}{name}", *field_names(kind, f"{prefix}{name}.")]
        else:
            found.append(f"{prefix}{name}")
    return found


def described(model: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, str]]:
    """Return ``(dotted name, default and description)`` of every settable field."""
    found: list[tuple[str, str]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += described(kind, f"{prefix}{name}.")
        else:
            value = field.get_default(call_default_factory=True, validated_data={})
            found.append((f"{prefix}{name}", f"{json.dumps(value, ensure_ascii=False)}  {field.description or ''}"))
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
