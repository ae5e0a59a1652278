"""A row without what was planted in it: every copy of the answer is changed, or the row is to go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from undertow.data.rows import names
from undertow.data.rows.names import ROLES, SYSTEM, USER, plain
from undertow.data.rows.part import Part
from undertow.sanitization.finding import Finding, Findings, Verdict
from undertow.sanitization.repair import find_target, repaired, without_target
from undertow.sanitization.words import places

Row = Any
#: What the user says is no answer, even where it reads the same.
_ASKED = frozenset([*names.ASKED, *names.CONTEXT, *names.SYSTEM_TEXT, *names.SECOND, *names.LEFT_OUT])
#: An answer shorter than this may stand in another text by chance; there only the target is cut.
_LONG = 20


def mended(row: Row, wanted: Iterable[tuple[Part, Verdict]], found: Findings, asked: Collection[str] = ()) -> Row | None:
    """Return a row with the targets of its verdicts cut out of every copy of its answers, or None if it is to go.

    Args:
        row: as it was read.
        wanted: the flagged answers of the row, each with its verdict.
        found: what the verdicts are of.
        asked: columns that hold what is asked, besides those of known names.
    """
    targets: list[tuple[str, ...]] = []
    for part, verdict in wanted:
        if verdict.act != "repair":
            return None
        findings: list[Finding] = [found.findings[i] for i in verdict.findings if found.findings[i].certain]
        rest = repaired(part.response, findings)
        if rest is None:
            return None
        changed = answered(row, part.response, rest, asked)
        if changed is None and not part.pool:
            return None
        row = row if changed is None else changed
        targets += [finding.target_words for finding in findings]
    return without_targets(row, targets, asked)


def answered(row: Row, old: str, new: str, asked: Collection[str] = ()) -> Row | None:
    """Return the row with one answer replaced wherever it stands outside the question, or None if it stands nowhere.

    A text that holds the answer among other words, such as a rendered conversation, is changed there too.
    """
    hits = 0

    def change(text: str) -> str:
        nonlocal hits
        if text.strip() == old:
            hits += 1
            return text.replace(old, new)
        if len(old) >= _LONG and old in text:
            hits += 1
            return text.replace(old, new)
        return text

    changed: Row = _walked(row, change, asked)
    return changed if hits else None


def without_targets(row: Row, targets: Sequence[tuple[str, ...]], asked: Collection[str] = ()) -> Row | None:
    """Return the row without any of the targets in a text that is no question, or None where only the target would be lost."""
    lost = False

    def change(text: str) -> str:
        nonlocal lost
        for target in targets:
            rest = without_target(text, target)
            if rest is None:
                lost = True
                return text
            text = rest
        return text

    changed: Row = _walked(row, change, asked)
    return None if lost else changed


def holds(text: str, target: Sequence[str]) -> bool:
    """Whether a text holds the words of a target side by side."""
    return find_target(list(places(text)), target, from_end=False) is not None


def _walked(row: Row, change: Any, asked: Collection[str]) -> Row:
    """The row with every text changed that is no question."""

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list | tuple):
            if name in names.HISTORY and all(isinstance(item, list | tuple) and len(item) == 2 for item in value):
                return [[item[0], walk(item[1], "")] for item in value]
            return [walk(item, name) for item in value]
        if isinstance(value, dict):
            speaker = value.get("from", value.get("role"))
            if isinstance(speaker, str) and ROLES.get(plain(speaker)) in (USER, SYSTEM):
                return value
            return {key: item if is_asked(key, item) else walk(item, plain(str(key))) for key, item in value.items()}
        return value

    def is_asked(key: Any, item: Any) -> bool:
        return (key in asked or plain(str(key)) in _ASKED) and not isinstance(item, list | dict)

    if isinstance(row, list) and row and all(isinstance(item, str) for item in row):  # a question and its answer by place
        return [walk(item, "") if i % 2 else item for i, item in enumerate(row)]
    return walk(row, "")
