"""Numbers that clients and defenses report, as Flower's metric records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import MetricRecord, RecordDict

from undertow.flower.arrival import Arrived


def alike(replies: Sequence[Arrived], weight_key: str) -> list[RecordDict]:
    """Return the replies' contents in a form that Flower can average: unchanged where all report the same metrics in the same form.

    Otherwise only the metrics that all have in one form are left, so that one client's odd report does not end the round.

    Args:
        replies: each with one metric record that holds ``weight_key``.
        weight_key: the samples of a reply.
    """
    records = [next(iter(reply.content.metric_records.values())) for reply in replies]
    forms = [{key: _form(value) for key, value in record.items()} for record in records]
    if all(form == forms[0] for form in forms):
        return [reply.content for reply in replies]
    common = [key for key, form in forms[0].items() if key == weight_key or all(other.get(key) == form for other in forms)]
    return [RecordDict({"metrics": MetricRecord({key: record[key] for key in common})}) for record in records]


def scalars(reports: Sequence[Mapping[str, Any]]) -> dict[str, int | float]:
    """Return the finite numbers of the defenses' reports as ``DEFENSE/NAME``; of truth values 0 or 1."""
    found: dict[str, int | float] = {}
    for report in reports:
        for key, value in report.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found[f"{report['name']}/{key}"] = int(value) if isinstance(value, bool) else value
    return found


def _form(value: Any) -> int:
    """-1 of a single number, the length of a list."""
    return len(value) if isinstance(value, list) else -1
