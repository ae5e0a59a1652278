"""The sanitizer on a Flower client: what ``undertow scan`` decides of one file, applied to the samples before training.

A mod sees messages, not the data that the app reads. It therefore cannot take samples away from an app by itself: :func:`sanitize`
judges them and leaves the verdicts in the client's state, and the app trains on :func:`cleaned` rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable, Mod

from undertow.core.errors import UserError
from undertow.data.rows.forms import Reader, within
from undertow.data.rows.record import Record
from undertow.data.sample import Sample
from undertow.sanitization.finding import Verdict
from undertow.scanning.reading import Files
from undertow.scanning.repairs import Row, mended

log = logging.getLogger("flwr")

#: Where a client's state keeps the verdicts.
STATE = "undertow.sanitize"
_MODES = ("repair", "drop", "review")
#: The share of a client's rows that may be unreadable.
_MAX_BAD = 0.01


def sanitize(load: Callable[[Context], Sequence[Row]], *, mode: str = "repair", tell: bool = False) -> Mod:
    """Return a mod that judges a client's rows before its first training; the app trains on ``cleaned(load(context), context)``.

    ::

        app = ClientApp(mods=[sanitize(load)])

        @app.train()
        def train(message, context):
            rows = cleaned(load(context), context)

    Rows are judged once: the verdicts stay in the context's state, which Flower hands to the client's next message, and are made
    anew if the rows change.

    Args:
        load: returns the client's rows.
        mode: as :func:`cleaned`.
        tell: whether a training reply carries ``sanitize-dropped`` and ``sanitize-repaired`` in its metrics. It tells the server
            how much was found.

    Raises:
        UserError: an unknown mode.
    """
    _check(mode)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.partition(".")[0] != "train":
            return call_next(message, context)
        found = _verdicts(load(context), context, mode)
        reply = call_next(message, context)
        if tell and reply.has_content():
            for record in reply.content.metric_records.values():
                _add(record, found)
        return reply

    return mod


def cleaned(rows: Sequence[Row], context: Context, *, mode: str | None = None) -> list[Row]:
    """Return the rows that a client should train on, in order: without those dropped, with those repaired in their new form.

    It finds what ``undertow scan`` finds in a file of these rows, which is what shows within one client; planted pairs that only
    many clients together give away need the defense ``sanitization``.

    Args:
        rows: of any form that an instruction file may have, such as ``{"instruction", "input", "output"}`` or ``{"messages"}``.
            Rows without question or answer stay.
        context: of the client; verdicts of :func:`sanitize` are taken from it if they are of these rows, and else made and left
            there.
        mode: ``repair`` cuts a target out of an answer, and drops the row where that cannot be done; ``drop`` drops it; ``review``
            keeps all and only logs. Findings that need a person's review are kept in all modes. None = the mod's, else ``repair``.

    Raises:
        UserError: an unknown mode, or a row of unknown form.
    """
    _check(mode or "repair")
    found = _verdicts(rows, context, mode)
    drop, changed = set(found["drop"]), {int(i): row for i, row in found["changed"].items()}
    return [changed.get(i, row) for i, row in enumerate(rows) if i not in drop]


def _check(mode: str) -> None:
    if mode not in _MODES:
        raise UserError(f"mode = {mode!r} is none of {', '.join(_MODES)}; choose one")


def _verdicts(rows: Sequence[Row], context: Context, mode: str | None) -> dict[str, Any]:
    """The verdicts on these rows, from the state or made now: ``drop`` lists indices, ``changed`` holds new rows by index."""
    digest = _digest(rows)
    known = context.state.config_records.get(STATE)
    if known is not None and known["rows"] == digest and mode in (None, known["mode"]):
        old: dict[str, Any] = json.loads(str(known["verdicts"]))
        return old
    mode = mode or "repair"
    found = judged(rows, mode)
    keep(context, rows, mode, found)
    log.info(
        "sanitize: %d rows, %d findings, %d dropped, %d repaired, %d for review; %s",
        len(rows),
        found["findings"],
        len(found["drop"]),
        len(found["changed"]),
        found["review"],
        found["account"],
    )
    return found


def keep(context: Context, rows: Sequence[Row], mode: str, found: dict[str, Any]) -> None:
    """Leave verdicts, as :func:`judged` returns them, in a client's state, where :func:`cleaned` finds them."""
    context.state[STATE] = ConfigRecord({"rows": _digest(rows), "mode": mode, "verdicts": json.dumps(found, default=str)})


def _digest(rows: Sequence[Row]) -> bytes:
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True, default=str).encode()).digest()


def numbered(rows: Sequence[Row]) -> tuple[list[Sample], list[int]]:
    """Return the samples of rows that are learned, and of each the row's index.

    Raises:
        UserError: too many rows of unknown form.
    """
    reader = Reader()
    samples: list[Sample] = []
    row_of: list[int] = []
    for i, row in enumerate(rows):
        try:
            parts = reader.parts(row, f"row {i}")
        except UserError as error:
            parts = reader.refused(row, error)
        for part in parts:
            if not part.why:
                samples.append(part.sample())
                row_of.append(i)
    within(reader.account, _MAX_BAD, "the client's data", "the limit")
    return samples, row_of


def judged(rows: Sequence[Row], mode: str) -> dict[str, Any]:
    """Judge rows.

    Returns:
        ``drop``: indices of rows to leave out; ``changed``: {index: row with its targets cut out}; ``findings``: how many there
        are; ``review``: rows that stay, but that a person should look at; ``account``: what was read, in one line.

    Raises:
        UserError: too many rows of unknown form.
    """
    files = Files(
        ["the client's data"], lambda _: (Record(f"row {i}", row) for i, row in enumerate(rows)), None, _MAX_BAD, "the limit"
    )
    result = files.judged(needs_samples=False)
    drop: set[int] = set()
    review: set[int] = set()
    changed: dict[int, Row] = {}
    for i, verdicts in result.of_rows(0).items():
        acted: list[Verdict] = [verdict for verdict in verdicts if verdict.act != "review" and mode != "review"]
        if not acted:
            review.add(i)
            continue
        parts = files.reader().parts(rows[i], f"row {i}") if mode == "repair" else []
        fixed = mended(rows[i], [(result.part(verdict, parts), verdict) for verdict in acted], result.found) if parts else None
        if fixed is None:
            drop.add(i)
        else:
            changed[i] = fixed
    return {
        "drop": sorted(drop),
        "changed": {str(i): row for i, row in changed.items()},
        "findings": len(result.found.findings),
        "review": len(review),
        "account": result.account.sentence(scanned=True),
    }


def _add(record: MetricRecord, found: dict[str, Any]) -> None:
    record["sanitize-dropped"] = len(found["drop"])
    record["sanitize-repaired"] = len(found["changed"])
