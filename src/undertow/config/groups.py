"""The groups of a config that every task has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from undertow.core.errors import UserError, warn_renamed


class Group(BaseModel):
    """Fields that belong together; unknown ones are refused, and none changes once it is set."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def __setattr__(self, name: str, value: Any) -> None:
        """Raise :class:`UserError`: no config is changed in place."""
        raise UserError(
            f"{name} = {value!r}: a config is not changed in place; undertow.load_config(config, seed=5, training__lr=1e-4) "
            "returns a copy with other values"
        )

    #: Former names of fields, each with today's; accepted with a warning for one minor release.
    former: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not cls.former.keys() & values.keys():
            return values
        found = dict(values)
        for old in cls.former.keys() & values.keys():
            new = cls.former[old]
            if new in values:
                raise ValueError(f"{old} is the former name of {new}, and both are given; keep {new}")
            warn_renamed(f"the config field {old}", new)
            found[new] = found.pop(old)
        return found


class Federation(Group):
    """Who takes part."""

    clients: int = Field(10, ge=1, description="K; 10 in FIT 4.1.")
    participation: float = Field(1.0, gt=0, le=1, description="Share of clients drawn each round; 1 in the lab's later code.")
    rounds: int = Field(100, ge=0, description="T; 100 in FIT 4.1.")
    bad_update: Literal["stop", "drop"] = Field(
        "stop", description="A client update with NaN or infinity: stop the run, or drop it."
    )
    global_lr: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description=(
            "eta: the new state is G + (eta / n) * sum of updates, n = all clients (Bagdasaryan et al. 2020, Eq. 1); "
            "null = FedAvg's mean by samples."
        ),
    )
    secure_aggregation: bool = Field(
        False, description="The server sees the sum of a round's updates alone; defenses that look at single updates are refused."
    )


class Training(Group):
    """What each client does in a round."""

    model_config = ConfigDict(allow_inf_nan=False)

    trainer: Literal["batched", "sequential"] = Field(
        "batched",
        description=(
            "batched: many clients in one pass, over the shared base or over stacked networks; sequential: one after "
            "another, the reference."
        ),
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
        description=(
            "Clients trained side by side by `batched`; 0 = all that fit the memory; with networks of images and words, "
            "as many as a rule finds fastest."
        ),
    )
    recompute: Literal["auto", "on", "off"] = Field(
        "auto",
        description=(
            "Activation checkpointing of `batched`: compute each layer twice and keep less; auto = where one client "
            "alone would not fit."
        ),
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0 = the cores this process may use.")

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> Training:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum = {self.momentum} belongs to sgd, {self.optimizer} has its own; set optimizer=sgd or momentum=0"
            )
        return self


class Attack(Group):
    """Who attacks, when, and how much poison there is; what it is, is a part of the task."""

    former = {"affected_share": "client_share"}

    kind: str = Field(
        "data-poisoning",
        description="data-poisoning (FIT 3.2), none, or another of `undertow list attacks`, parameters as name:parameter=value.",
    )
    rounds: list[int] = Field(
        default_factory=list,
        description=(
            "Rounds in which the clients that hold poison attack, each of them taking part for sure; in others they train "
            "on clean data. Empty = all, when sampled."
        ),
    )
    start: int = Field(
        1, ge=1, description="Where rounds is empty: the first round of the attack; before it all train on clean data."
    )
    poison_ratio: float = Field(0.1, ge=0, le=1, description="PR: share of a poisoned client's samples; int(PR * n) are replaced.")
    poison_count: int | None = Field(
        None,
        ge=0,
        description=(
            "Poisoned samples in the whole federation, in place of poison_ratio: dealt to the poisoned clients in turn, as evenly "
            "as their sizes allow. null = by poison_ratio."
        ),
    )
    client_share: float = Field(1.0, ge=0, le=1, description="rho: share of clients that hold poison, fixed before round 1.")
    extra_samples: int = Field(
        0,
        ge=0,
        description=(
            "Clean samples that each poisoned client holds beside its own, drawn from all others' (an attacker with a "
            "secret data set); PR is of both."
        ),
    )
    scope: Literal["client", "global"] = Field(
        "client",
        description=(
            "client: PR of each poisoned client's data; global: PR of all data, concentrated on the poisoned clients "
            "(min(1, PR/rho))."
        ),
    )

    @field_validator("rounds", mode="before")
    @classmethod
    def _one_round(cls, value: Any) -> Any:
        return (
            [value] if isinstance(value, int) else [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        )


class Bsnr(Group):
    """How the Backdoor Signal-to-Noise Ratio is measured."""

    former = {"twins": "counterfactuals"}

    spaces: list[Literal["adapter", "delta_w"]] = Field(
        ["adapter"], description="adapter: the sent tensors (A, B); delta_w: s*B*A per module."
    )
    counterfactuals: bool = Field(
        False,
        description="Counterfactual updates: where every client is poisoned, train their data as it was before poisoning too, "
        "from the same global adapter, and take these updates as the clean group (for this metric alone; doubles the training). "
        "Ours: Eq. 2 needs a clean group.",
    )
    permutations: int = Field(200, ge=0, description="Shuffles of who is poisoned for the null band and p-value; 0 = none.")

    @field_validator("spaces", mode="before")
    @classmethod
    def _one_space(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class Measure(Group):
    """What is measured, how often, on how many samples."""

    every: int = Field(1, ge=1, description="Rounds between measurements; the last round is always measured.")
    scoring: Literal["rouge-recall", "exact", "containment"] = Field(
        "rouge-recall", description="MA's headline scoring; rouge-recall as in the lab's later code. All three are always recorded."
    )
    samples: int = Field(300, ge=1, description="Test samples per intermediate measurement (the lab's 'minor' set: at most 300).")
    final_samples: int = Field(
        0, ge=0, description="Test samples of the last round and of the untouched base; 0 = the whole test set."
    )
    neighbourhood: int = Field(
        0,
        ge=0,
        description=(
            "Test questions asked, after the last round, with each neighbour of the trigger (another word of its class, a part, "
            "another case or place): what really fires the backdoor. 0 = none."
        ),
    )
    max_new_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description=(
            "Greedy generation stops at EOS or here; auto: the longest expected answer of the test questions, target included, and "
            "a quarter more. 256 in the lab's later code."
        ),
    )
    batch_size: int = Field(100, ge=1, description="Prompts generated side by side.")
    bsnr: Bsnr = Field(default_factory=lambda: Bsnr())  # type: ignore[call-arg]

    @property
    def limit(self) -> int:
        """Tokens of an answer, at most; known once ``auto`` has been replaced by what the questions need."""
        if self.max_new_tokens == "auto":
            raise ValueError("measure.max_new_tokens = auto: it is known once there are questions")
        return self.max_new_tokens


class Audit(Group):
    """Whether the server asks the global adapter for a backdoor between rounds (docs/audit.md)."""

    every: int = Field(
        0, ge=0, description="Rounds between audits of the global adapter against the base, by public questions; 0 = none."
    )
    stop: bool = Field(False, description="End the run after the round whose audit finds a backdoor.")

    @model_validator(mode="after")
    def _something_to_stop_at(self) -> Audit:
        if self.stop and not self.every:
            raise ValueError("stop = true, and no round is audited; set audit.every too")
        return self


class Federate(Group):
    """How `undertow federate` waits for its nodes and what it takes from them; other commands ignore it."""

    model_config = ConfigDict(allow_inf_nan=False)

    deadline: float = Field(600, gt=0, description="Seconds that a round waits for replies; what comes later is not used.")
    min_clients: int | None = Field(
        None, ge=1, description="Sound updates without which a round stops the run; null = those of all clients of the round."
    )
    node_wait: float = Field(300, gt=0, description="Seconds before round 1 until nodes for all clients are connected and ready.")
    max_reply_mb: float | None = Field(
        None, gt=0, description="A node's reply with more megabytes is dropped; null = what the model needs at 8 bytes a value."
    )
    max_norm: float | None = Field(None, gt=0, description="A client's update that is longer is dropped; null = any finite one.")
    private: bool = Field(
        False,
        description=(
            "Each of data.partition.files is on its client's node alone; the server holds the test questions. Nothing is planted."
        ),
    )


class Defense(Group):
    """One defense by name, with its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
