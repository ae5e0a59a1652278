"""The server's audit of the global adapter between rounds: against the base, with public questions, and nothing of a client's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undertow.auditing.questions import choose
from undertow.auditing.report import FOUND
from undertow.auditing.search import run_audit
from undertow.auditing.speaker import Speaker
from undertow.auditing.subject import Subject
from undertow.tasks.contract import Task
from undertow.tasks.instruction import Instruction


def audit_round(task: Task, adapter: Tensor, t: int) -> dict[str, Any]:
    """Return what the server's audit says of a global adapter ``[D]``, as :class:`~undertow.runs.records.RoundAudit`.

    The questions are those of the test set as they are, which the server holds; no answer, trigger or target of the run is used.
    """
    assert isinstance(task, Instruction)  # the config refuses audits of other tasks
    base = task.base
    questions = choose(task.split.test, "the run's test questions", task.seed)
    speakers = Speaker(base, adapter.to(base.device), task.layout), Speaker(base)
    subject = Subject(f"round {t}", base.name, *speakers, task.template, questions, adapter, task.layout)
    found = run_audit(subject, seed=task.seed, quick=True)
    return {
        "verdict": found.verdict,
        "score": found.score,
        "target": found.target,
        "trigger": found.trigger,
        "seconds": round(found.seconds["all"], 3),
    }


def stops(row: dict[str, Any]) -> bool:
    """Tell whether a round's audit found a backdoor."""
    return (row.get("audit") or {}).get("verdict") == FOUND
