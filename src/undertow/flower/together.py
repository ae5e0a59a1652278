"""Federated sanitization inside any Flower app: clients add up hashed counts by secure summation, and each judges its own rows.

The defense ``sanitization`` (docs/federated-sanitization.md) over Flower's messages. On the client :func:`sanitize_together`
answers the server's questions; on the server :func:`pool_counts` asks them, before the strategy starts. The app trains on
:func:`undertow.flower.mods.cleaned` rows, as with the mod that looks at one client alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.defenses.contexts import ExchangeContext
from undertow.defenses.data.base import DataDefense
from undertow.defenses.data.sanitization import Sanitization
from undertow.flower import secure_sum
from undertow.flower.mods import keep, numbered
from undertow.scanning.repairs import Row, answered

log = logging.getLogger("flwr")

#: The message type of the server's questions.
ASKED = "query.undertow_sanitize"
_STATE, _SUMS = "undertow.together", "undertow.together.sums"
#: What a client may tell at the end.
_TOLD = ("dropped", "repaired")


def sanitize_together(
    app: ClientApp,
    load: Callable[[Context], Sequence[Row]],
    secret: Callable[[Context], bytes],
    *,
    defense: Sanitization | None = None,
    tell: bool = False,
) -> None:
    """Let a client app take part in :func:`pool_counts`; the verdicts are left for :func:`undertow.flower.cleaned`.

    ::

        app = ClientApp()
        sanitize_together(app, load, secret)

        @app.train()
        def train(message, context):
            rows = cleaned(load(context), context)

    What leaves the client: one public key, six arrays of counts that only the sum over all clients gives away, and that it has
    finished. A sum over fewer than three clients, keys that no holder of the secret made, other settings of the defense than its
    own, and the same question twice are refused.

    Args:
        app: gets a query function for messages of type :data:`ASKED`.
        load: returns the client's rows.
        secret: returns the 32 bytes that the clients share and the server does not know, such as from a file that
            ``context.node_config`` names.
        defense: its settings; those of all clients and of the server must be alike.
        tell: whether the last answer says how many rows were dropped and repaired.
    """
    rule = defense or Sanitization()

    def answer(message: Message, context: Context) -> Message:
        order = json.loads(str(message.content.config_records["order"]["json"]))
        known = secret(context)
        if len(known) != 32:
            raise UserError(f"the secret has {len(known)} bytes; give all clients the same 32, as os.urandom(32) makes them")
        if order["settings"] != _settings(rule):
            raise UserError(f"the server pools with {order['settings']}, this client with {_settings(rule)}; give both the same")
        if order["step"] == "key":
            return _reply(message, _begin(context, known, order["session"]))
        return _next(message, context, load(context), rule, known, order, tell)

    app.query(ASKED.partition(".")[2])(answer)


def pool_counts(
    grid: Grid,
    *,
    defense: Sanitization | None = None,
    nodes: Iterable[int] | None = None,
    least: int = secure_sum.LEAST,
    timeout: float = 600,
) -> dict[str, Any]:
    """Let the nodes pool their counts by secure summation; call it in the ServerApp before the strategy starts.

    The server adds masked arrays and sends back what is frequent in the sum. Where a node does not answer soundly in time, the
    others begin again without it, since the masks they share with it would stay in the sum.

    Args:
        grid: Flower's.
        defense: settings, the same as on the clients.
        nodes: who takes part; None = all that are connected now.
        least: how many there must be, at least 3.
        timeout: seconds for each of the seven questions.

    Returns:
        ``nodes`` that finished, ``left_out`` ``{node: reason}``, ``exchanges``, ``bytes`` of all masked arrays, and, from clients
        that tell, ``dropped`` and ``repaired``.

    Raises:
        UserError: fewer nodes than ``least``.
    """
    rule = defense or Sanitization()
    taking = grid.get_node_ids() if nodes is None else nodes

    def tell(node: int, reason: str) -> None:
        log.warning("sanitize: node %d is left out: %s; the others begin again", node, reason)

    return pooled(grid, rule, _settings(rule), taking, least, timeout, tell)[0]


def pooled(
    grid: Grid,
    rule: DataDefense,
    settings: dict[str, Any],
    nodes: Iterable[int],
    least: int,
    timeout: float,
    tell: Callable[[int, str], None],
    names: Mapping[int, str] | None = None,
) -> tuple[dict[str, Any], list[NDArray[np.uint32]]]:
    """Let nodes pool the counts of a defense, and return :func:`pool_counts`'s report and what was sent back in each exchange.

    Args:
        grid: Flower's.
        rule: pools a sum.
        settings: what the nodes must agree on.
        nodes: who takes part.
        least: how many there must be, at least 3.
        timeout: seconds for each question.
        tell: is told each node that is left out, and why.
        names: what to call nodes in the error.

    Raises:
        UserError: fewer nodes than ``least``.
    """
    left_out: dict[int, str] = {}
    least = max(least, secure_sum.LEAST)
    asked = set(nodes)
    while True:
        taking = sorted(asked - set(left_out))
        if len(taking) < least:
            reasons = "".join(f"; {(names or {}).get(node, f'node {node}')}: {reason}" for node, reason in left_out.items())
            raise UserError(f"{len(taking)} nodes can pool their counts, at least {least} are needed{reasons}")
        lost, report, sums = _pooled(grid, rule, settings, taking, timeout)
        if not lost:
            return {"nodes": taking, "left_out": left_out, **report}, sums
        for node, reason in lost.items():
            tell(node, reason)
        left_out |= lost


def _pooled(
    grid: Grid, rule: DataDefense, settings: dict[str, Any], nodes: Sequence[int], timeout: float
) -> tuple[dict[int, str], dict[str, Any], list[NDArray[np.uint32]]]:
    """Go through keys and exchanges once; returns who was lost, with the reason, the report, and the sums."""
    session = os.urandom(16).hex()
    order: dict[str, Any] = {"step": "key", "session": session, "settings": settings}
    sums: list[NDArray[np.uint32]] = []
    told, _, lost = ask(grid, dict.fromkeys(nodes, order), {}, timeout)
    keys: list[list[str]] = []
    for node in told:
        try:
            keys.append([bytes.fromhex(told[node][part]).hex() for part in ("public", "seal")])
        except (KeyError, TypeError, ValueError):
            lost[node] = "sent no key"
    if lost:
        return lost, {}, sums
    size = 0
    while True:
        orders = {
            node: {**order, "step": "sum", "exchange": len(sums) + 1, "place": place, "keys": keys}
            for place, node in enumerate(nodes)
        }
        told, arrays, lost = ask(grid, orders, {"sum": sums[-1]} if sums else {}, timeout)
        if lost:
            return lost, {}, sums
        finished = {node for node in nodes if told[node].get("finished") is True}
        if finished:
            late = {node: "did not finish with the others" for node in nodes if node not in finished}
            counts = {name: [told[node][name] for node in nodes if isinstance(told[node].get(name), int)] for name in _TOLD}
            added = {name: sum(own) for name, own in counts.items() if own}
            return late, {"exchanges": len(sums), "bytes": size, **added}, sums
        lengths = [len(arrays[node]) if node in arrays else -1 for node in nodes]
        usual = max(set(lengths), key=lengths.count)
        lost = {
            node: "sent no array of the others' length" for node, own in zip(nodes, lengths, strict=True) if own != usual or own < 0
        }
        if lost:
            return lost, {}, sums
        total = np.zeros(usual, np.uint32)
        for node in nodes:
            total = total + arrays[node]
            size += arrays[node].nbytes
        sums.append(rule.pool(total, sums))


def ask(
    grid: Grid, orders: dict[int, dict[str, Any]], sums: Mapping[str, NDArray[np.uint32]], timeout: float
) -> tuple[dict[int, dict[str, Any]], dict[int, NDArray[np.uint32]], dict[int, str]]:
    """Send each node its order and the sums, and return what the nodes tell, their arrays, and who gave no sound answer."""
    messages = []
    for node, order in orders.items():
        content = RecordDict({"order": ConfigRecord({"json": json.dumps(order)})})
        if sums:
            content["pooled"] = ArrayRecord({name: Array(array) for name, array in sums.items()})
        messages.append(Message(content, dst_node_id=node, message_type=ASKED))
    told: dict[int, dict[str, Any]] = {}
    arrays: dict[int, NDArray[np.uint32]] = {}
    lost = dict.fromkeys(orders, f"no answer in {timeout:g} s")
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    # the error that stands for a node which is gone names the server as its sender
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    for reply in replies:
        node = asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
        if node not in lost:
            continue
        if reply.has_error():
            lost[node] = " ".join((reply.error.reason or "an error").split())[:200]
            continue
        try:
            told[node] = json.loads(str(reply.content.config_records["told"]["json"]))
            record = reply.content.array_records.get("masked")
            if record is not None:
                array = record["counts"].numpy()
                if array.dtype != np.uint32 or array.ndim != 1:
                    raise ValueError(f"{array.dtype} of {array.shape}")
                arrays[node] = array
            if not isinstance(told[node], dict):
                raise TypeError("no object")
        except (KeyError, TypeError, ValueError) as error:
            lost[node] = f"an answer that cannot be read ({type(error).__name__})"
            continue
        del lost[node]
    return {node: told[node] for node in orders if node in told}, arrays, lost


def _begin(context: Context, secret: bytes, session: str) -> dict[str, Any]:
    own = secure_sum.Session.begin(session)
    noise = int.from_bytes(os.urandom(15), "big")  # the server must not be able to take the noise off
    context.state[_STATE] = ConfigRecord({**vars(own), "noise": str(noise)})
    context.state[_SUMS] = ArrayRecord({})
    return own.offer(secret)


def _next(
    message: Message, context: Context, rows: Sequence[Row], rule: Sanitization, secret: bytes, order: dict[str, Any], tell: bool
) -> Message:
    state = dict(context.state.config_records.get(_STATE) or {})
    if not state:
        raise UserError("the server asks for counts before it asked for a key; it must begin anew")
    noise = int(str(state.pop("noise")))
    own = secure_sum.Session(**state)  # type: ignore[arg-type]  # as _begin left it
    turn = own.enter(order, secret)
    sums = context.state.array_records[_SUMS]
    if turn.number > 1:
        sums[str(turn.number - 1)] = message.content.array_records["pooled"]["sum"]
    pooled = tuple(sums[str(i)].numpy() for i in range(1, turn.number))
    for array in pooled:
        secure_sum.check_sum(array)
    context.state.config_records[_STATE]["asked"] = own.asked
    draw = np.random.default_rng([noise, turn.number])
    samples, row_of = numbered(rows)
    known = ExchangeContext(turn.place, draw, len(turn.publics), secret, pooled)
    # anew for each message, as in a process of its own: what a defense remembers of clients is by their place, which changes
    rule = Sanitization(rule.mode, rule.act_on, rule.cells, rule.epsilon, rule.clip)
    counts = rule.share(samples, known)
    if counts is not None:
        return _reply(message, {}, turn.masked(counts))
    kept, _ = rule.clean(samples, known)
    found = _verdicts(rows, samples, row_of, kept)
    keep(context, rows, rule.mode, found)
    log.info(
        "sanitize: %d rows, %d dropped, %d repaired, by the counts of %d clients",
        len(rows),
        len(found["drop"]),
        len(found["changed"]),
        len(turn.publics),
    )
    counted = {"dropped": len(found["drop"]), "repaired": len(found["changed"])} if tell else {}
    del context.state[_STATE], context.state[_SUMS]
    return _reply(message, {"finished": True, **counted})


def _verdicts(
    rows: Sequence[Row], samples: Sequence[Sample], row_of: Sequence[int], kept: Sequence[bool | Sample]
) -> dict[str, Any]:
    """Return the verdicts on samples as verdicts on the rows they are of."""
    drop: set[int] = set()
    changed: dict[int, Row] = {}
    for sample, i, one in zip(samples, row_of, kept, strict=True):
        if one is False:
            drop.add(i)
        elif i not in drop and isinstance(one, Sample):
            fixed = answered(changed.get(i, rows[i]), sample.response, one.response)
            if fixed is None:
                drop.add(i)
            else:
                changed[i] = fixed
    found = sum(one is not True for one in kept)
    return {
        "drop": sorted(drop),
        "changed": {str(i): row for i, row in changed.items() if i not in drop},
        "findings": found,
        "review": 0,
    }


def _settings(rule: Sanitization) -> dict[str, Any]:
    """What all parties must agree on."""
    return {"cells": rule.cells, "epsilon": rule.epsilon, "clip": rule.clip}


def _reply(message: Message, told: dict[str, Any], array: NDArray[np.uint32] | None = None) -> Message:
    content = RecordDict({"told": ConfigRecord({"json": json.dumps(told)})})
    if array is not None:
        content["masked"] = ArrayRecord({"counts": Array(array)})
    return Message(content, reply_to=message)
