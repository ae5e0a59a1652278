"""What a node's reply says, read with suspicion."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from flwr.app import ArrayRecord, Message
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from undertow.core.rules import first_rule
from undertow.flower.arrival import BadReply, Limits, Spec, checked_arrays

#: Bytes of a reply that are no arrays: counts, losses and what defenses report.
TOLD = 1 << 22


class Read(BaseModel):
    """Base of all that is read: nothing unknown, nothing of another type, no NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


#: How Flower tells what an app raised.
_RAISED = re.compile(r"<class '[\w.]+'>:<(['\"])(.*)\1>", re.DOTALL)

Kind = TypeVar("Kind", bound=Read)


class Hello(Read):
    """Who a node is: name, clients, the digest of its config, its version, and samples of each client where only it knows them."""

    name: str = Field(max_length=64, pattern=r"^[\w.-]+$")
    clients: list[int]
    digest: str = Field(max_length=64)
    version: str = Field(max_length=64)
    samples: list[int] | None = None


class Trained(Read):
    """What one client tells beside its update: samples and mean loss, null where that is not finite."""

    client: int
    count: int = Field(gt=0)
    loss: float | None


class OfClient(BaseModel):
    """What a defense reports of the selection of one client's samples, as ``composition.select`` makes it."""

    model_config = ConfigDict(extra="allow", strict=True)

    client: int
    samples: int
    selected: int


class Report(Read):
    """What one defense reports of a node's clients."""

    name: str
    clients: list[OfClient]


class Told(Read):
    """What a node tells of a round: its clients in the order asked, and the worker's seconds."""

    clients: list[Trained]
    reports: list[Report]
    seconds: float = Field(ge=0)


def row_of(record: ArrayRecord | None, own: Trained, specs: Mapping[str, Spec], state: Tensor, max_norm: float | None) -> Tensor:
    """Return a client's update ``[D]`` in the dtype of the state.

    Args:
        record: as it travelled; None where it is missing.
        own: what the client tells beside it.
        specs: of the record.
        state: global, ``[D]``.
        max_norm: the longest that is taken.

    Raises:
        BadReply: with the reason.
    """
    if record is None:
        raise BadReply(f"has no update of client {own.client}")
    array = checked_arrays(record, specs, Limits())["update"]
    row = torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).to(state.dtype)
    norm = float(torch.linalg.vector_norm(row, dtype=torch.float64))
    if own.loss is None or not math.isfinite(norm):
        raise BadReply("has a loss or an update that is not finite")
    if max_norm is not None and norm > max_norm:
        raise BadReply(f"has an update of length {norm:.6g}, at most {max_norm:g} is taken (federate.max_norm)")
    return row


def size_of(reply: Message) -> int:
    """Return the bytes of a reply's arrays and texts; 0 for an error."""
    if reply.has_error():
        return 0
    arrays = sum(len(array.data) for record in reply.content.array_records.values() for array in record.values())
    values = [value for record in reply.content.config_records.values() for value in record.values()]
    return arrays + sum(len(value) for value in values if isinstance(value, str | bytes))


def read(kind: type[Kind], reply: Message) -> Kind:
    """Return what a reply tells in its config record ``told``.

    Raises:
        BadReply: an error of the node, or something else than ``kind``.
    """
    if reply.has_error():
        said = _RAISED.fullmatch(reply.error.reason or "")
        raise BadReply(f"reports an error: {said[2] if said else reply.error.reason or f'code {reply.error.code}'}")
    told = reply.content.config_records.get("told")
    text = None if told is None else told.get("json")
    if not isinstance(text, str) or len(text) > TOLD:
        raise BadReply("does not say what it is about")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise BadReply(f"says what cannot be read ({first_rule(error)})") from error


def merged(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the reports that several nodes give of one defense into the one that all clients together would give."""
    merged: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        merged.setdefault(report["name"], []).extend(report["clients"])
    return [{"name": name, "clients": sorted(own, key=lambda one: int(one["client"]))} for name, own in merged.items()]


def plain(text: str) -> str:
    """Text from outside for a line on a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:300]
