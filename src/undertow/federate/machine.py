"""What may differ between the machines of a federation: what ``overrides`` in ``node.yaml`` may name."""

from __future__ import annotations

from pathlib import Path

from undertow.config import Config, by_short_names, load
from undertow.config.names import leaves
from undertow.core.errors import UserError

#: Where things are, and what a machine computes with. Every other field is the experiment's, which the server decides, but for
#: those that are no part of its identity.
OF_A_MACHINE = frozenset(
    {
        "model.device",
        "model.dtype",
        "model.quantize",
        "model.name",
        "model.start",
        "data.path",
        "data.test_path",
        "data.names",
        "data.partition.files",
        "training.threads",
        "training.client_chunk",
        "training.recompute",
        "measure.batch_size",
    }
)


def overridden(path: Path, plain: Config, overrides: list[str], node_yaml: Path) -> Config:
    """Return the config of a node's folder with what is different on its machine.

    Args:
        path: of ``config.yaml``.
        plain: what it holds.
        overrides: ``key=value`` words.
        node_yaml: names their place in errors.

    Raises:
        UserError: a word that cannot be read, or one that changes what belongs to the experiment.
    """
    if not overrides:
        return plain
    try:
        config = load(str(path), overrides)
    except UserError as error:
        raise UserError(f"{node_yaml}: overrides: {error}") from error
    before, after = (dict(leaves(by_short_names(one.identity()))) for one in (plain, config))
    odd = [key for key in {**before, **after} if before.get(key) != after.get(key) and key not in OF_A_MACHINE]
    if odd:
        raise UserError(
            f"{node_yaml}: overrides change {odd[0]}, which is the same on all machines; take it out, or set it on the server with "
            f"another --out (what may differ: {', '.join(sorted(OF_A_MACHINE))})"
        )
    return config
