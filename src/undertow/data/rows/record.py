"""One row of a file with the text it stands in."""

from __future__ import annotations

from typing import Any, NamedTuple

from undertow.core.errors import UserError


class Record(NamedTuple):
    """A row.

    Attributes:
        place: file and line or row, for messages.
        row: what was parsed; whatever stands there if it is broken.
        raw: the text of the row as it stands in the file, with its line end where a line is a row.
        gap: the text between the row before and this one.
        broken: why it cannot be parsed; None if it can.
    """

    place: str
    row: Any
    raw: str = ""
    gap: str = ""
    broken: UserError | None = None

    def checked(self) -> Any:
        """Return the row.

        Raises:
            UserError: it cannot be parsed.
        """
        if self.broken is not None:
            raise self.broken
        return self.row
