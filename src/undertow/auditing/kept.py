"""Finished steps on disk, so that an audit that was killed goes on after them.

A step is a JSON file named by what it depends on: the adapter's and the base's weights, the prompts as the model reads them (with
the template, context, system text and earlier turns), the seed and the version. Anything else has another name, so a file is never
out of date, and deleting the folder costs time alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from undertow.auditing.edits import Edit, library
from undertow.auditing.subject import Subject
from undertow.auditing.target_first import Target
from undertow.auditing.trigger_first import Scored
from undertow.core.files import write_json
from undertow.core.version import __version__

_Found = TypeVar("_Found")


class Kept:
    """The steps of one audit; ``folder`` None keeps nothing."""

    def __init__(self, folder: Path | None, subject: Subject, seed: int) -> None:
        self._folder = folder
        self._key = "" if folder is None else _key(subject, seed)

    def step(self, name: str, write: Callable[[_Found], Any], read: Callable[[Any], _Found], do: Callable[[], _Found]) -> _Found:
        """Return what a step found: from its file, or by doing it.

        Args:
            name: of the step.
            write: makes JSON of it.
            read: makes it of JSON.
            do: the step.
        """
        if self._folder is None:
            return do()
        file = self._folder / f"{self._key}-{name}.json"
        try:
            return read(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            found = do()
            write_json(file, write(found))
            return found


def targets_out(found: Sequence[Target]) -> list[dict[str, Any]]:
    """Return targets as JSON."""
    return [{**vars(one), "ids": list(one.ids)} for one in found]


def targets_in(found: Any) -> list[Target]:
    """Return targets from JSON."""
    return [Target(**{**one, "ids": tuple(one["ids"])}) for one in found]


def scored_out(found: Sequence[Scored]) -> list[dict[str, Any]]:
    """Return scored edits as JSON."""
    return [
        {
            "edit": {"before": one.edit.before, "after": one.edit.after, "comma": one.edit.comma, "name": one.edit.name},
            "value": one.value,
            "target": None if one.target is None else targets_out([one.target])[0],
        }
        for one in found
    ]


def scored_in(found: Any) -> list[Scored]:
    """Return scored edits from JSON."""
    return [
        Scored(_edit(one["edit"]), one["value"], None if one["target"] is None else targets_in([one["target"]])[0]) for one in found
    ]


def swept_out(found: tuple[list[Scored], list[list[Scored]]]) -> dict[str, Any]:
    """Return the edits of all words, and those of each target, as JSON."""
    return {"free": scored_out(found[0]), "targets": [scored_out(one) for one in found[1]]}


def swept_in(found: Any) -> tuple[list[Scored], list[list[Scored]]]:
    """Return them from JSON."""
    return scored_in(found["free"]), [scored_in(one) for one in found["targets"]]


def _edit(told: dict[str, Any]) -> Edit:
    if told["name"]:
        return next(one for one in library() if one.name == told["name"])
    return Edit(tuple(told["before"]), tuple(told["after"]), told["comma"])


def _key(subject: Subject, seed: int) -> str:
    weights = b"" if subject.flat is None else subject.flat.float().contiguous().numpy().tobytes()
    asked = [*subject.questions.probes, *subject.questions.held_out]
    facts = {
        "adapter": hashlib.sha256(weights).hexdigest(),
        "base": subject.base.base.fingerprint,
        "adapted": subject.adapter.base.fingerprint if subject.flat is None else "",
        "scale": None if subject.layout is None else subject.layout.scale,
        # the samples too: edits are made in them, and a prompt that is cut does not show all of one
        "questions": [repr(one) for one in asked],
        "prompts": [subject.template.encode_prompts(asked, phase) for phase in ("train", "test")],
        "template": subject.template.name,
        "seed": seed,
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
