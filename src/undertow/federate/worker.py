"""A node's resident worker: it loads base and data once and trains the node's clients whenever the ClientApp asks.

Run as ``python -m undertow.federate.worker FOLDER DESCRIPTOR``, the number of an inherited socket that listens: a ClientApp that
comes while the base loads waits. It ends when its standard input is closed, so that it cannot outlive the process that started it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.threads import cores, set_threads
from undertow.core.version import __version__
from undertow.federate import wire
from undertow.federate.folder import NodeFolder
from undertow.federate.node_audit import look
from undertow.federate.own_data import OwnData
from undertow.federate.plan import check_config, fingerprint
from undertow.federation.loop import train
from undertow.federation.resolve import Federation, resolve
from undertow.runs.display import Plain


class Worker:
    """What a node answers with.

    Args:
        node: its folder.
        source: the federation built from the node's config, or the clients' own files.
    """

    def __init__(self, node: NodeFolder, source: Federation | OwnData) -> None:
        self.node = node
        self.own = source if isinstance(source, OwnData) else None
        self._federation = source if isinstance(source, Federation) else None

    @property
    def federation(self) -> Federation:
        """What the clients train with.

        Raises:
            UserError: the clients' data are not sanitized yet.
        """
        found = self._federation if self.own is None else self.own.federation
        if found is None:
            raise UserError(
                "its clients' data are not sanitized: it took no part when the nodes pooled their counts; start the run anew"
            )
        return found

    def answer(self, header: dict[str, Any], arrays: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        """Return the answer to one message: who this node is, or what its clients trained.

        Raises:
            UserError: an order for clients of other nodes, or a state that does not fit the model.
        """
        if header["kind"] == "query":
            return {
                "name": self.node.path.name,
                "clients": self.node.options.clients,
                "digest": self.node.digest,
                "version": __version__,
                "samples": None if self.own is None else self.own.sizes,
            }, []
        if header["kind"] == "pool":
            return self._pool(header, arrays)
        began = time.monotonic()
        order = header["order"]
        asked = [int(k) for k in order["clients"]]
        if odd := [k for k in asked if k not in self.node.options.clients]:
            raise UserError(f"this node holds no client {odd[0]}; its node.yaml lists those it has")
        layout = self.federation.task.layout
        if order["layout"] != fingerprint(layout):
            raise UserError("the server's model is not this node's: other names or shapes; give both the same base and config")
        state = unpacked(layout, arrays)
        look(self.node.path, self.node.options.audit, self.federation.task, state, int(order["round"]))
        sent = train(self.federation, state, asked, {int(k) for k in order["acting"]}, int(order["round"]))
        told = {
            "clients": [
                {"client": k, "count": count, "loss": loss if np.isfinite(loss) else None}
                for k, count, loss in zip(sent.clients, sent.counts, sent.losses, strict=True)
            ],
            "reports": sent.reports,
            "seconds": time.monotonic() - began,
        }
        return told, [packed(row.detach().cpu().numpy()) for row in sent.updates]

    def _pool(self, header: dict[str, Any], arrays: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        if self.own is None:
            raise UserError("federate.private is not set in this node's config; copy its folder anew")
        try:
            sums = {name: np.load(BytesIO(data), allow_pickle=False) for name, data in zip(header["names"], arrays, strict=True)}
            told, counts = self.own.answer(header["order"], sums)
        except UserError:
            raise
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"the server's question cannot be read ({error}); give both the same version of Undertow") from error
        return told, [] if counts is None else [packed(counts)]


def packed(value: NDArray[Any]) -> bytes:
    """Return an array in numpy's file format."""
    stream = BytesIO()
    np.save(stream, value, allow_pickle=False)
    return stream.getvalue()


def unpacked(layout: Layout, arrays: list[bytes]) -> Tensor:
    """Return the state ``[D]``.

    Raises:
        UserError: it is none of this layout.
    """
    try:
        (data,) = arrays
        state = torch.from_numpy(np.load(BytesIO(data), allow_pickle=False))
    except (ValueError, TypeError) as error:
        raise UserError(f"the state cannot be read ({error}); give server and nodes the same version of Undertow") from error
    if state.shape != (layout.size,) or not torch.isfinite(state).all():
        raise UserError(f"the state has shape {list(state.shape)}, this model needs [{layout.size}] finite values")
    return state


def serve(worker: Worker, listener: socket.socket) -> None:
    """Answer one message after another; an error is the answer to the message that caused it."""
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                header, arrays = wire.receive(connection)
                try:
                    answer, sent = worker.answer(header, arrays)
                except Exception as error:  # whatever training raises, the server is to hear of it and the worker to live on
                    told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                    print(f"could not answer: {told}", file=sys.stderr, flush=True)
                    answer, sent = {"error": " ".join(told.split())}, []
                wire.send(connection, answer, sent)
            except (ConnectionError, BrokenPipeError):
                continue  # the ClientApp was killed; the next one asks again


def main() -> None:
    """Load, then answer until standard input closes."""
    folder, descriptor = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        node = NodeFolder.read(Path(folder))
        config = node.config
        check_config(config)
        set_threads(config.training.threads or int(os.environ.get("OMP_NUM_THREADS", cores())))
        source = OwnData(node) if config.federate.private else resolve(config, Plain())
        print(f"ready: clients {', '.join(map(str, node.options.clients))}", file=sys.stderr, flush=True)
        serve(Worker(node, source), socket.socket(fileno=int(descriptor)))
    except UserError as error:
        sys.exit(f"error: {error}")


def _end_with_parent() -> None:
    # The buffered reader holds a lock that an exiting interpreter would wait for, a read of the descriptor holds none.
    while os.read(0, 1 << 16):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
