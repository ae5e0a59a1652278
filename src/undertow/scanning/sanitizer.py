"""The scan as a filter of rows in memory, such as those of a data set of Hugging Face."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from undertow.core.errors import UserError
from undertow.scanning.scan import Scan, scan


class Sanitizer:
    """Tells of each row whether it stays: ``dataset.filter(sanitizer)``.

    A filter sees one row at a time and a planted pair shows in many, so all rows are scanned when it is made. Rows to drop or to
    repair go, those for a person to review stay unless ``drop_review``. A row that was not scanned stays too.

    Attributes:
        scan: findings and verdicts; ``to_json()`` gives what ``undertow scan --json`` prints.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | None = None, drop_review: bool = False
    ) -> None:
        """Scan rows.

        Args:
            rows: all of them, as mappings.
            columns: {``prompt``, ``answer``, ``context``, ``system`` or ``history``: the column that holds it}.
            drop_review: whether rows for review go too.

        Raises:
            UserError: no rows, or none that holds a prompt and an answer.
        """
        if isinstance(rows, str | Path | Mapping) or hasattr(rows, "columns") or not isinstance(rows, Iterable):
            raise UserError(
                f"rows is a {type(rows).__name__}; give an iterable of rows as mappings, such as "
                "[{'prompt': ..., 'answer': ...}] or pandas' frame.to_dict('records'); undertow.scan reads files"
            )
        lines = [_text(row) for row in rows]
        if not lines:
            raise UserError("there is no row to scan; give a data set with rows")
        self.scan: Scan = scan(["-"], stdin=io.BytesIO("\n".join(lines).encode("utf-8", "surrogatepass")), columns=columns)
        verdicts = (verdict for verdict in self.scan.found.verdicts if drop_review or verdict.act != "review")
        self._bad = frozenset(_hash(lines[self.scan.row_of[verdict.sample]]) for verdict in verdicts)

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Whether a row stays."""
        return _hash(_text(row)) not in self._bad


def _text(row: Mapping[str, Any]) -> str:
    if not isinstance(row, Mapping):
        raise UserError(f"a row is a {type(row).__name__}; give rows as mappings, such as {{'prompt': ..., 'answer': ...}}")
    return json.dumps(dict(row), ensure_ascii=False, sort_keys=True, default=str)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
