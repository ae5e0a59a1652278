"""A Flower Grid within one process: each message goes straight to a ClientApp, and comes back in any order one likes.

Flower's own simulation needs Ray, and its InMemoryGrid a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


class MemoryGrid(Grid):
    """Nodes with ids as Flower gives them, far above any index; each keeps its context."""

    def __init__(self, app: Any, nodes: int, shuffle: int | None = None, lost: Callable[[Message], bool] | None = None) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # what Flower's process would set
        draw = np.random.default_rng(99)
        self.ids = [int(one) for one in draw.integers(2**62, 2**64 - 1, nodes, dtype=np.uint64)]
        config = [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config=own, state=RecordDict(), run_config={})
            for node, own in zip(self.ids, config, strict=True)
        }
        self.app: ClientApp = app
        self.shuffle = None if shuffle is None else np.random.default_rng(shuffle)
        self.lost = lost
        self.asked: list[list[int]] = []

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return self.mixed(self.ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        sent = list(messages)
        self.asked.append([message.metadata.dst_node_id for message in sent])
        for message in sent:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            try:
                reply = self.app(message, self.contexts[message.metadata.dst_node_id])
            except Exception as error:  # as Flower does with whatever an app raises
                reply = Message(Error(code=0, reason=str(error)), reply_to=message)
            if self.lost is None or not self.lost(reply):
                replies.append(reply)
        return self.mixed(replies)

    def mixed(self, things: list[Any]) -> list[Any]:
        return list(things) if self.shuffle is None else [things[i] for i in self.shuffle.permutation(len(things))]
