"""The rows that are left of scanned files, written, and scanned again before the files get their names."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undertow.core.errors import UserError
from undertow.core.files import fresh, temporary
from undertow.data.rows.files import Rows, Source, file_source
from undertow.data.rows.record import Record
from undertow.sanitization.rules import Rules
from undertow.scanning.reading import Files, Judged
from undertow.scanning.repairs import mended
from undertow.scanning.writing import write_rows

#: How often what is left is cleaned anew: a planted pair can hide another until it is gone.
_TIMES = 3


class Cleaning:
    """Files without what was found in them.

    Args:
        files, sources: what was scanned.
        judged: what was found.
        drop_review: leave out the rows for review too.
        rules: thresholds, as of the scan.
    """

    def __init__(self, files: Files, sources: Sequence[Source], judged: Judged, drop_review: bool, rules: Rules | None) -> None:
        self._files, self._sources, self._judged = files, sources, judged
        self._drop_review, self._rules = drop_review, rules
        self._flagged = [judged.of_rows(k) for k in range(len(sources))]
        self._more: list[set[int]] = [set() for _ in sources]
        self._kept = [array("q") for _ in sources]
        certain = {finding.target_words for finding in judged.found.findings if finding.certain or drop_review}
        self._targets = certain

    def write(self, outputs: Sequence[Path]) -> list[int]:
        """Write the files, each under its name only when nothing is found in any of them any more.

        Returns:
            the rows of each.

        Raises:
            UserError: what was found is still there.
        """
        news = [temporary(output) for output in outputs]
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
        try:
            for _ in range(_TIMES):
                counts = [self._write(k, output, into) for k, (output, into) in enumerate(zip(outputs, news, strict=True))]
                left = self._left(news, counts)
                if not left:
                    break
            else:
                raise UserError(
                    f"--write: {left} is still found in what would be written; nothing was written; drop its rows by hand"
                )
            for output, into in zip(outputs, news, strict=True):
                with fresh(output):
                    into.replace(output)
        finally:
            for into in news:
                into.unlink(missing_ok=True)
        return counts

    def _write(self, k: int, output: Path, into: Path) -> int:
        columns = self._files.columns or {}
        asked = [column for meaning, column in columns.items() if meaning != "answer"]
        rows = Rows(self._sources[k], tuple(columns.values()))
        reader = self._files.reader()
        kept = self._kept[k] = array("q")

        def change(index: int, record: Record) -> Any:
            row = record.row
            verdicts = [v for v in self._flagged[k].get(index, ()) if v.act != "review" or self._drop_review]
            if index in self._more[k]:
                return None
            if verdicts and record.broken is not None:
                return None
            if verdicts:
                parts = reader.parts(row, record.place)
                wanted = [(self._judged.part(verdict, parts), verdict) for verdict in verdicts]
                row = mended(row, wanted, self._judged.found, asked)
            if row is not None:
                kept.append(index)
            return row

        return write_rows(rows, change, output, into)

    def _left(self, paths: Sequence[Path], counts: Sequence[int]) -> str:
        """What is still found in the written files; its rows are to go next time."""
        filled = [k for k, count in enumerate(counts) if count]
        if not filled or not self._judged.found.verdicts:
            return ""
        sources = {k: file_source(paths[k]) for k in filled}
        columns = self._files.columns or {}
        again = Files(
            [self._files.names[k] for k in filled],
            lambda i: Rows(sources[filled[i]], tuple(columns.values())),
            self._files.columns,
            max_bad=1.0,
        )
        judged = again.judged(self._rules, needs_samples=False)
        told = ""
        for verdict in judged.found.verdicts:
            findings = [judged.found.findings[i] for i in verdict.findings]
            if verdict.act == "review" and not any(finding.target_words in self._targets for finding in findings):
                continue
            k = filled[judged.file_of[verdict.sample]]
            self._more[k].add(self._kept[k][judged.row_of[verdict.sample]])
            told = told or f'"{findings[0].target}"'
        return told
