"""A node whose clients' data are on this machine alone: it reads their files, and takes part in the pooled sanitization.

The build of the task (:func:`undertow.tasks.instruction.building`) stops wherever the clients' counts are to be added up. This node
masks its counts, so that only the sum over all nodes shows them (:mod:`undertow.flower.secure_sum`), and goes on with what comes
back.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undertow.config import Model
from undertow.core.errors import UserError
from undertow.defenses.data.exchange import Counts, Pooling
from undertow.federate.folder import NodeFolder
from undertow.federate.sums import SUMS, ordered, read_sums, save_sums
from undertow.federation.resolve import Federation, resolving
from undertow.flower import secure_sum
from undertow.models.causal_lm import CausalLM, load_base
from undertow.runs.display import Plain
from undertow.tasks.instruction import Held, Instruction


class OwnData:
    """The clients' files of one node, until they are ready to be trained on.

    Args:
        node: its folder.

    Attributes:
        federation: once every client's samples are sanitized; None before.

    Raises:
        UserError: a file or the base cannot be read.
    """

    def __init__(self, node: NodeFolder) -> None:
        self.node = node
        self.federation: Federation | None = None
        self._base: CausalLM | None = None
        self._sizes: list[int] = []
        self._counts: Counts | None = None
        self._session = secure_sum.Session("", b"", b"")  # no order is of it
        known = read_sums(node.path / SUMS, node.digest) or []
        self._restart()
        if known:
            self._replay(known)

    @property
    def sizes(self) -> list[int]:
        """Samples of each of the node's clients, before sanitization."""
        return self._sizes

    def answer(
        self, order: dict[str, Any], arrays: dict[str, NDArray[np.uint32]]
    ) -> tuple[dict[str, Any], NDArray[np.uint32] | None]:
        """Return the answer to one of the server's questions, and the masked counts if it asks for them.

        Args:
            order: ``step`` is ``key`` (a public key for a new session), ``sum`` (the counts of ``exchange``, after the sum of the
                one before) or ``stored`` (all sums of an earlier session).
            arrays: sums.

        Raises:
            UserError: a question out of turn, too few nodes, or a key that none of the nodes made.
        """
        if order["settings"] != self._settings(order["settings"].get("defense")):
            raise UserError("the server pools counts for another config; copy this node's folder anew")
        if order["step"] == "stored":
            sums = ordered(arrays)
            if not sums:
                raise UserError("the server's stored sums cannot be read; delete its folder's sums.safetensors and its run")
            self._restart()
            self._replay(sums)
            return {"finished": True}, None
        if order["step"] == "key":
            return self._key(order["session"], order["settings"]["defense"]), None
        return self._sum(order, arrays)

    def _settings(self, name: Any) -> dict[str, Any]:
        return {"defense": name, "config": self.node.digest}

    def _restart(self) -> None:
        """Read the files and go on to the first exchange."""
        self.federation, self._counts, self._done = None, None, list[tuple[str, list[NDArray[np.uint32]]]]()
        held = Held(self.node.files, self.node.secret, noise=os.urandom(16))
        self._steps: Pooling[Federation] = resolving(self.node.config, Plain(), self._load, held)
        self._advance(None)

    def _load(self, model: Model) -> CausalLM:
        self._base = self._base or load_base(model)
        return self._base

    def _advance(self, pooled: NDArray[np.uint32] | None) -> None:
        """Go on to the next exchange, or to the end."""
        try:
            self._counts = next(self._steps) if pooled is None else self._steps.send(pooled)
            self._sizes = self._sizes or [count for _, count in sorted(self._counts.samples.items())]
        except StopIteration as done:
            self.federation = done.value
            task = done.value.task
            assert isinstance(task, Instruction)
            self._counts = None
            self._sizes = self._sizes or [len(task.poisoning.clients[k]) for k in sorted(self.node.files)]
            for report in task.sanitized:
                print(
                    f"client {report['client']}: {report['kept']} of {report['samples']} samples kept by {report['name']}",
                    file=sys.stderr,
                )
            if self._done:
                save_sums(self.node.path / SUMS, self._done, self.node.digest)

    def _replay(self, sums: list[tuple[str, list[NDArray[np.uint32]]]]) -> None:
        for name, own in sums:
            for number, pooled in enumerate(own, 1):
                self._take(name, number, pooled)
        if self.federation is None:
            raise UserError("the server's stored sums are of other defenses; delete its folder's sums.safetensors and its run")

    def _take(self, name: str, number: int, pooled: NDArray[np.uint32]) -> None:
        counts = self._counts
        if counts is None or (counts.name, counts.number) != (name, number):
            raise UserError(f"the sum of exchange {number} of {name} came out of turn; the server must begin anew")
        secure_sum.check_sum(pooled)
        if number == 1:
            self._done.append((name, []))
        self._done[-1][1].append(pooled)
        self._advance(pooled)

    def _key(self, session: str, name: str) -> dict[str, Any]:
        if self._counts is None or self._counts.name != name or self._counts.number != 1:
            before = [(done, own) for done, own in self._done if done != name]
            self._restart()
            for done, own in before:
                for number, pooled in enumerate(own, 1):
                    self._take(done, number, pooled)
        self._session = secure_sum.Session.begin(session)
        return self._session.offer(self._secret)

    def _sum(
        self, order: dict[str, Any], arrays: dict[str, NDArray[np.uint32]]
    ) -> tuple[dict[str, Any], NDArray[np.uint32] | None]:
        turn, name = self._session.enter(order, self._secret), order["settings"]["defense"]
        if turn.number > 1:
            self._take(name, turn.number - 1, arrays["sum"])
        counts = self._counts
        if counts is None or counts.name != name:
            return {"finished": True}, None
        return {}, turn.masked(counts.total)

    @property
    def _secret(self) -> bytes:
        if self.node.secret is None:
            raise UserError(
                f"{self.node.path} has no file secret; give all nodes the same 32 bytes, which the server does not know"
            )
        return self.node.secret
