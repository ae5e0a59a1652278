"""Which node holds which clients, and which experiments cannot run over a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from undertow.config import Config, InstructionTask
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.defenses.base import Defense, Stateful
from undertow.defenses.data.base import DataDefense
from undertow.defenses.data.sanitization import Sanitization
from undertow.defenses.loss.base import LossDefense
from undertow.federation.methods import make_methods


def split(clients: int, nodes: int) -> list[list[int]]:
    """Return the clients of each node: client k is on node k mod ``nodes``.

    Raises:
        UserError: fewer than one node, or more nodes than clients.
    """
    if not 1 <= nodes <= clients:
        raise UserError(f"{nodes} nodes for {clients} clients; give from 1 to {clients} nodes, so that each holds a client")
    return [list(range(node, clients, nodes)) for node in range(nodes)]


def fingerprint(layout: Layout) -> str:
    """Return a text that tells layouts apart by the names, shapes and order of their tensors."""
    slots = [[slot.name, list(slot.shape)] for slot in layout.slots]
    return hashlib.sha256(json.dumps(slots).encode()).hexdigest()


def check_config(config: Config) -> None:
    """Refuse what the nodes cannot do each by itself.

    Raises:
        UserError: with the field that stands in the way.
    """
    methods = make_methods(config)
    if methods.attack is not None and methods.attack.malicious:
        raise UserError(
            f"attack.kind = {config.attack.kind} makes its updates of what all attackers hold together, and nodes do not share "
            "that; use attack.kind=data-poisoning, or `undertow run`"
        )
    synthetic = config.synthetic
    if synthetic is not None and synthetic.generator is not None:
        raise UserError(
            f"synthetic.generator = {synthetic.generator}: every node would have the generator write the server's data again; "
            "use `undertow run`"
        )
    if config.federation.secure_aggregation:
        raise UserError(
            "federation.secure_aggregation = true: over the network the server receives every client's update; leave it out, or "
            "use `undertow run`"
        )
    if config.federate.private:
        _check_private(config, methods.defenses)
    for name, defense in methods.defenses:
        if isinstance(defense, LossDefense) and defense.selects and isinstance(defense, Stateful):
            raise UserError(
                f"defense {name} remembers on the clients what a resumed run needs, and the server's checkpoint has not; leave "
                "it out, or use `undertow run`"
            )


def _check_private(config: Config, defenses: Sequence[tuple[str, Defense]]) -> None:
    if not isinstance(config.task, InstructionTask):
        raise UserError(f"federate.private = true reads files of instructions, and task={config.task.kind}; leave it out")
    if config.task.data.partition.kind != "files":
        raise UserError(
            f"federate.private = true with data.partition.kind = {config.task.data.partition.kind}: the clients' data are in "
            "files of their own; set data.partition.kind=files and data.partition.files, a path a client as its node finds it"
        )
    if config.attack.kind != "none":
        raise UserError(
            f"federate.private = true with attack.kind = {config.attack.kind}: nothing is planted in data that nodes hold; set "
            "attack.kind=none (ASR and FTR are measured all the same, with attack.trigger and attack.target)"
        )
    for name, defense in defenses:
        if isinstance(defense, DataDefense) and defense.shares and not isinstance(defense, Sanitization):
            raise UserError(f"defense {name} shares more than counts of the clients' data; leave it out, or federate.private=true")
