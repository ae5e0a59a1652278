"""What ``undertow reproduce`` can be told to do: the studies of a paper, or of this library's own, and the words around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from undertow_reproductions.lab import FitLab
from undertow_reproductions.profiles import Profile
from undertow_reproductions.study import Study


@dataclass(frozen=True)
class Collection:
    """Studies that share a document.

    Attributes:
        id: what the command takes.
        title: heading of the document.
        document: its Markdown file, beside ``index.html``.
        introduction, reading: sentences in Markdown (emphasis, code, links), as lines: what this is, and how to read a number.
        notes: what holds for all items, under ``heading``; None for the deviations of the profile.
        heading: of the notes.
        columns: of the statements: what is stated, by whom, and what was found; the verdict comes before the last.
        studies: by id, in the order of the document.
        rules: the defenses that it runs, on the main setting alone, unless ``--rules`` names others; empty for a paper's items.
        guards: these act on samples, losses or answers: they get a file of trusted samples, rho of its own in the profile, and
            ``--data`` holds the corpora on which filters are measured.
        profiles: its own, by name; empty for those of the FIT paper.
        refused: profiles that others have and this one does not: what to do in their place.
    """

    id: str
    title: str
    document: str
    introduction: tuple[str, ...]
    reading: tuple[str, ...]
    notes: tuple[str, ...] | None
    heading: str
    columns: tuple[str, str, str]
    studies: Callable[[FitLab], Mapping[str, Study]]
    rules: tuple[str, ...] = ()
    guards: bool = False
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
