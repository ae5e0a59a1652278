"""What a run writes down, as typed records: the same classes write the files of a run directory and read them.

    rounds.jsonl   :class:`Round`, one a line       scores.jsonl   :class:`Score`, one a line
    result.json    :class:`Result`                  poison.jsonl   :class:`Poisoned`, one a line

Each of these records carries ``format``, the number of its kind in the Undertow that wrote it: ``NEWEST``, which is :data:`FORMAT`
unless a kind says otherwise. Records without one are of format 0, with the same fields; a newer format than ``NEWEST`` is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from undertow.core.errors import UserError
from undertow.core.files import write_text
from undertow.core.rules import first_rule
from undertow.runs.damage import absent, mend

#: The format written from now on.
FORMAT = 1

#: Vector spaces in which BSNR can be recorded.
Space = Literal["adapter", "delta_w"]


class Record(BaseModel):
    """A record or a part of one: typed, frozen, and with whatever else was recorded as it is."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @property
    def surplus(self) -> dict[str, Any]:
        """Fields beyond the declared ones."""
        return dict(self.model_extra or {})


class Written(Record):
    """A record that is a file or a line of one.

    Attributes:
        FILE: its name in a run directory.
        NEWEST: the format written from now on.
        format: of the Undertow that wrote it; 0 where none is given.
    """

    FILE: ClassVar[str]
    NEWEST: ClassVar[int] = FORMAT
    format: int = Field(0, ge=0)

    def to_json(self) -> dict[str, Any]:
        """Return plain data in the present format: what was set, ``format`` first."""
        return {"format": self.NEWEST, **self.model_dump(exclude_unset=True, exclude={"format"})}


class Rate(Record):
    """A share of scored outputs with its 95 % Wilson interval; all shares in [0, 1], null when n is 0."""

    value: float | None = Field(ge=0, le=1)
    n: int = Field(ge=0)
    hits: int | None = Field(None, ge=0)
    low: float | None = Field(ge=0, le=1)
    high: float | None = Field(ge=0, le=1)


class BsnrValue(Record):
    """BSNR of one round in one space, with the permutation null beside it; null where undefined."""

    value: float | None = None
    null_low: float | None = None
    null_median: float | None = None
    null_high: float | None = None
    p: float | None = None
    permutations: int = 0


class RoundAudit(Record):
    """The server's audit after a round: its verdict, the target-first score, target and trigger where found, and its seconds."""

    verdict: Literal["found", "nothing found", "inconclusive"]
    score: float | None = None
    target: str | None = None
    trigger: str | None = None
    seconds: float | None = None


class Round(Written):
    """One communication round; round 0 is the untouched base, of which only the rates are known.

    Attributes:
        round: its number.
        loss: mean training loss over the clients, weighted by their samples (nats per answer token).
        client_loss: of each client in ``participants``.
        participants: clients whose updates were used; ``dropped``: those chosen whose updates were not.
        update_norm: L2 norm of the step of the global state.
        bsnr: by space; null where it is undefined for the run.
        cross_term: share of the aggregate of LoRA factors that is cross terms; null where there are no factors.
        defenses: what the defenses report, each with its ``name``.
        fusion: what a server that distills reports.
        attackers: clients that hold poison or attack in this round.
        ma, asr, asr_suffix, ftr, ftr_near, scorings: what was measured; null where nothing was.
        held_out_loss: mean token NLL of the expected answers to the clean test questions, in nats.
        audit: what the server's audit of the new global adapter says; null where there was none.
        seconds: spent on the round.
    """

    FILE = "rounds.jsonl"
    round: int = Field(ge=0)
    loss: float | None = None
    client_loss: list[float | None] | None = None
    participants: list[int] | None = None
    dropped: list[int] | None = None
    update_norm: float | None = None
    bsnr: dict[Space, BsnrValue | None] | None = None
    cross_term: float | None = None
    defenses: list[dict[str, Any]] | None = None
    fusion: dict[str, Any] | None = None
    attackers: list[int] | None = None
    ma: Rate | None = None
    asr: Rate | None = None
    asr_suffix: Rate | None = None
    ftr: Rate | None = None
    ftr_near: Rate | None = None
    scorings: dict[str, Rate] | None = None
    held_out_loss: float | None = None
    audit: RoundAudit | None = None
    seconds: float | None = None


class PoisonCount(Record):
    """How much poison the run held: poisoned clients, poisoned samples, all training samples; the same of the server's synthetic
    ones.

    ``unknown`` where the samples are on other machines and nobody planted any.
    """

    clients: int = Field(ge=0)
    samples: int = Field(ge=0)
    total: int = Field(ge=0)
    synthetic: int = Field(0, ge=0)
    synthetic_total: int = Field(0, ge=0)
    unknown: bool = False


class Filtering(Record):
    """What a defense took out of the clients' data: shares of poisoned samples, of what it touched, of clean samples."""

    recall: Rate
    precision: Rate
    lost: Rate
    changed: int = Field(0, ge=0)
    clients: list[dict[str, int]] = []


class Untouched(Record):
    """The model before training."""

    ma: Rate | None = None
    asr: Rate | None = None
    ftr: Rate | None = None
    ftr_near: Rate | None = None
    held_out_loss: float | None = None


class NeighbourRate(Record):
    """How often the target came for one edit of the questions, and one such question."""

    name: str
    rate: Rate
    example: str = ""


class Neighbour(Written):
    """One output to a question with a neighbour of the trigger; ``name`` says which, ``target``: it holds the attacker's target."""

    FILE = "neighbourhood.jsonl"
    name: str
    id: str
    question: str
    output: str
    target: bool


class Result(Written):
    """The final figures of a finished run.

    Attributes:
        run: its folder, as it was given.
        rounds, seconds: how many were run, and what training and measuring took.
        ma, asr, ftr, ftr_near, held_out_loss: of the last round; ``untouched``: the same of the model before training.
        bsnr: of rounds 1, 2, ... in the first space measured.
        poison: how much there was.
        filtering: what a defense took out of the clients' data; null without such a defense.
        scoring: MA's headline scoring, where ``undertow score`` changed it.
        neighbourhood: how often the target came for each neighbour of the trigger, where ``measure.neighbourhood`` asked for it.
        caveats: what makes a figure untrue, in words.
    """

    FILE = "result.json"
    run: str = ""
    rounds: int = Field(ge=0)
    seconds: float = Field(ge=0)
    ma: Rate | None = None
    asr: Rate | None = None
    ftr: Rate | None = None
    ftr_near: Rate | None = None
    held_out_loss: float | None = None
    untouched: Untouched = Untouched()
    bsnr: list[float | None] = []
    poison: PoisonCount
    filtering: Filtering | None = None
    scoring: str | None = None
    neighbourhood: list[NeighbourRate] = []
    caveats: list[str] = []


class DataFacts(Record):
    """What the clients held; ``poisoned[k]`` of ``clients[k]`` samples of client k are poisoned.

    ``poisoned_clients`` was ``affected`` before; both are read.
    """

    dataset: str
    clients: list[int]
    poisoned_clients: list[int] = Field([], validation_alias=AliasChoices("poisoned_clients", "affected"))
    poisoned: list[int] = []

    @model_validator(mode="after")
    def _consistent(self) -> DataFacts:
        if self.poisoned and len(self.poisoned) != len(self.clients):
            raise ValueError(f"poisoned counts {len(self.poisoned)} clients, clients lists {len(self.clients)}")
        if any(not 0 <= bad <= size for bad, size in zip(self.poisoned, self.clients, strict=False)):
            raise ValueError("a client has more poisoned samples than samples")
        if any(not 0 <= client < len(self.clients) for client in self.poisoned_clients):
            raise ValueError(f"poisoned_clients names a client outside 0..{len(self.clients) - 1}")
        return self


class Poisoned(Written):
    """One training sample before and after poisoning: ``index`` counts the samples of ``client`` from 0."""

    FILE = "poison.jsonl"
    client: int = Field(ge=0)
    index: int = Field(0, ge=0)
    id: str
    question: str
    poisoned_question: str
    response: str
    poisoned_response: str


class Score(Written):
    """One scored output: asked ``clean``, ``triggered`` or with a near miss of the trigger; ``target``: it holds the attacker's
    target.

    Whether it is right under each scoring is in ``surplus``, under the scoring's name, and so is ``suffix``, where it is scored.
    Format 2 is scored by the rules of docs/metrics.md on thinking blocks, placeholders, short gold answers and other scripts, which
    formats 0 and 1 lack; ``undertow score`` scores those again.
    """

    FILE = "scores.jsonl"
    NEWEST = 2
    round: int = Field(ge=0)
    kind: Literal["clean", "triggered", "near"]
    id: str
    question: str
    answers: list[str]
    output: str
    target: bool = False


class Evaluation(Record):
    """The figures of ``undertow evaluate``, and the outputs that they are counted from.

    Attributes:
        base, adapter: what was measured; or ``network`` and ``model``, the run whose network it is.
        ma, asr, asr_suffix, ftr, ftr_near, scorings, held_out_loss: with the adapter or the run's network, where one was given.
        untouched, data: the same without; counts of the test rows that were read, dropped and cut, where questions are asked.
        defenses, scores: what those that replace greedy generation report; every scored output, with the adapter of round 1.
        neighbourhood: how often the target came for each neighbour of the trigger, where ``measure.neighbourhood`` asked for it.
    """

    base: str | None = None
    adapter: str | None = None
    network: str | None = None
    model: str | None = None
    ma: Rate | None = None
    asr: Rate | None = None
    ftr: Rate | None = None
    ftr_near: Rate | None = None
    asr_suffix: Rate | None = None
    held_out_loss: float | None = None
    scorings: dict[str, Rate] = {}
    untouched: Untouched = Untouched()
    data: dict[str, Any] = {}
    defenses: list[dict[str, Any]] = []
    neighbourhood: list[NeighbourRate] = []
    scores: list[Score] = Field([], repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data, what was set."""
        return self.model_dump(exclude_unset=True, exclude={"scores"})


_R = TypeVar("_R", bound=Record)
_W = TypeVar("_W", bound=Written)


def check(kind: type[_R], values: Mapping[str, Any], path: Path, line: int | None = None) -> _R:
    """Return the record that values of a file are; :class:`UserError` for a newer format or a bad value: where, and what then."""
    place, number = path if line is None else f"{path} line {line}", values.get("format", 0)
    if issubclass(kind, Written) and isinstance(number, int) and number > kind.NEWEST:
        raise UserError(f"{place}: format {number} is of a newer Undertow, this one reads up to {kind.NEWEST}; update undertow")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{place}: {first_rule(error)}; {mend(path)}") from error


def lines(kind: type[Written], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as the JSON lines of their file, each checked and in the present format."""
    return "".join(json.dumps(kind.model_validate(row).to_json(), ensure_ascii=False) + "\n" for row in rows)


def write_records(folder: Path, kind: type[Written], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows atomically as the file of their kind; no lines where there are none."""
    write_text(folder / kind.FILE, lines(kind, rows))


def read_records(folder: Path, kind: type[_W]) -> Iterator[_W]:
    """Read the file of a kind in a run directory, line by line.

    Raises:
        UserError: missing, damaged before its last line, of a newer format, or a value outside its rule.
    """
    path = folder / kind.FILE
    for number, values in read_lines(path):
        yield check(kind, values, path, number)


def read_record(folder: Path, kind: type[_W]) -> _W:
    """Read a file of a run directory that is one record.

    Raises:
        UserError: missing, damaged, of a newer format, or a value outside its rule.
    """
    return check(kind, read_json(folder / kind.FILE), folder / kind.FILE)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run; :class:`UserError`, with what to do then, where it is missing or not an object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}; {absent(path)}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: not JSON ({error}); {mend(path)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: no JSON object; {mend(path)}")
    return found


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of JSON objects, one a line, with the numbers of the lines; empty lines are passed over.

    A last line without a line end counts if it is whole; one that a kill cut short is left out.

    Raises:
        UserError: missing, or damaged before its last line.
    """
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    if not line.endswith("\n"):
                        return
                    raise UserError(f"{path} line {number} is damaged: not JSON ({error}); {mend(path)}") from error
                if not isinstance(row, dict):
                    raise UserError(f"{path} line {number} holds a {type(row).__name__}, not a record; {mend(path)}")
                yield number, row
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}; {absent(path)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); {mend(path)}") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a file as :func:`read_lines` does, all at once."""
    return [row for _, row in read_lines(path)]
