"""How long an audit may take, and how much of it is done."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from undertow.core.errors import UserError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float:
    """Return the seconds of ``90s``, ``10m``, ``1h`` or a plain number of seconds.

    Raises:
        UserError: it is none of these, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    value = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if value <= 0:
        raise UserError(f"--budget {text}: give a time above 0, such as 90s, 10m or 1h")
    return value


class Budget:
    """The clock of one audit.

    Args:
        seconds: how long it may take; None: as long as it needs.
        tell: told what begins, in words.
    """

    def __init__(self, seconds: float | None, tell: Callable[[str], None]) -> None:
        self.began, self.seconds, self._tell = time.monotonic(), seconds, tell

    @property
    def spent(self) -> float:
        """Seconds since the audit began."""
        return time.monotonic() - self.began

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return self.seconds is not None and self.spent >= self.seconds

    def begin(self, what: str) -> None:
        """Tell what begins, and how much time is left."""
        left = "" if self.seconds is None else f" ({max(0.0, self.seconds - self.spent):.0f} s of the budget left)"
        self._tell(f"{what}{left}")
