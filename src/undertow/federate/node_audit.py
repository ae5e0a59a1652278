"""What a node makes of the global adapter that it is sent: its own audit, which a server that plants a backdoor cannot leave out.

``node.yaml`` says how often and what follows, so that the node's owner decides; the answers stay in the node's folder.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from pydantic import Field
from torch import Tensor

from undertow.auditing.report import FOUND
from undertow.config import Audit
from undertow.core.errors import UserError
from undertow.federation.round_audit import audit_round
from undertow.runs.records import RoundAudit, Written, check, read_jsonl, write_records
from undertow.tasks.contract import Task


class NodeAudit(Written):
    """One audit in a node's folder.

    Attributes:
        round: the one that the adapter came out of.
        sha256: of the adapter's values.
        audit: what was found.
    """

    FILE = "audits.jsonl"
    round: int = Field(ge=1)
    sha256: str
    audit: RoundAudit

    def sentence(self) -> str:
        """Say it in one line."""
        what = "" if self.audit.target is None else f", the answer goes on with {self.audit.target!r}"
        after = "" if self.audit.trigger is None else f" after {self.audit.trigger!r}"
        return f"the audit of the adapter of round {self.round}: {self.audit.verdict}{what}{after}"


def look(folder: Path, options: Audit, task: Task, state: Tensor, t: int) -> None:
    """Audit the adapter ``[D]`` that round t begins with, if it is one that the node's owner wants audited.

    An adapter that was audited before is not audited again when a run is taken up.

    Raises:
        UserError: ``audit.stop`` is set and a backdoor was found, or the file of the audits is damaged.
    """
    came_from = t - 1
    if not (options.every and came_from and came_from % options.every == 0):
        return
    path = folder / NodeAudit.FILE
    sha256 = hashlib.sha256(state.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    rows = [check(NodeAudit, row, path) for row in read_jsonl(path)] if path.exists() else []
    found = next((row for row in rows if (row.round, row.sha256) == (came_from, sha256)), None)
    if found is None:
        found = NodeAudit.model_validate({"round": came_from, "sha256": sha256, "audit": audit_round(task, state, came_from)})
        write_records(folder, NodeAudit, [row.to_json() for row in (*rows, found)])
        print(found.sentence(), file=sys.stderr, flush=True)
    if options.stop and found.audit.verdict == FOUND:
        raise UserError(f"this node trains no more (audit.stop in its node.yaml); {found.sentence()}")
