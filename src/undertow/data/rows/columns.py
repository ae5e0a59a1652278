"""What a user says of columns: ``prompt=text,answer=reply``."""

from __future__ import annotations

from undertow.core.errors import UserError
from undertow.data.rows.plan import MAPPED


def mapping(text: str) -> dict[str, str]:
    """Return {meaning: column} of ``prompt=COLUMN,answer=COLUMN``, with ``context``, ``system`` and ``history`` where wanted.

    Raises:
        UserError: not of that form, a meaning that there is not, or one without prompt or answer.
    """
    usual = f"write prompt=COLUMN,answer=COLUMN (and {', '.join(f'{name}=COLUMN' for name in MAPPED[2:])})"
    found: dict[str, str] = {}
    for part in text.split(","):
        meaning, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column or meaning not in MAPPED:
            raise UserError(f"columns={text}: '{part.strip()}' names no column; {usual}")
        if meaning in found or column in found.values():
            raise UserError(f"columns={text}: '{part.strip()}' is named already; give each meaning one column of its own")
        found[meaning] = column
    if not {"prompt", "answer"} <= found.keys():
        raise UserError(f"columns={text}: prompt and answer must both be named; {usual}")
    return found
