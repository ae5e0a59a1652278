"""What a tracker is told of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Start:
    """Where a tracker begins or goes on.

    Attributes:
        folder: the run directory.
        name: of the run.
        config: effective values by dotted short names; lists as JSON text.
        run: the tracker's own name of the run that is gone on with; None for a new one.
        next: the first round that it will be told of.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    run: str | None
    next: int


class Tracker(ABC):
    """One run in a tracker. The library is imported when it is made.

    Attributes:
        run: the tracker's own name of the run, by which a resumed run goes on.
    """

    run: str

    @abstractmethod
    def log(self, round: int, figures: Mapping[str, float]) -> None:
        """Record the figures of one round, named as the columns of :mod:`undertow.runs.tables`."""

    @abstractmethod
    def end(self, result: Mapping[str, float], report: Path | None) -> None:
        """Record the final figures and the report page, if there is one, and end the run."""

    @abstractmethod
    def close(self) -> None:
        """Leave the run as it is; it goes on later."""
