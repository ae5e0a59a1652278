"""The audit of an adapter that is there, as ``undertow audit`` and ``undertow.audit`` do it."""

from __future__ import annotations

from pathlib import Path

from undertow.auditing.report import AuditReport
from undertow.auditing.search import run_audit
from undertow.auditing.subject import load_references, load_subject
from undertow.core.files import check_folder
from undertow.core.observer import Observer
from undertow.runs.display import watching
from undertow.runs.run import Run


def audit(
    adapter: str | Path | Run,
    *,
    base: str | None = None,
    questions: str | Path | None = None,
    template: str | None = None,
    references: str | Path | None = None,
    budget: float | None = None,
    seed: int = 0,
    keep: str | Path | None = None,
    observer: Observer | bool | None = None,
) -> AuditReport:
    """Ask an adapter whether it is backdoored, without its data, its trigger or its target.

    Args:
        adapter: folder of a PEFT adapter, or of a run; or a run.
        base: a causal language model, as in ``model.name``; None: the run's.
        questions: an instruction file, with or without answers, or one question a line; None: the run's test questions, or
            shipped ones.
        template: by which questions become prompts; None: the run's, or ``lab-qa``.
        references: a folder of adapters of the same base, beside which the weights' figures are shown.
        budget: seconds after which no further step begins; None: as long as it needs.
        seed: of every random choice.
        keep: a folder for finished steps; the same audit goes on from them.
        observer: as in :func:`undertow.run`.

    Returns:
        verdict, findings and what each step says; ``write_page()`` writes it as a page.

    Raises:
        UserError: adapter, base, questions or template cannot be used, or ``keep`` cannot be written.
    """
    kept = Path(keep) if keep else None
    place = adapter.folder if isinstance(adapter, Run) else Path(adapter)
    check_folder("--keep", kept)
    with watching(observer) as looking:
        looking.phase(f"loading {place}")
        subject = load_subject(place, base, Path(questions) if questions else None, template, seed)
        others = load_references(subject, Path(references)) if references else []
        return run_audit(subject, seed=seed, budget=budget, references=others, keep=kept, tell=looking.phase)
