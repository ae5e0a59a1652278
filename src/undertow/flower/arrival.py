"""What a server checks of a client's reply before it uses a byte of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

#: The longest header that is read of an array in numpy's format; numpy's own are 128 bytes.
_HEADER = 4096


class Spec(NamedTuple):
    """Shape and dtype of an array of the global model."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class BadReply(Exception):
    """Why a reply is not used, in one line."""


@dataclass(frozen=True)
class Dropped:
    """A reply that was not used: from which node, and why."""

    node: int
    reason: str


@dataclass(frozen=True)
class Limits:
    """What a reply may be at most.

    Attributes:
        norm: Euclidean length of the update over the floating-point arrays; None = any finite one.
        size: bytes of its arrays as sent; None = what the global model's arrays need at 8 bytes a value.
        examples: samples that it may claim, which weigh it in a mean; None = any number.
    """

    norm: float | None = None
    size: int | None = None
    examples: float | None = None


@dataclass(frozen=True)
class Arrived:
    """A reply that passed: its node, arrays by name in their own dtypes, claimed samples, and content."""

    node: int
    arrays: dict[str, NDArray[np.generic]]
    examples: float
    content: RecordDict


def checked(reply: Message, specs: Mapping[str, Spec], weight_key: str, limits: Limits, *, others: bool = False) -> Arrived:
    """Return a reply's arrays, for which names, sizes, shapes, kinds of numbers and values were checked in this order.

    Args:
        reply: of a client, with content or an error.
        specs: of the global model's arrays.
        weight_key: under which its metrics say how many samples it has.
        limits: all but ``norm``, which is about the update.
        others: whether further arrays may be in it; nobody looks at them.

    Raises:
        BadReply: with the reason.
    """
    examples = weight_of(reply, weight_key, limits)
    records = list(reply.content.array_records.values())
    if len(records) != 1:
        raise BadReply(f"holds {len(records)} array records, not one")
    arrays = checked_arrays(records[0], specs, limits, others=others)
    return Arrived(reply.metadata.src_node_id, arrays, examples, reply.content)


def checked_arrays(
    record: ArrayRecord, specs: Mapping[str, Spec], limits: Limits, *, others: bool = False
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of one record; arguments and errors as :func:`checked`."""
    if missing := [name for name in specs if name not in record]:
        raise BadReply(f"lacks {len(missing)} arrays, such as {_told(missing[0])}")
    if len(record) > len(specs) and not others:
        odd = next(name for name in record if name not in specs)
        raise BadReply(f"has {len(record) - len(specs)} arrays too many, such as {_told(odd)}")
    most = limits.size or needed(specs)
    size = sum(len(record[name].data) for name in specs)
    if size > most:
        raise BadReply(f"has {size} bytes of arrays, at most {most} are taken")
    return {name: decoded(name, record[name], spec) for name, spec in specs.items()}


def needed(specs: Mapping[str, Spec]) -> int:
    """Return the bytes that arrays of these shapes take at most, at 8 bytes a value."""
    return sum(8 * math.prod(spec.shape) + _HEADER for spec in specs.values())


def weight_of(reply: Message, weight_key: str, limits: Limits) -> float:
    """Return the samples that a reply claims; arguments and errors as :func:`checked`."""
    if reply.has_error():
        raise BadReply(f"reports an error: {_told(reply.error.reason or f'code {reply.error.code}')}")
    metrics = list(reply.content.metric_records.values())
    if len(metrics) != 1:
        raise BadReply(f"holds {len(metrics)} metric records, not one")
    value = metrics[0].get(weight_key)
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise BadReply(f"says {_told(weight_key)} = {_told(str(value))}, not a number above 0")
    if limits.examples is not None and value > limits.examples:
        raise BadReply(f"claims {value:g} samples, at most {limits.examples:g} are believed")
    return float(value)


def decoded(name: str, array: Array, spec: Spec | None) -> NDArray[np.generic]:
    """Return an array whose header says what was promised, read-only.

    The header is read and compared before any memory is taken for what it claims; nothing is unpickled.

    Args:
        name: for messages.
        array: as it travelled.
        spec: what it must be: the shape, and the kind of number (floating-point, whole, truth value) in any width up to 8 bytes;
            None = any array of numbers.

    Raises:
        BadReply: it is not, or holds NaN or infinity.
    """
    name = _told(name)
    if array.stype != "numpy.ndarray":
        raise BadReply(f"array {name} is a {_told(array.stype)}, not a numpy.ndarray")
    stream = BytesIO(array.data)
    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        shape, by_columns, dtype = read(stream, max_header_size=_HEADER)  # type: ignore[no-untyped-call]
    except Exception as error:  # bytes from outside: numpy's parser fails in many ways
        raise BadReply(f"array {name} is not in numpy's format") from error
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise BadReply(f"array {name} holds {dtype}, not numbers")
    if spec is not None and tuple(shape) != spec.shape:
        raise BadReply(f"array {name} has shape {list(shape)}, the global model's {list(spec.shape)}")
    if spec is not None and dtype.kind != spec.dtype.kind:
        raise BadReply(f"array {name} holds {dtype}, the global model's {spec.dtype}")
    start = stream.tell()
    if len(array.data) - start != math.prod(shape) * dtype.itemsize:
        raise BadReply(f"array {name} has {len(array.data) - start} bytes for {list(shape)} of {dtype}")
    flat = np.frombuffer(array.data, dtype=dtype, offset=start)
    if dtype.kind == "f" and not np.isfinite(flat).all():
        raise BadReply(f"array {name} holds NaN or infinity")
    return flat.reshape(shape, order="F" if by_columns else "C")


def _told(text: str) -> str:
    """Text from outside for a log line: quoted, without control characters, short."""
    quoted = repr(text)
    return quoted if len(quoted) <= 100 else f"{quoted[:97]}..."
