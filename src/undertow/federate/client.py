"""The ClientApp of a node: it hands each message to the node's resident worker and returns the answer."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from undertow.federate import wire

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator]
def query(message: Message, context: Context) -> Message:
    """Return who this node is: its name, its clients and what it was configured for."""
    answer, _ = _asked(context, {"kind": "query"}, [])
    return Message(RecordDict({"told": ConfigRecord({"json": json.dumps(answer)})}), reply_to=message)


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Let the worker train the clients asked for, and return one array a client."""
    order = json.loads(str(message.content.config_records["order"]["json"]))
    state = message.content.array_records["state"]["state"]
    answer, arrays = _asked(context, {"kind": "train", "order": order}, [state.data])
    content = RecordDict({"told": ConfigRecord({"json": json.dumps(answer)})})
    for trained, data in zip(answer["clients"], arrays, strict=True):
        # one array a client: Flower makes a request for every single array, at each of its three hops
        update = Array(state.dtype, tuple(state.shape), "numpy.ndarray", data)
        content[f"update-{trained['client']}"] = ArrayRecord({"update": update})
    return Message(content, reply_to=message)


@app.query("undertow_sanitize")  # type: ignore[untyped-decorator]
def pool(message: Message, context: Context) -> Message:
    """Let the worker take part in the pooled sanitization; what leaves it is masked."""
    sent = message.content.array_records.get("pooled") or {}
    order = json.loads(str(message.content.config_records["order"]["json"]))
    header = {"kind": "pool", "order": order, "names": list(sent)}
    answer, arrays = _asked(context, header, [array.data for array in sent.values()])
    content = RecordDict({"told": ConfigRecord({"json": json.dumps(answer)})})
    for data in arrays:
        counts = np.load(BytesIO(data), allow_pickle=False)
        content["masked"] = ArrayRecord({"counts": Array(counts)})
    return Message(content, reply_to=message)


def _asked(context: Context, header: dict[str, Any], arrays: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    answer, sent = wire.ask(str(context.node_config["socket"]), header, arrays)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer, sent
