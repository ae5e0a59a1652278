"""What a run tells, across processes: the ServerApp writes lines of JSON, the command line shows them as if they were its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from undertow.core.observer import Observer


class Telling:
    """An observer that writes to a file what it is told, and passes it on.

    Args:
        path: lines are added to it.
        other: is told too.
    """

    def __init__(self, path: Path, other: Observer) -> None:
        self.path = path
        self.other = other

    def phase(self, text: str) -> None:
        """Something long begins."""
        self._write({"event": "phase", "text": text})
        self.other.phase(text)

    def warn(self, text: str) -> None:
        """Something the user should know, in one line."""
        self._write({"event": "warn", "text": text})
        self.other.warn(text)

    def round(self, row: dict[str, Any], of: int) -> None:
        """A round is finished and saved."""
        self._write({"event": "round", "row": row, "of": of})
        self.other.round(row, of)

    def done(self) -> None:
        """The run and its report are finished."""
        self._write({"event": "done"})

    def failed(self, text: str) -> None:
        """The run ended early, for this reason."""
        self._write({"event": "error", "text": text})

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


class Replay:
    """Reads what :class:`Telling` writes while it is written.

    Attributes:
        ended: whether the run told that it is over.
        error: why it ended early; None if it did not.
        met: whether the nodes that are to take part have been found.
    """

    def __init__(self, path: Path, observer: Observer) -> None:
        self.path = path
        self.observer = observer
        self.ended = False
        self.error: str | None = None
        self.met = False
        self._place = 0

    def catch_up(self) -> None:
        """Show the whole lines that were added since the last call."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._place)
            added = file.read()
        whole = added.rfind(b"\n") + 1
        self._place += whole
        for line in added[:whole].splitlines():
            self._show(json.loads(line))

    def _show(self, line: dict[str, Any]) -> None:
        kind = line["event"]
        if kind == "round":
            self.observer.round(line["row"], line["of"])
        elif kind == "phase":
            self.met = self.met or line["text"].startswith("round ")
            self.observer.phase(line["text"])
        elif kind == "warn":
            self.observer.warn(line["text"])
        else:
            self.ended = True
            self.error = line.get("text")
