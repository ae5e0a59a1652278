"""The whole of ``undertow reproduce``: predict, run, judge, write; and what is told on the way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from undertow.core.files import check_folder
from undertow.core.threads import cores
from undertow.runs.display import Plain, duration
from undertow.sweeps.display import sweep_display
from undertow.sweeps.sweep import default_jobs
from undertow_reproductions.document import make_section, write_document
from undertow_reproductions.given import refuse_ignored
from undertow_reproductions.lab import FitLab
from undertow_reproductions.reproduce import (
    Options,
    Plan,
    choose,
    complete,
    get_collection,
    items_of,
    make_plan,
    open_lab,
    results_of,
    run_studies,
    wishes_of,
)
from undertow_reproductions.study import Study


class Told(Plain):
    """Plain lines on stderr."""

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)


def reproduce(paper: str, options: Options) -> dict[str, Any]:
    """Run the studies of a collection, or what is left of them, and write the document.

    The document holds the items asked for, and those whose runs are all there from before.

    Args:
        paper: the collection: ``fit``, ``defenses``, ``sanitization``, ``htb`` or ``fmfl``.
        options: which part of it, how fine, and where.

    Returns:
        The plan alone, or with the verdicts by item (where an item's statements are apart, how many hold), the document and the
        failed runs.

    Raises:
        UserError: a wrong value, or too little data; nothing has run then.
    """
    told = Told()
    collection = get_collection(paper)
    if not options.plan:
        check_folder("--out", options.folder)
    lab = open_lab(collection, options)
    every = collection.studies(lab)
    studies = choose(every, items_of(lab, options.only))
    refuse_ignored(lab, studies)
    at_once = options.jobs or _at_once(lab, studies)
    plan = make_plan(lab, studies, at_once)
    forecast = _forecast(plan, at_once)
    summary = {"paper": paper, "profile": options.profile, "plan": plan.as_dict()}
    if options.plan:
        return {**summary, "forecast": forecast}
    told.say(forecast)
    with sweep_display() as observer:
        failed = run_studies(lab, studies, at_once, told, observer)
    shown = [study for study in every.values() if study in studies or complete(lab, study)]
    sections = [make_section(lab, study, results_of(lab, study, failed)) for study in shown]
    document = write_document(lab, collection, sections)
    verdicts = {section.study.id: section.told for section in sections}
    return {
        **summary,
        "verdicts": verdicts,
        "document": str(document),
        "page": str(options.folder / "index.html"),
        "failed": failed,
    }


def _at_once(lab: FitLab, studies: Sequence[Study]) -> int:
    """Return how many runs, or other pieces of work, the machine has room for."""
    for study in studies:
        cells = [lab.cell(wish) for wish in wishes_of(lab, study, results_of(lab, study, {}))]
        if cells:
            return default_jobs(cells)
    return cores()


def _forecast(plan: Plan, jobs: int) -> str:
    parts = [f"{plan.cells} runs, {plan.left} of them left" + (f", about {plan.more} more in searches" if plan.more else "")]
    if plan.builds:
        parts.append(f"bases to build: {', '.join(name for name, _ in plan.builds)}")
    if plan.seconds:
        at_once = "one after the other" if plan.memory is not None else f"{jobs} at a time"
        parts.append(f"predicted time {duration(plan.seconds)}, {at_once}")
    if plan.others:
        parts.append(f"{plan.others} filter cells left, most of them about a second of CPU, not in that time")
    if plan.memory is not None:
        parts.append(f"at least {plan.memory / 2**30:.0f} GiB of GPU memory for weights and adapters, activations not counted")
    return f"{'; '.join(parts)} ({plan.basis})"
