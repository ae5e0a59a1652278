"""Who looks on while a run goes: the command line's display, or nobody."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """Is told what happens in a run."""

    def phase(self, text: str) -> None:
        """Something long begins."""

    def warn(self, text: str) -> None:
        """Something the user should know, in one line."""

    def round(self, row: dict[str, Any], of: int) -> None:
        """A round is finished and saved."""
