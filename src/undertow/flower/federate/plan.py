"""Which node holds which clients, and which experiments cannot run over a network."""

from __future__ import annotations

import hashlib
import json

from undertow.attacks.contract import make_attack
from undertow.config import Config
from undertow.defenses.contract import make_defenses, overrides
from undertow.errors import UserError
from undertow.layout import Layout


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
    attack = make_attack(config.attack)
    if attack is not None and attack.malicious:
        raise UserError(
            f"attack.kind = {config.attack.kind} makes its updates of what all attackers hold together, and nodes do not share that; "
            "use attack.kind=data-poisoning, or `undertow run`"
        )
    if config.synthetic.generator is not None:
        raise UserError(
            f"synthetic.generator = {config.synthetic.generator}: every node would have the generator write the server's data again; use `undertow run`"
        )
    if config.federation.secure_aggregation:
        raise UserError(
            "federation.secure_aggregation = true: over the network the server receives every client's update; leave it out, or use `undertow run`"
        )
    for name, defense in make_defenses(config.defenses):
        if overrides(defense, "select") and overrides(defense, "state"):
            raise UserError(
                f"defense {name} remembers on the clients what a resumed run needs, and the server's checkpoint has not; leave it out, or use `undertow run`"
            )
