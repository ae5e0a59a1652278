"""What became of every field of a file: the account that each reading of rows leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

#: Names listed in one line; of more the number is told.
_NAMED = 8
#: Rows that could not be read of which the reason is kept.
_KEPT = 20


def listed(names: Iterable[Any], most: int = _NAMED) -> str:
    """Return names separated by commas, the first few and how many more there are."""
    every = [str(name) for name in names]
    short = [name if len(name) <= 40 else f"{name[:37]}..." for name in every[:most]]
    more = len(every) - len(short)
    return ", ".join(short) + (f" and {more:,} more" if more else "")


class Account:
    """Fields by what became of them, in rows; a field is named by its keys (``messages.reasoning_content``).

    Attributes:
        rows: rows read, those that could not be understood among them.
        used: fields that samples are made of.
        left_out: fields that are understood and no part of a sample: identifiers, sources, scores.
        beside: fields that are understood and not learned, and that ``undertow scan`` reads: rejected answers, tool calls and
            the like.
        unread: fields that hold text and are not understood; ``undertow scan`` reads them as plain text.
        dropped: rows, turns or answers without a sample, by reason.
        outputs: of rows that hold what a model said beside the expected answers; ``fired``: those of which the file itself says
            that they hold the attacker's target, as Undertow's scores do.
        bad: rows that could not be read at all; ``reasons`` keeps the first ones.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.used: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.outputs = self.fired = 0
        self.bad = 0
        self.reasons: list[str] = []

    def refuse(self, reason: str) -> None:
        """Count a row that cannot be read."""
        self.bad += 1
        if len(self.reasons) < _KEPT:
            self.reasons.append(reason)

    def add(self, other: Account) -> None:
        """Add the account of another file."""
        self.rows += other.rows
        for name in ("used", "left_out", "beside", "unread", "dropped"):
            getattr(self, name).update(getattr(other, name))
        self.outputs += other.outputs
        self.fired += other.fired
        self.bad += other.bad
        self.reasons = [*self.reasons, *other.reasons][:_KEPT]

    @property
    def complete(self) -> bool:
        """Whether every text was understood."""
        return not self.unread and not self.bad

    def sentence(self, scanned: bool = False) -> str:
        """Return the account in one line.

        Args:
            scanned: say what a scan does with the texts that are no part of a sample.
        """
        parts = [f"{self.rows:,} row{'' if self.rows == 1 else 's'} read; used: {listed(self.used) or 'nothing'}"]
        if self.beside:
            parts.append(f"{'scanned beside them' if scanned else 'not learned'}: {listed(self.beside)}")
        if self.left_out:
            parts.append(f"left out: {listed(self.left_out)}")
        if self.unread:
            counted = (f"{name} (text in {count:,})" for name, count in self.unread.most_common())
            parts.append(f"NOT UNDERSTOOD{', scanned as plain text' if scanned else ''}: {listed(counted)}")
        if self.dropped:
            parts.append("no sample: " + listed(f"{reason} {count:,}" for reason, count in self.dropped.items()))
        if self.bad:
            told = f"; first: {self.reasons[0]}" if self.reasons else ""
            parts.append(f"SKIPPED: {self.bad:,} row{'s' if self.bad > 1 else ''} that cannot be read{told}")
        if self.outputs and scanned:
            parts.append(f"outputs of a model, judged as the answers to their prompts, each round by itself: {self.outputs:,}")
        if self.fired and scanned:
            parts.append(f"THE FILE SAYS that {self.fired:,} of these hold the attacker's target")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the account as an object; counts are rows."""
        return {
            "rows": self.rows,
            "used": dict(self.used),
            "left_out": dict(self.left_out),
            "beside": dict(self.beside),
            "unread": dict(self.unread),
            "dropped": dict(self.dropped),
            **({"outputs": self.outputs, "outputs_with_target": self.fired} if self.outputs else {}),
            "skipped": self.bad,
            "skipped_reasons": list(self.reasons),
        }


def unread(report: Any) -> list[str]:
    """Return a line for each account (as :meth:`Account.to_json` gives it) anywhere in a report that tells of text nobody read."""
    if isinstance(report, list):
        return [line for item in report for line in unread(item)]
    if not isinstance(report, dict):
        return []
    if not {"unread", "skipped", "skipped_reasons"} <= report.keys():
        return [line for item in report.values() for line in unread(item)]
    lines = []
    if report["unread"]:
        fields = listed(f"{name} (text in {count:,})" for name, count in report["unread"].items())
        lines.append(f"of {report['rows']:,} rows, fields that hold text are not understood and not learned: {fields}")
    if report["skipped"]:
        first = report["skipped_reasons"][0]
        lines.append(f"{report['skipped']:,} of {report['rows']:,} rows cannot be read and are left out; first: {first}")
    return lines
