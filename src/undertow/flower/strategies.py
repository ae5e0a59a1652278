"""Any aggregator of Undertow as a Flower strategy: FedAvg's choice of clients, checks on arrival, a memory that can be saved."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import sample_nodes
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.files import write_bytes
from undertow.core.rng import rng
from undertow.defenses import composition
from undertow.defenses.aggregation.base import UpdateDefense
from undertow.defenses.base import Defense
from undertow.defenses.contexts import ServerContext
from undertow.defenses.server.base import ServerDefense
from undertow.federation.server import aggregate, guard
from undertow.flower.arrays import GlobalModel
from undertow.flower.arrival import Arrived, BadReply, Dropped, Limits, checked, weight_of
from undertow.flower.defenses import fewest, named
from undertow.flower.metrics import alike, scalars

log = logging.getLogger("flwr")

Trusted = Callable[[int, ArrayRecord], ArrayRecord]


class UndertowStrategy(FedAvg):  # type: ignore[misc]
    """Flower's FedAvg with another aggregation: Undertow's aggregators on the updates, float32, one row a reply.

    Clients are chosen from the sorted node ids by the seed, so that neither the order in which nodes connect nor that in which they
    reply changes a round. A reply that is not sound is dropped and named; if too few are left the round is skipped: the global
    model stays.

    Attributes:
        defenses: by name, in order.
        dropped: the replies of the last round that were not used, with reasons.
        reports: what the defenses told of the last round, plain values; rows in them are the round's sound replies by node id,
            see ``nodes``.
        nodes: whose replies were used in the last round, ascending.

    Args:
        defenses: one or several in order: names as in a config (``"krum:f=1"``), aggregators such as ``Krum(f=1)``, or any
            :class:`~undertow.defenses.base.Defense` on the updates or the server's new state. None = the mean by samples.
        seed: of the choice of clients and of the defenses' random numbers.
        lora_scale: s = alpha / r of the adapter, for aggregators in the space of ΔW.
        min_replies: fewer sound replies than this, or than the aggregator needs, and the round is skipped.
        max_norm: a reply whose update is longer is dropped; None = no limit.
        max_bytes: a reply with more bytes of arrays is dropped; None = what the global model needs at 8 bytes a value.
        max_examples: a reply that claims more samples is dropped; None = no limit.
        trusted: what the server trains itself on data that it trusts, for ``fltrust``: a function of the round and the global
            model.
        options: FedAvg's own. ``min_train_nodes`` is at least what the aggregator needs, and by default that or 2;
            ``min_available_nodes`` is by default the same.

    Raises:
        UserError: an unknown or unfit defense, a limit out of its range, or too small a ``min_train_nodes``.
    """

    def __init__(
        self,
        defenses: str | Defense | Sequence[str | Defense] = (),
        *,
        seed: int = 0,
        lora_scale: float = 1.0,
        min_replies: int = 1,
        max_norm: float | None = None,
        max_bytes: int | None = None,
        max_examples: float | None = None,
        trusted: Trusted | None = None,
        **options: Any,
    ) -> None:
        for name, value in (
            ("lora_scale", lora_scale),
            ("min_replies", min_replies),
            ("max_norm", max_norm),
            ("max_bytes", max_bytes),
            ("max_examples", max_examples),
        ):
            if value is not None and not (isinstance(value, Real) and math.isfinite(value) and value > 0):
                raise UserError(f"{name} = {value!r} must be a number above 0")
        self.defenses = named(defenses, trusted is not None)
        needed = int(max(fewest(self.defenses), min_replies))
        if options.get("fraction_train", 1.0) > 0:
            options.setdefault("min_train_nodes", max(2, needed))
            if options["min_train_nodes"] < needed:
                raise UserError(
                    f"min_train_nodes = {options['min_train_nodes']}, but {self._title()} needs {needed} replies; give {needed} "
                    "or more"
                )
            options.setdefault("min_available_nodes", options["min_train_nodes"])
        super().__init__(**options)
        self.seed = seed
        self.lora_scale = lora_scale
        self.min_replies = min_replies
        self.limits = Limits(max_norm, max_bytes, max_examples)
        self.trusted = trusted
        self.dropped: list[Dropped] = []
        self.reports: list[dict[str, Any]] = []
        self.nodes: list[int] = []
        self._clients: dict[int, int] = {}
        self._before = self._round = 0
        self._model: GlobalModel | None = None
        self._record: ArrayRecord | None = None
        self._asked: list[int] = []
        self._sent: list[Message] = []

    def summary(self) -> None:
        """Log how clients are chosen, as FedAvg does, and the defenses."""
        super().summary()
        log.info("\t└──> Undertow: %s", self._title())

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return a message with the global model for each client of the round; waits for nodes as FedAvg does.

        Raises:
            UserError: a global model that cannot be read, or that a defense does not fit.
        """
        if self.fraction_train == 0.0:
            return []
        self._model = GlobalModel(arrays, self.lora_scale)
        self._record = arrays
        for name, defense in self.defenses:
            try:
                if isinstance(defense, UpdateDefense):
                    defense.fits(self._model.layout)
            except UserError as error:
                raise UserError(f"defense {name}: {error}") from error
        self._asked, known = self._choose("participants", server_round, grid, self.fraction_train, self.min_train_nodes)
        for node in known:  # numbers for defenses that remember clients; the table only grows
            self._clients.setdefault(node, len(self._clients))
        log.info("configure_train: Sampled %s nodes (out of %s)", len(self._asked), len(known))
        self._sent = self._messages(server_round, arrays, config, self._asked, MessageType.TRAIN)
        return self._sent

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return a message with the global model for each client that measures it."""
        if self.fraction_evaluate == 0.0:
            return []
        chosen, known = self._choose("evaluators", server_round, grid, self.fraction_evaluate, self.min_evaluate_nodes)
        log.info("configure_evaluate: Sampled %s nodes (out of %s)", len(chosen), len(known))
        self._sent = self._messages(server_round, arrays, config, chosen, MessageType.EVALUATE)
        return self._sent

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new global model and the metrics of a round.

        Args:
            server_round: from 1 in this call of ``start``.
            replies: in any order.

        Returns:
            The model, None where the round is skipped; and the clients' metrics averaged as FedAvg does, with
            ``undertow/replies``, ``undertow/dropped``, ``undertow/skipped`` and each number that a defense reports as
            ``DEFENSE/NAME``.
        """
        if self.fraction_train == 0.0:
            return None, None
        if self._model is None:
            raise UserError(
                "aggregate_train before configure_train: the strategy does not know the global model; call them in turn"
            )
        model, self._round = self._model, self._before + server_round
        sound, updates, self.dropped = read_replies(
            replies, model, self.weighted_by_key, self.limits, asked=self._asked, sender=self._sender
        )
        self.nodes, self.reports = [reply.node for reply in sound], []
        silent = len(set(self._asked) - set(self.nodes) - {drop.node for drop in self.dropped})
        log.info(
            "aggregate_train: asked %d, %d sound, %d dropped, %d without reply",
            len(self._asked),
            len(sound),
            len(self.dropped),
            silent,
        )
        for drop in self.dropped:
            log.warning("\t> Dropped the reply of node %d: %s", drop.node, drop.reason)
        record, why = self._aggregate(model, sound, updates)
        if why:
            log.warning("aggregate_train: round %d is skipped, the global model stays: %s", self._round, why)
        metrics = self.train_metrics_aggr_fn(alike(sound, self.weighted_by_key), self.weighted_by_key) if sound else MetricRecord()
        told = {"replies": len(sound), "dropped": len(self.dropped), "without-reply": silent, "skipped": int(bool(why))}
        for key, value in {**{f"undertow/{key}": value for key, value in told.items()}, **scalars(self.reports)}.items():
            metrics[key] = value
        return record, metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the clients' metrics of the global model, averaged as FedAvg does over the sound replies; None without any."""
        sound: list[Arrived] = []
        for node, reply in sorted(((self._sender(reply), reply) for reply in replies), key=lambda pair: pair[0]):
            try:
                sound.append(Arrived(node, {}, weight_of(reply, self.weighted_by_key, self.limits), reply.content))
            except BadReply as error:
                log.warning("aggregate_evaluate: dropped the reply of node %d: %s", node, error)
        return self.evaluate_metrics_aggr_fn(alike(sound, self.weighted_by_key), self.weighted_by_key) if sound else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the strategy remembers between rounds, without the global model: small unless a defense keeps vectors."""
        nodes = torch.tensor([_signed(node) for node in self._clients], dtype=torch.int64)
        return {"nodes": nodes, "round": torch.tensor(self._round), **composition.save_states(self.defenses)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back :meth:`state_dict`; the next ``start`` goes on with the round after it, in ``server-round`` too.

        Raises:
            UserError: it is not of a strategy with these defenses.
        """
        rest = dict(state)
        nodes, finished = rest.pop("nodes", torch.empty(0)), rest.pop("round", torch.empty(0))
        if nodes.dtype != torch.int64 or nodes.ndim != 1 or len(set(nodes.tolist())) != len(nodes) or finished.shape != ():
            raise UserError(
                "the state is not one of this strategy (nodes and round are missing or damaged); give one that it saved"
            )
        try:
            composition.restore_states(self.defenses, rest)
        except UserError as error:
            raise UserError(
                f"the state is not one of {self._title()} ({str(error).partition(';')[0]}); give one of its own"
            ) from error
        self._clients = {node % 2**64: k for k, node in enumerate(nodes.tolist())}
        self._before = self._round = int(finished)

    def save(self, path: str | Path) -> None:
        """Write :meth:`state_dict` as safetensors, atomically."""
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_bytes(Path(path), tensors_as_bytes(tensors, metadata={"defenses": self._title(), "kinds": self._kinds()}))

    def load(self, path: str | Path) -> None:
        """Take back what :meth:`save` wrote.

        Raises:
            UserError: no such file, a damaged one, or one of other defenses.
        """
        try:
            content = Path(path).read_bytes()
            state = read_tensors(content)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read as the state of a strategy ({error}); give a file that save wrote") from error
        # safetensors reads metadata of files alone: eight bytes of length, then JSON
        told = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}
        if told.get("kinds", self._kinds()) != self._kinds() or ("kinds" not in told and told.get("defenses") != self._title()):
            raise UserError(f"{path}: a state of {told.get('defenses')}, and this strategy is {self._title()}; give one of its own")
        self.load_state_dict(state)

    def _title(self) -> str:
        return ", ".join(name for name, _ in self.defenses) or "mean"

    def _kinds(self) -> str:
        return ", ".join(type(defense).__name__ for _, defense in self.defenses)

    def _sender(self, reply: Message) -> int:
        """The node that a reply is of. Flower answers in the place of a node that died, as node 1: then it is the node asked."""
        if reply.has_error():
            for message in self._sent:
                if message.metadata.message_id and message.metadata.message_id == reply.metadata.reply_to_message_id:
                    return int(message.metadata.dst_node_id)
        return int(reply.metadata.src_node_id)

    def _choose(self, purpose: str, server_round: int, grid: Grid, fraction: float, least: int) -> tuple[list[int], list[int]]:
        """The nodes of a round and all known ones, both ascending."""
        known = sorted(sample_nodes(grid, self.min_available_nodes, least)[1])  # waits; its own choice is not reproducible
        size = min(len(known), max(least, int(len(known) * fraction)))
        draw = rng(self.seed, f"flower {purpose}", self._before + server_round)
        return sorted(known[i] for i in draw.choice(len(known), size, replace=False)), known

    def _messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, nodes: Sequence[int], kind: str
    ) -> list[Message]:
        config["server-round"] = self._before + server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return [Message(content=content, message_type=kind, dst_node_id=node) for node in nodes]

    def _aggregate(self, model: GlobalModel, sound: Sequence[Arrived], updates: Tensor) -> tuple[ArrayRecord | None, str]:
        """The new model, or why there is none."""
        if len(sound) < self.min_replies:
            return None, f"{len(sound)} sound replies, at least {self.min_replies} are needed"
        context = ServerContext(
            layout=model.layout,
            counts=[reply.examples for reply in sound],  # type: ignore[misc]  # aggregators take any positive numbers
            round=self._round,
            adapter=model.flat,
            draw=rng(self.seed, "server", self._round),
            clients=[self._clients[reply.node] for reply in sound],
            trusted=self._trusted(model),
        )
        try:
            composition.check_defenses(self.defenses, len(sound), model.layout)
            delta, reports = aggregate(updates, self.defenses, context)
            moved, self.reports = guard(model.flat + delta.to(model.flat), self.defenses, context, reports)
        except UserError as error:
            return None, str(error)
        if self._guarded:
            delta = moved - model.flat
        record = model.after(delta, [reply.arrays for reply in sound])
        return record, "" if record else "the new model is not finite in the dtype of the global one"

    @property
    def _guarded(self) -> bool:
        return any(isinstance(defense, ServerDefense) for _, defense in self.defenses)

    def _trusted(self, model: GlobalModel) -> Tensor | None:
        if self.trusted is None or self._record is None:
            return None
        returned = self.trusted(self._round, self._record)
        if not isinstance(returned, ArrayRecord):
            raise UserError(f"trusted returned a {type(returned).__name__}; return the trained model, an ArrayRecord")
        try:
            own = GlobalModel(returned, self.lora_scale)
        except UserError as error:
            raise UserError(f"trusted returned a model that cannot be used ({error})") from error
        if {name: spec.shape for name, spec in own.specs.items()} != {name: spec.shape for name, spec in model.specs.items()}:
            raise UserError("trusted returned arrays of other names or shapes than the global model's; return the trained model")
        return model.update(own.arrays)


def strategy(defenses: str | Defense | Sequence[str | Defense] = (), **options: Any) -> UndertowStrategy:
    """Return a Flower strategy: ``strategy("krum:f=1")``, ``strategy(Krum(f=1))``, ``strategy(["nnm:f=1", "median"])``.

    Arguments and errors as :class:`UndertowStrategy`.
    """
    return UndertowStrategy(defenses, **options)


def read_replies(
    replies: Iterable[Message],
    model: GlobalModel,
    weight_key: str,
    limits: Limits,
    *,
    asked: Sequence[int] | None = None,
    others: bool = False,
    sender: Callable[[Message], int] = lambda reply: int(reply.metadata.src_node_id),
) -> tuple[list[Arrived], Tensor, list[Dropped]]:
    """Check replies and turn them into a matrix; nothing depends on their order.

    Args:
        replies: in any order.
        model: what the clients were sent.
        weight_key: under which a reply's metrics say how many samples it has.
        limits: of a reply.
        asked: nodes that were asked; None = any.
        others: whether replies may hold arrays that the model has not.
        sender: returns the node id of a reply.

    Returns:
        The sound replies by node id, their updates ``[K, D]`` float32, and what was dropped. Of a node that replies more than once
        nothing is used.
    """
    by_node: dict[int, list[Message]] = {}
    for reply in replies:
        by_node.setdefault(sender(reply), []).append(reply)
    sound: list[Arrived] = []
    rows: list[Tensor] = []
    dropped: list[Dropped] = []
    for node, own in sorted(by_node.items()):
        try:
            if asked is not None and node not in asked:
                raise BadReply("was not asked in this round")
            if len(own) > 1:
                raise BadReply(f"replied {len(own)} times")
            arrived = checked(own[0], model.specs, weight_key, limits, others=others)
            row = model.update(arrived.arrays)
            norm = float(torch.linalg.vector_norm(row, dtype=torch.float64))
            if not math.isfinite(norm):
                raise BadReply("has an update beyond float32")
            if limits.norm is not None and norm > limits.norm:
                raise BadReply(f"has an update of length {norm:.6g}, at most {limits.norm:g} is taken")
        except BadReply as error:
            dropped.append(Dropped(node, str(error)))
        else:
            sound.append(arrived)
            rows.append(row)
    return sound, torch.stack(rows) if rows else torch.empty(0, model.layout.size), dropped


def _signed(node: int) -> int:
    """A node id, up to 64 bits without a sign, as a number that a tensor holds."""
    return node - 2**64 if node >= 2**63 else node
