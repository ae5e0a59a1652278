"""Replies to a strategy's messages, sound ones and broken ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from memory_grid import MemoryGrid
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def values(of: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in of.items()}


def asked(strategy: Any, arrays: Mapping[str, NDArray[Any]], nodes: int, server_round: int = 1) -> list[Message]:
    """What a strategy sends out in a round, by node id."""
    return list(strategy.configure_train(server_round, record(arrays), ConfigRecord(), MemoryGrid(ClientApp(), nodes)))


def reply(to: Message, arrays: Mapping[str, NDArray[Any]] | ArrayRecord, examples: Any = 10, **metrics: Any) -> Message:
    sent = arrays if isinstance(arrays, ArrayRecord) else record(arrays)
    content = RecordDict({"arrays": sent, "metrics": MetricRecord({"num-examples": examples, **metrics})})
    return Message(content, reply_to=to)


def moved(arrays: Mapping[str, NDArray[Any]], draw: np.random.Generator, size: float = 0.01) -> Arrays:
    """A client's arrays after training: floats moved a little, counters by ten."""
    return {
        name: (value + size * draw.standard_normal(value.shape)).astype(value.dtype) if value.dtype.kind == "f" else value + 10
        for name, value in arrays.items()
    }


def network(draw: np.random.Generator) -> Arrays:
    """Weights, a scalar, a buffer that counts."""
    return {
        "conv.weight": draw.standard_normal((4, 3, 2)).astype(np.float32),
        "conv.bias": draw.standard_normal(4).astype(np.float32),
        "scale": np.asarray(draw.standard_normal(), np.float32),
        "bn.num_batches_tracked": np.asarray(7, np.int64),
    }


def adapter(draw: np.random.Generator, modules: Sequence[str] = ("q_proj", "v_proj"), rank: int = 2) -> Arrays:
    """LoRA's A and B under PEFT's names."""
    found: Arrays = {}
    for module in modules:
        start = f"base_model.model.layers.0.{module}"
        found[f"{start}.lora_A.weight"] = draw.standard_normal((rank, 6)).astype(np.float32)
        found[f"{start}.lora_B.weight"] = draw.standard_normal((5, rank)).astype(np.float32)
    return found
