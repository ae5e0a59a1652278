"""A Flower Grid whose nodes are real workers behind real sockets in this process: only Flower's network is left out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from tiny import Quiet
from undertow.federate import client, wire, worker
from undertow.federate.folder import Folder, NodeFolder
from undertow.federate.own_data import OwnData
from undertow.federation.resolve import Federation, resolve

#: What a test does to a reply on its way: returns it, another one, or None for one that never comes.
Change = Callable[[int, Message], Message | None]


class NodeGrid(Grid):
    """Nodes with ids as Flower gives them; the last one answers first.

    Args:
        folder: of the federation.
        sockets: a folder with a short path.
        change: of what a node (by its index) replies to a training message.
    """

    def __init__(self, folder: Folder, sockets: Path, change: Change = lambda index, reply: reply) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.change = change
        self.away: set[int] = set()
        self.asked: list[tuple[int, str]] = []
        self.numbers = [2**63 + 11 * index for index in range(len(folder.nodes))]
        self.paths: dict[int, str] = {}
        self.workers: list[worker.Worker] = []
        self.masked: list[Message] = []
        self._replies: dict[str, Message] = {}
        federation: Federation | None = None
        for number, path in zip(self.numbers, folder.nodes, strict=True):
            node = NodeFolder.read(path)
            private = node.config.federate.private
            source = OwnData(node) if private else (federation := federation or resolve(node.config, Quiet()))
            self.paths[number] = str(sockets / node.path.name)
            listener = wire.listen(self.paths[number])
            if federation is not None:
                self.federation = federation
            self.workers.append(worker.Worker(node, source))
            threading.Thread(target=worker.serve, args=(self.workers[-1], listener), daemon=True).start()

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = list(self.pull_messages(self.push_messages(messages)))
        self.masked += replies
        return replies

    def get_node_ids(self) -> Iterable[int]:
        return [number for number in reversed(self.numbers) if number not in self.away]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identities = []
        for message in messages:
            number = message.metadata.dst_node_id
            identity = f"message-{len(self.asked)}"
            self.asked.append((number, message.metadata.message_type))
            identities.append(identity)
            message.metadata.__dict__["_message_id"] = identity
            context = Context(
                run_id=1, node_id=number, node_config={"socket": self.paths[number]}, state=RecordDict(), run_config={}
            )
            try:
                reply = client.app(message, context)
            except Exception as error:  # as Flower does with whatever an app raises
                reply = Message(Error(code=0, reason=str(error)), reply_to=message)
            if message.metadata.message_type == "train":
                reply = self.change(self.numbers.index(number), reply)
            if reply is not None:
                self._replies[identity] = reply
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(one) for one in reversed(list(message_ids)) if one in self._replies]

    def lose(self, identity: str) -> None:
        """Forget the reply to a message."""
        self._replies.pop(identity)
