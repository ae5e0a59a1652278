"""The trainer over the network: each chosen client trains on the node that holds it, and what comes back is checked."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from undertow.config import Federate
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.observer import Observer
from undertow.core.version import __version__
from undertow.defenses import composition
from undertow.federate.plan import fingerprint
from undertow.federate.replies import TOLD, Hello, Told, merged, plain, read, row_of, size_of
from undertow.federation.resolve import Federation
from undertow.flower.arrival import BadReply, Spec, needed
from undertow.runs.network_records import Exchange
from undertow.runs.records import read_jsonl, read_records, write_records
from undertow.training.clients import ClientUpdates

#: Seconds after which a node that has not said who it is is asked again, then twice as long, and so on: a SuperNode that was
#: restarted knows nothing of the question, and one whose worker still loads would have to answer them all.
_ASK_AGAIN = 30.0


@dataclass
class _Node:
    """A connected node: its number at Flower, its own name, the clients it holds, and their samples where only it knows them."""

    number: int
    name: str
    clients: list[int]
    samples: dict[int, int] = field(default_factory=dict)


@dataclass
class _Exchange:
    """One message to a node and what came of it."""

    node: _Node
    clients: list[int]
    began: float
    sent: int
    row: dict[str, Any] = field(default_factory=dict)


class Remote:
    """Trains the clients of a round on the nodes that hold them.

    Args:
        grid: Flower's.
        clients: of the federation, K.
        options: how long to wait and what to take.
        digest: of the run's config, which the nodes compare.
        folder: the run directory; a line an exchange is added to its ``network.jsonl``.
        observer: is told whose reply was dropped, and why.
        pause: seconds between two looks for replies.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        options: Federate,
        digest: str,
        folder: Path,
        observer: Observer,
        pause: float = 0.25,
    ) -> None:
        self.grid = grid
        self.clients, self.options, self.digest = clients, options, digest
        self.folder = folder
        self.observer = observer
        self.pause = pause
        self.nodes: dict[int, _Node] = {}

    def meet(self) -> None:
        """Wait until connected nodes hold all clients, or enough of them when ``federate.node_wait`` is over.

        Raises:
            UserError: two nodes claim one client, or too few are held.
        """
        total, end = self.clients, time.monotonic() + self.options.node_wait
        asked: dict[str, int] = {}
        silent_until: dict[int, float] = {}
        patience: dict[int, float] = {}
        refused: dict[int, str] = {}
        self.observer.phase("waiting for the nodes")
        while len(self._owners()) < total and time.monotonic() < end:
            now = time.monotonic()
            waiting = {number for number, until in silent_until.items() if now < until}
            for number in sorted(set(self.grid.get_node_ids()) - set(self.nodes) - waiting):
                message = Message(RecordDict(), dst_node_id=number, message_type=MessageType.QUERY, ttl=self.options.node_wait + 60)
                patience[number] = 2 * patience.get(number, _ASK_AGAIN / 2)
                silent_until[number] = now + patience[number]
                if (identity := self._push(message)) is not None:
                    asked[identity] = number
            for reply in self.grid.pull_messages(list(asked)) if asked else []:
                number = asked.pop(reply.metadata.reply_to_message_id, -1)
                if number < 0 or number in self.nodes:
                    continue
                try:
                    node = self._hello(number, reply)
                except BadReply as error:
                    reason = plain(str(error))
                    if refused.get(number) != reason:
                        self.observer.warn(f"node {number} {reason}")
                    refused[number] = reason
                else:
                    refused.pop(number, None)
                    self.nodes[number] = node
                    self.observer.phase(f"{node.name} is here, {len(self._owners())} of {total} clients")
            time.sleep(self.pause)
        held = self._owners()
        if missing := [k for k in range(total) if k not in held]:
            told = f"after {self.options.node_wait:g} s (federate.node_wait) no node holds client {_several(missing)}" + "".join(
                f"; node {number} {reason}" for number, reason in sorted(refused.items())
            )
            if len(held) < (self.options.min_clients or total):
                raise UserError(f"{told}; start the nodes that are missing, then give the same command again")
            self.observer.warn(f"{told}; going on with the others")

    def __call__(self, federation: Federation, state: Tensor, chosen: Sequence[int], acting: set[int], t: int) -> ClientUpdates:
        """Return what the chosen clients send in round ``t``, in their order, without those of bad, late or missing replies.

        Raises:
            UserError: fewer sound updates than ``federate.min_clients``, or than a defense needs.
        """
        layout = federation.task.layout
        owners, lost = self._owners(), dict[int, str]()
        unsent: dict[int, list[int]] = {}
        for k in chosen:
            if k in owners:
                unsent.setdefault(owners[k].number, []).append(k)
            else:
                lost[k] = "no node holds it"
        wanted = min(self.options.min_clients or len(chosen), len(chosen))
        record = ArrayRecord({"state": Array(state.detach().cpu().numpy())})
        size = len(record["state"].data)
        open_: dict[str, _Exchange] = {}
        done: list[_Exchange] = []
        parts: list[ClientUpdates] = []
        end = time.monotonic() + self.options.deadline
        while (unsent or open_) and time.monotonic() < end:
            for number in sorted(set(unsent) & set(self.grid.get_node_ids())):
                clients = unsent.pop(number)
                order = {
                    "round": t,
                    "clients": clients,
                    "acting": sorted(acting.intersection(clients)),
                    "layout": fingerprint(layout),
                }
                content = RecordDict({"state": record, "order": ConfigRecord({"json": json.dumps(order)})})
                message = Message(
                    content, dst_node_id=number, message_type=MessageType.TRAIN, group_id=str(t), ttl=self.options.deadline + 60
                )
                exchange = _Exchange(self.nodes[number], clients, time.monotonic(), size)
                if (identity := self._push(message)) is None:
                    self._drop(lost, exchange, clients, "could not be sent the model", t)
                    done.append(exchange)
                else:
                    open_[identity] = exchange
            for reply in self.grid.pull_messages(list(open_)) if open_ else []:
                found = open_.pop(reply.metadata.reply_to_message_id, None)
                if found is not None:
                    done.append(found)
                    part = self._taken(found, reply, layout, state, lost, t)
                    if part is not None:
                        parts.append(part)
            if unsent and not open_ and sum(len(part.clients) for part in parts) >= wanted:
                break  # enough, and who is away is not waited for
            if unsent or open_:
                time.sleep(self.pause)
        for exchange in open_.values():
            self._drop(lost, exchange, exchange.clients, f"gave no answer within {self.options.deadline:g} s", t)
            done.append(exchange)
        for number, clients in unsent.items():
            self._drop(lost, _Exchange(self.nodes[number], clients, time.monotonic(), 0), clients, "is not connected", t)
        self._record(t, done)
        return self._joined(federation, parts, lost, wanted, t)

    @property
    def sizes(self) -> list[int]:
        """Samples of each client as its node told them, 0 for one that no node holds."""
        told = {k: count for node in self.nodes.values() for k, count in node.samples.items()}
        return [told.get(k, 0) for k in range(self.clients)]

    def _owners(self) -> dict[int, _Node]:
        return {k: node for node in self.nodes.values() for k in node.clients}

    def _push(self, message: Message) -> str | None:
        found = list(self.grid.push_messages([message]))
        return found[0] if found and found[0] else None

    def _hello(self, number: int, reply: Message) -> _Node:
        """Read a node's first answer; a client that another one holds ends the run, for nobody can tell whose updates are right."""
        hello = read(Hello, reply)
        if hello.digest != self.digest:
            raise BadReply("was set up for other values; copy its folder nodes/node-K anew")
        if hello.version != __version__:
            raise BadReply(f"runs Undertow {hello.version}, this is {__version__}; install the same version")
        if not set(hello.clients) <= set(range(self.clients)) or len(set(hello.clients)) < len(hello.clients):
            raise BadReply("claims clients that do not exist, or one twice")
        owners = self._owners()
        for k in hello.clients:
            if k in owners:
                raise UserError(
                    f"client {k} is claimed by {owners[k].name} and by {hello.name}; correct `clients` in the node.yaml of one "
                    "of them"
                )
        samples = hello.samples or []
        if self.options.private and (len(samples) != len(hello.clients) or any(count < 1 for count in samples)):
            raise BadReply("does not say how many samples its clients have")
        return _Node(number, hello.name, sorted(hello.clients), dict(zip(sorted(hello.clients), samples, strict=False)))

    def _taken(
        self, exchange: _Exchange, reply: Message, layout: Layout, state: Tensor, lost: dict[int, str], t: int
    ) -> ClientUpdates | None:
        """Check a reply and return its sound rows; what is not sound is dropped and told."""
        received = size_of(reply)
        exchange.row = {"seconds": time.monotonic() - exchange.began, "received": received}
        specs = {"update": Spec((layout.size,), np.dtype(np.float32))}
        most = len(exchange.clients) * needed(specs) + TOLD
        if self.options.max_reply_mb is not None:
            most = int(self.options.max_reply_mb * 1e6)
        try:
            if received > most:
                raise BadReply(f"sent {received} bytes, at most {most} are taken")
            told = read(Told, reply)
            exchange.row["worker_seconds"] = told.seconds
            if [own.client for own in told.clients] != exchange.clients:
                raise BadReply("is about other clients than were asked for")
        except BadReply as error:
            self._drop(lost, exchange, exchange.clients, str(error), t)
            return None
        rows, sound = [], []
        for own in told.clients:
            try:
                rows.append(
                    row_of(reply.content.array_records.get(f"update-{own.client}"), own, specs, state, self.options.max_norm)
                )
                sound.append(own)
            except BadReply as error:
                self._drop(lost, exchange, [own.client], str(error), t)
        if not sound:
            return None
        return ClientUpdates(
            [own.client for own in sound],
            torch.stack(rows),
            [own.count for own in sound],
            [float(own.loss) for own in sound if own.loss is not None],
            [report.model_dump() for report in told.reports],
        )

    def _drop(self, lost: dict[int, str], exchange: _Exchange, clients: Sequence[int], reason: str, t: int) -> None:
        reason = plain(reason)
        told = f"{exchange.node.name} {reason}"
        lost.update(dict.fromkeys(clients, told))
        exchange.row.setdefault("dropped", []).append({"clients": list(clients), "reason": reason})
        self.observer.warn(f"round {t}: nothing of client {_several(clients)}: {told}")

    def _joined(
        self, federation: Federation, parts: list[ClientUpdates], lost: Mapping[int, str], wanted: int, t: int
    ) -> ClientUpdates:
        count = sum(len(part.clients) for part in parts)
        if count < wanted:
            reasons = "; ".join(dict.fromkeys(f"{reason}" for _, reason in sorted(lost.items())))
            raise UserError(
                f"round {t}: {count} sound updates, {wanted} are asked for (federate.min_clients): {reasons}; "
                "fix that, or ask for fewer, and give the same command again: finished rounds are kept"
            )
        joined, layout = ClientUpdates.join(parts), federation.task.layout
        if lost:
            try:
                families = federation.task.parts(joined.clients)
                for rows, own in [(count, layout)] if families is None else [(len(part.rows), part.layout) for part in families]:
                    composition.check_defenses(federation.defenses, rows, own)
            except UserError as error:
                raise UserError(f"round {t}: {count} sound updates: {error}") from error
        names = {name for name, _ in federation.defenses}
        reports = merged([report for report in joined.reports if report.get("name") in names])
        return ClientUpdates(joined.clients, joined.updates, joined.counts, joined.losses, reports)

    def _record(self, t: int, done: Sequence[_Exchange]) -> None:
        """Add the round's exchanges to ``network.jsonl``, in place of lines of a try of the same round that was cut off."""
        path = self.folder / Exchange.FILE
        kept = [row for row in read_jsonl(path) if row["round"] < t] if path.exists() else []
        for exchange in sorted(done, key=lambda one: one.clients):
            row = exchange.row
            kept.append(
                {
                    "round": t,
                    "node": exchange.node.name,
                    "clients": exchange.clients,
                    "seconds": _rounded(row.get("seconds")),
                    "worker_seconds": _rounded(row.get("worker_seconds")),
                    "sent_bytes": exchange.sent,
                    "received_bytes": row.get("received", 0),
                    "dropped": row.get("dropped", []),
                }
            )
        write_records(self.folder, Exchange, kept)


def network_line(folder: Path) -> str | None:
    """Return one line on what a run's messages took, None where it has none."""
    rows = [row for row in read_records(folder, Exchange) if row.seconds is not None] if (folder / Exchange.FILE).exists() else []
    if not rows:
        return None
    sent, received = _megabytes(sum(row.sent_bytes for row in rows)), _megabytes(sum(row.received_bytes for row in rows))
    seconds = sum(row.seconds or 0.0 for row in rows) / len(rows)
    worked = [row.worker_seconds for row in rows if row.worker_seconds is not None]
    inside = f", {sum(worked) / len(worked):.1f} s of them training" if worked else ""
    return f"network: {len(rows)} exchanges, {sent} to the nodes, {received} back; {seconds:.1f} s each{inside}"


def _several(clients: Sequence[int]) -> str:
    return ", ".join(map(str, clients))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
