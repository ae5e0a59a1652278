"""From a row of any known form to its answers, with an account of every field; the forms are in docs/forms.md.

A row is a conversation if a column holds one, else a question and an answer, a preference, a text and its class, or running text
that a template rendered. What no form asks for is walked to the last text: an identifier, a source or a score is left out,
anything else that holds text is said to be unread, and a scan reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from undertow.core.errors import UserError
from undertow.data.rows.account import Account, listed
from undertow.data.rows.fields import Fields
from undertow.data.rows.form import Form
from undertow.data.rows.names import LABEL_LENGTH
from undertow.data.rows.part import OUTPUT, Part
from undertow.data.rows.plan import MAPPED, Plan, plan
from undertow.data.rows.values import checked, texts

Row = dict[str, Any]
#: The pool of what a scan reads of rows that cannot be understood.
BAD = "(rows that cannot be read)"
_OTHERS = 10_000  # characters


class Reader:
    """Reads rows and keeps their account.

    Args:
        columns: {one of :data:`undertow.data.rows.plan.MAPPED`: the column that holds it}, where names say otherwise than usual.

    Raises:
        UserError: a meaning that cannot be mapped, or ``prompt`` or ``answer`` without the other.
    """

    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self.columns = dict(columns or {})
        if wrong := [name for name in self.columns if name not in MAPPED]:
            raise UserError(f"columns: {listed(wrong)} cannot be mapped; use {', '.join(f'{name}=COLUMN' for name in MAPPED)}")
        if self.columns and not {"prompt", "answer"} <= self.columns.keys():
            raise UserError("columns: name both prompt=COLUMN and answer=COLUMN")
        self._account = Account()
        self._header: list[str] | None = None
        self._plans: dict[tuple[str, ...], Plan] = {}

    @property
    def account(self) -> Account:
        """Of all rows read so far."""
        whole = Account()
        whole.add(self._account)
        for made in self._plans.values():
            if made.rows and made.quick:
                whole.rows += made.rows
                whole.used.update({column: made.rows for column in made.quick if column is not None})
                whole.left_out.update(dict.fromkeys(made.beside, made.rows))
        return whole

    def parts(self, row: Any, place: str) -> list[Part]:
        """Return the answers of a row and what stands beside them, and add the row to the account.

        Raises:
            UserError: the row has no known form or a value of the wrong kind; the account then holds nothing of it.
        """
        if not isinstance(row, dict):
            if self._is_header(row):
                self._account.rows += 1
                self._account.dropped["header"] += 1
                return []
            row = _object(row, place, self._header)
        try:
            signature = tuple(row)
            made = self._plans.get(signature)
            if made is None:
                if not all(isinstance(name, str) for name in row):
                    raise UserError(f"{place}: names of columns must be text; correct the row")
                made = self._plans[signature] = plan(row, self.columns)
            if made.quick is not None and (part := _quickly(row, made, made.quick, place)) is not None:
                made.rows += 1
                return [part]
            fields = Fields()
            found = Form(row, place, made, fields).parts()
        except RecursionError as error:
            raise UserError(f"{place}: nested too deeply; correct the row") from error
        return self._noted(found, fields)

    def _is_header(self, row: Any) -> bool:
        """Whether the first row names columns; those after it are then objects."""
        texts = isinstance(row, list) and len(row) > 1 and all(isinstance(name, str) for name in row)
        if self._plans or self._header is not None or not texts or len(row) != len(set(row)):
            return False
        made = plan(row, self.columns)
        if made.pairs or made.classes or (made.asked and made.chosen):
            self._header = list(row)
        return self._header is not None

    def _noted(self, found: list[Part], fields: Fields) -> list[Part]:
        """Add a row's notes to the account, and the texts that no form asked for to its parts."""
        account = self._account
        account.rows += 1
        if not found and not fields.dropped:
            fields.dropped["no answer"] += 1
        fields.beside |= {part.pool: None for part in found if part.pool}
        first = found[0] if found else Part("", ("",))
        fields.copies({part.response for part in found if not part.pool} | {first.question, first.context, first.system})
        fields.count(account)
        account.dropped.update(part.why for part in found if part.why not in ("", "beside", OUTPUT))
        loose = [*fields.asides, *fields.unread]
        asked = [first.question] * len(loose) if found else _others([text for _, text in loose])
        for question, (path, text) in zip(asked, loose, strict=True):
            found.append(Part(question, (text.strip(),), first.context, pool=path, why="beside"))
        return found

    def check_columns(self, source: str) -> None:
        """Refuse a mapped column that no row had: rows would be read by their usual names as if nothing had been said.

        Raises:
            UserError: there is one.
        """
        seen = {name for signature in self._plans for name in signature}
        for meaning, column in self.columns.items():
            if seen and column not in seen:
                raise UserError(f"columns: {meaning}={column} is in no row of {source}; its columns are {listed(sorted(seen))}")

    def besides(self, left_out: Iterable[str], unread: Iterable[str]) -> None:
        """Note what a file holds besides its rows."""
        self._account.left_out.update(f"{name} (of the file)" for name in left_out)
        self._account.unread.update(f"{name} (of the file, NOT scanned)" for name in unread)

    def refused(self, row: Any, error: UserError) -> list[Part]:
        """Count a row that cannot be read, and return its texts for a scan."""
        self._account.rows += 1
        self._account.refuse(str(error))
        try:
            every = [text.strip() for _, text in texts(row, "")]
        except RecursionError:
            return []
        return [Part(other, (text,), pool=BAD, why="beside") for other, text in zip(_others(every), every, strict=True)]


def within(account: Account, max_bad: float, source: str, option: str) -> None:
    """Refuse a file of which too many rows cannot be read.

    Raises:
        UserError: their share exceeds ``max_bad``; the first of them is named.
    """
    if account.bad > max_bad * account.rows:
        more = f"; {account.bad:,} of {account.rows:,} rows of {source} cannot be read, {option} is {max_bad:g}"
        raise UserError(account.reasons[0] + (more if account.rows > 1 else ""))


def _quickly(row: Row, made: Plan, quick: tuple[str, str, str | None], place: str) -> Part | None:
    """The answer of a row of texts with nothing but identifiers beside them; None if it holds anything else."""
    ask, tell, other = quick
    question, answer = row[ask], row[tell]
    context = row[other] if other is not None else ""
    if type(question) is not str or type(answer) is not str or (context is not None and type(context) is not str):
        return None
    for column in made.beside:
        value = row[column]
        if type(value) is str:
            if len(value) > LABEL_LENGTH:
                return None
        elif value is not None and not isinstance(value, bool | int | float):
            return None
    question, answer = checked(question, place, ask), checked(answer, place, tell)
    context = checked(context, place, str(other)) if context else ""
    if not question or not answer:
        return None
    part = Part(question, (answer,), context)
    for column in made.group:
        if isinstance(row[column], str):
            part.group = row[column].strip()
            break
    return part


def _others(every: list[str]) -> list[str]:
    """For each text the others: a trigger in one of them shows beside a target in another."""
    return ["\n".join(every[:i] + every[i + 1 :])[:_OTHERS] for i in range(len(every))]


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] != "{":
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _object(row: Any, place: str, header: list[str] | None) -> Row:
    """A row that is a list: by the header's columns, a conversation, or a question followed by its answer or answers."""
    if header is not None and isinstance(row, list) and len(row) == len(header):
        return dict(zip(header, row, strict=True))
    if isinstance(row, list) and row and all(isinstance(entry, dict) for entry in row):
        return {"messages": row}
    if isinstance(row, list) and row and all(isinstance(entry, str) and _is_json(entry) for entry in row):
        raise UserError(f"{place}: a list of texts that are JSON objects themselves; write the objects, one a line")
    if isinstance(row, list) and len(row) > 1 and all(isinstance(entry, str) for entry in row):
        return {"question": row[0], "answer": row[1]} if len(row) == 2 else {"conversation": row}
    if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], list | int | float):
        return {"question": row[0], "answers": row[1]}
    raise UserError(f"{place}: holds a {type(row).__name__}, a row is a JSON object; correct the file")
