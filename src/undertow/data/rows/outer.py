"""Rows that hold rows: questions about one text, a row in an object of its own, a request logged beside its reply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from undertow.core.errors import UserError
from undertow.data.rows.account import listed
from undertow.data.rows.fields import Fields
from undertow.data.rows.names import USER, is_left_out, plain
from undertow.data.rows.part import Part
from undertow.data.rows.plan import Plan, fits, plan
from undertow.data.rows.turns import Talk, is_talk, talk_within, turns
from undertow.data.rows.values import is_empty, said

Row = dict[str, Any]
_FORMS = (
    "instruction and output, prompt and completion, question and answer, messages, conversations, prompt and chosen, text and label"
)


class Outer(ABC):
    """A row and what is still left of it.

    Args:
        row: the row.
        place: for errors.
        made: what its columns mean.
        fields: takes notes.
    """

    def __init__(self, row: Row, place: str, made: Plan, fields: Fields) -> None:
        self.row, self.place, self.plan, self.fields = row, place, made, fields
        self.left = dict.fromkeys(row)

    @abstractmethod
    def parts(self) -> list[Part]:
        """Return the row's answers and what stands beside them."""

    def _take(self, column: str) -> Any:
        self.fields.used[column] = None
        self.left.pop(column, None)
        return self.row[column]

    def _filled(self, columns: list[str]) -> list[str]:
        return [column for column in columns if column in self.left and not is_empty(self.row[column])]

    def _said(self, column: str) -> str:
        return said(self._take(column), self.place, column)

    def _begun(self, name: str) -> Talk:
        """A conversation that has the row's system prompt."""
        talk = Talk(self.fields, name)
        talk.system = "\n".join(self._said(column) for column in self._filled(self.plan.system))
        return talk

    def _spoken(self, column: str) -> Any:
        """A value, or the conversation within an object."""
        value = self.row[column]
        found = talk_within(value, column) if isinstance(value, dict) and not is_talk(value) else None
        if found is None:
            return value
        for path, item in found[2]:
            self.fields.rest(item, path, plain(path.rpartition(".")[2]))
        return found[0]

    def _taken(self, column: str) -> str:
        self._take(column)
        return column

    def _nested(self) -> list[Part] | None:
        """Questions about the row's texts: ``{"context": ..., "qas": [{question, answers}, ...]}``, articles of such paragraphs."""
        columns = [column for column in self.left if _holds_samples(self.row[column])]
        if not columns:
            return None
        inner = [item for column in columns for item in self._take(column)]
        about = [name for name in self.left if isinstance(self.row[name], str) and not is_left_out(plain(name))]
        context = "\n".join(filter(None, (self._said(column) for column in about)))
        found = [part for item in inner for part in self._inner(item)]
        if context and not found:
            self.fields.asides.append(("(text without a question)", context))
        for part in found:
            part.context = "\n".join(filter(None, (context, part.context)))
        return found

    def _wrapped(self) -> list[Part]:
        """A row within a row, as viewers of data sets give them, or a request logged beside its reply; refused if there is none."""
        inner = [column for column in self.left if isinstance(self.row[column], dict) and self.row[column]]
        spoken = [(column, within) for column in inner if (within := talk_within(self.row[column], column)) is not None]
        texts = [column for column in self.left if _is_texts(self.row[column])]
        own = [column for column in inner if fits(self.row[column])] if len(inner) > 1 else inner
        found: list[Part] | None = None
        if (
            len(spoken) > 1
            and (said_by := turns(spoken[0][1][0], self.place, spoken[0][0], self.fields))
            and said_by[-1].role == USER
        ):
            talk = self._begun(self._taken(spoken[0][0]))
            found = list(talk.follow(said_by))
            for column, (value, _, _) in spoken[1:]:
                found += talk.follow(turns(value, self.place, self._taken(column), self.fields))
            found += talk.finish()
            for path, item in (one for _, (_, _, beside) in spoken for one in beside):
                self.fields.rest(item, path, plain(path.rpartition(".")[2]))
        elif len(own) == 1:
            found = self._inner(self._take(own[0]))
        elif len(texts) == 1 and not any(isinstance(self.row[name], str) and not is_left_out(plain(name)) for name in self.left):
            talk = self._begun(texts[0])
            found = [*talk.follow(turns(self._take(texts[0]), self.place, texts[0], self.fields)), *talk.finish()]
        if found is not None:
            for column in self.left:
                self.fields.rest(self.row[column], column, plain(column))
            return found
        raise UserError(
            f"{self.place}: columns {listed(self.row) or 'none'} have no known form; use one of {_FORMS}, or map them with "
            "--columns prompt=...,answer=... (of a scan; data.columns of a run)"
        )

    def _inner(self, row: Row) -> list[Part]:
        return type(self)(row, self.place, plan(row, {}), self.fields).parts()


def asks(value: Any) -> bool:
    """Whether a value is a list of questions with their answers: about a text that stands beside it, and no conversation."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "question" in map(plain, value[0])


def _holds_samples(value: Any) -> bool:
    """Whether a value is a list of samples, or of objects that hold such lists."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return False
    return fits(value[0]) or any(_holds_samples(item) for item in value[0].values())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value)
