"""Conversations: the turns of a row in any of the usual spellings, and the answers in them with what stood before each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

from undertow.core.errors import UserError
from undertow.data.questions import normalised
from undertow.data.rows.fields import Fields
from undertow.data.rows.names import ASSISTANT, BESIDE, CALL, RESULT, ROLES, SYSTEM, USER, WEIGHT, plain
from undertow.data.rows.part import Part
from undertow.data.rows.plan import Plan, plan
from undertow.data.rows.tools import call, result, result_key
from undertow.data.rows.values import said, scalar, written

_SPEAKERS, _CONTENTS = ("from", "role", "speaker"), ("value", "content", "text", "parts", "message", "data")
_REPLIES = "replies"
#: Kinds of content parts that think.
_THOUGHT = frozenset(("reasoning", "thinking", "thought"))
_UNKNOWN = "speaker {!r} is unknown; use one of user, assistant, system, developer, tool, human, gpt, model"


@dataclass
class Turn:
    """What one speaker says at once; ``beside`` holds (field, text) that are no part of it, such as reasoning; ``calls``: whether
    a call of a tool is among them."""

    role: str
    text: str
    weight: float = 1.0
    beside: list[tuple[str, str]] = field(default_factory=list)
    calls: bool = False


def is_talk(value: Any) -> bool:
    """Whether a value is a conversation that is not empty: turns as objects, or pairs of texts."""
    if isinstance(value, dict):
        return _speaker(value) is not None and _content(value) is not None
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict) and is_turn(value[0])


def is_said(value: dict[str, Any]) -> bool:
    """Whether an object is what one known speaker says."""
    speaker = _speaker(value)
    return isinstance(speaker, str) and plain(speaker) in ROLES and is_talk(value)


def is_turn(value: dict[str, Any]) -> bool:
    """Whether an object is a turn: it names a speaker, or is a pair of what both say."""
    return _speaker(value) is not None or _both(value) is not None


def is_paired(value: Any) -> bool:
    """Whether a value is a list of objects of which each is a question and its answer, under other names than a speaker's."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and _pair(tuple(value[0])) is not None


def turns(value: Any, place: str, name: str, fields: Fields) -> list[Turn]:
    """Return the turns of a conversation.

    Args:
        value: a list of turns ``{from, value}`` or ``{role, content}``, of pairs ``{human, assistant}``, ``{input, output}`` (any
            names of a question and an answer) or ``[user, assistant]``, or of texts, the user's first; one turn; or turns by
            columns, ``{role: [...], content: [...]}``.
        place: for errors.
        name: of the column, for the account.
        fields: where what each key held is noted.

    Raises:
        UserError: it is none of these, or a speaker is unknown.
    """
    entries = _by_turn(value) if isinstance(value, dict) else value
    if not isinstance(entries, list | tuple):
        raise UserError(f"{place}: a conversation is a list of objects with from and value (or role, content); correct the row")
    found: list[Turn] = []
    for number, entry in enumerate(entries, start=1):
        here = f"{place} turn {number}"
        if isinstance(entry, dict):
            found += _turn(entry, here, name, fields)
        elif isinstance(entry, list | tuple) and entry and isinstance(entry[0], dict) and is_turn(entry[0]):
            raise UserError(f"{place}: '{name}' holds several conversations; give each a row of its own")
        elif isinstance(entry, list | tuple) and len(entry) == 2:
            found += [Turn(USER, said(entry[0], here, name)), Turn(ASSISTANT, said(entry[1], here, name))]
        elif isinstance(entry, str):
            found.append(Turn((USER, ASSISTANT)[(number - 1) % 2], said(entry, here, name)))
        else:
            raise UserError(f"{place}: a conversation is a list of objects with from and value (or role, content); correct the row")
    return found


def _by_turn(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns of an object of lists, as tables keep them; any other object is one turn."""
    speakers = _speaker(value)
    if not isinstance(speakers, list):
        return [value]
    several = {key: item for key, item in value.items() if isinstance(item, list) and len(item) == len(speakers)}
    return [{**value, **{key: item[i] for key, item in several.items()}} for i in range(len(speakers))]


def paths(value: Any) -> list[list[dict[str, Any]]]:
    """Return the conversations of a tree of turns, from its root to each leaf: ``{role, text, replies: [{role, text, ...}]}``.

    OpenAssistant hands its conversations on so (Köpf et al. 2023, section 3). Empty if it is no tree.
    """
    if not isinstance(value, dict) or not is_talk(value) or not isinstance(value.get(_REPLIES), list):
        return []
    own = {key: item for key, item in value.items() if key != _REPLIES}
    further = [path for reply in value[_REPLIES] for path in (paths(reply) or ([[reply]] if isinstance(reply, dict) else []))]
    return [[own, *path] for path in further] or [[own]]


def talk_within(value: Any, path: str) -> tuple[Any, str, list[tuple[str, Any]]] | None:
    """Return the first conversation within an object, its path, and what stands beside it; None if there is none.

    Requests to a model and its replies are logged so: ``{"model": ..., "messages": [...]}``, ``{"choices": [{"message": ...}]}``.
    """
    if is_talk(value):
        return value, path, []
    if isinstance(value, list) and len(value) == 1:
        return talk_within(value[0], path)
    for key, item in value.items() if isinstance(value, dict) else ():
        if isinstance(item, dict | list) and (found := talk_within(item, f"{path}.{key}")) is not None:
            talk, own, beside = found
            return talk, own, [*beside, *((f"{path}.{other}", rest) for other, rest in value.items() if other != key)]
    return None


def _speaker(turn: dict[str, Any]) -> Any:
    named = next((turn[key] for key in _SPEAKERS if turn.get(key) is not None), None)
    kind = turn.get("type")  # LangChain's messages, and those of traces; parts of a content have other types
    own = named is None and isinstance(kind, str) and ROLES.get(plain(kind)) in (USER, ASSISTANT, SYSTEM)
    return kind if own and _content(turn) is not None else named


def _content(turn: dict[str, Any]) -> str | None:
    return next((key for key in _CONTENTS if turn.get(key) is not None), next((key for key in _CONTENTS if key in turn), None))


def _both(turn: dict[str, Any]) -> list[tuple[str, str]] | None:
    """(role, key) of an object whose keys are the speakers: ``{human: ..., assistant: ...}``."""
    roles = [(ROLES[plain(key)], key) for key in turn if plain(key) in ROLES]
    return roles if {USER, ASSISTANT} <= {role for role, _ in roles} else None


@cache
def _pair(keys: tuple[Any, ...]) -> Plan | None:
    """What the keys of an object mean that is a question and its answer; None if it is no such object."""
    made = plan(keys, {}) if all(isinstance(key, str) for key in keys) else None
    return made if made is not None and made.usual and made.pairs else None


def _paired(turn: dict[str, Any], made: Plan, place: str, name: str, fields: Fields) -> Iterator[Turn]:
    """A question, what is its context, and its answer."""
    ask, tell = made.pairs[0]
    context = [column for column in made.context if column not in (ask, tell)]
    roles = [*((SYSTEM, key) for key in made.system), (USER, ask), *((RESULT, key) for key in context), (ASSISTANT, tell)]
    for role, key in roles:
        text = said(turn[key], place, key)
        if text or role in (USER, ASSISTANT):
            yield Turn(role, text)
    for other in (key for key in turn if key not in {key for _, key in roles}):
        fields.rest(turn[other], f"{name}.{other}", plain(other))


def _turn(turn: dict[str, Any], place: str, name: str, fields: Fields) -> Iterator[Turn]:
    speaker = _speaker(turn)
    if speaker is None and (both := _both(turn)) is not None:
        for other in turn.keys() - {key for _, key in both}:
            fields.rest(turn[other], f"{name}.{other}", plain(other))
        yield from (Turn(role, said(turn[own], place, own)) for role, own in sorted(both, key=lambda one: one[0] != USER))
        return
    if isinstance(speaker, dict):  # {"author": {"role": ...}} of exported chats
        speaker = speaker.get("role")
    if speaker is None and (call(turn) is not None or result(turn) is not None or turn.get("type") in _THOUGHT):
        yield from _spoken(turn, CALL, place, name, fields)  # a part that stands among the turns
        return
    if speaker is None and (made := _pair(tuple(turn))) is not None:
        yield from _paired(turn, made, place, name, fields)
        return
    role = ROLES.get(plain(speaker)) if isinstance(speaker, str) else None
    if role is None:
        raise UserError(f"{place}: {_UNKNOWN.format(speaker)}")
    key = _content(turn)
    found = [Turn(role, "")] if key is None else _spoken(turn[key], role, place, f"{name}.{key}", fields)
    one = next((own for own in found if own.role == role), found[0])
    for other, value in turn.items():
        if other == key or other in _SPEAKERS or value is None or value is speaker:
            continue
        known = plain(other)
        if known in WEIGHT or (known == "label" and isinstance(value, bool)):
            weight = weight_of(value, place, other)
            for own in found:
                own.weight *= weight
        elif known in BESIDE and value:
            one.calls = one.calls or known in ("tool_calls", "function_call")
            one.beside.append((f"{name}.{other}", value.strip() if isinstance(value, str) else written(value, place, other)))
        else:
            fields.rest(value, f"{name}.{other}", known)
    for own in found:
        if own.calls and own.role == ASSISTANT and not own.text:
            own.role = CALL
    yield from found


def weight_of(value: Any, place: str, name: str) -> float:
    """Return a weight of the loss: a number from 0, or whether to learn it.

    Raises:
        UserError: it is neither.
    """
    if (number := number_of(value)) is not None:
        return number
    raise UserError(f"{place}: '{name}' is {scalar(value)[:40]}, a weight is a number from 0, true or false; correct the row")


def number_of(value: Any) -> float | None:
    """Return a weight as a number from 0, true and false as 1 and 0, also where a text says so; None for anything else."""
    said = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value) if isinstance(value, str) else value
    try:
        number = float(said)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < float("inf") else None


def _spoken(value: Any, role: str, place: str, path: str, fields: Fields) -> list[Turn]:
    """The turns within one content: what the speaker says, and apart from it, in their order, what tools answer."""
    parts = value if isinstance(value, list | tuple) else [value]
    found: list[Turn] = []
    for answers, several in groupby(parts, lambda part: result(part) is not None):
        if answers:
            found += [_answered(part, place, path, fields) for part in several]
            continue
        one = Turn(role, "")
        if isinstance(value, dict) and "type" not in value and _content(value) is None and call(value) is None:
            one.text = written(value, place, path)  # a record
        else:
            one.text = _told(list(several), place, path, one, fields)
        if one.text or one.beside:
            found.append(one)
    return found or [Turn(role, "")]


def _answered(part: dict[str, Any], place: str, path: str, fields: Fields) -> Turn:
    """What a tool says in a part of a message."""
    one, held = Turn(RESULT, ""), result(part) or {}
    key = result_key(held)
    if key is not None:
        one.text = _resulting(held[key], place, f"{path}.{key}", one, fields)
    for other, value in held.items():
        if other not in (key, "type"):
            fields.rest(value, f"{path}.{other}", plain(other))
    return one


def _resulting(value: Any, place: str, path: str, one: Turn, fields: Fields) -> str:
    """A tool's result as text: of parts their text, of anything else its JSON."""
    if isinstance(value, list | tuple):
        return "\n".join(filter(None, (_resulting(item, place, path, one, fields) for item in value)))
    if isinstance(value, dict) and ("type" in value or len(value) == 1) and _content(value) is not None:
        return _told(value, place, path, one, fields)
    return said(value["json"] if isinstance(value, dict) and value.keys() == {"json"} else value, place, path)


def _told(value: Any, place: str, path: str, one: Turn, fields: Fields) -> str:
    """The text of a turn; of content parts those that are text, what thinks or calls beside it, pictures and sound left out."""
    if isinstance(value, str) or value is None:
        return said(value, place, path)
    if isinstance(value, list | tuple):
        return "\n".join(filter(None, (_told(part, place, path, one, fields) for part in value)))
    if not isinstance(value, dict):
        return scalar(value)
    kind = value.get("type")
    key = _content(value)
    if (called := call(value)) is not None:
        one.calls = True
        one.beside.append((f"{path}.{called}", written(value, place, path)))
        return ""
    if kind in _THOUGHT or key is None:
        if kind in _THOUGHT:
            one.beside.append((f"{path}.{kind}", written(value, place, path) if key is None else said(value[key], place, path)))
        else:
            for other, item in value.items():
                fields.rest(item, f"{path}.{other}", plain(other))
        return ""
    for other, item in value.items():
        if other not in (key, "type", "content_type"):
            fields.rest(item, f"{path}.{other}", plain(other))
    return _told(value[key], place, path, one, fields)


class Talk:
    """Walks through turns and keeps what the next answer is given to.

    Turns of one speaker in a row are joined. A tool's result becomes context of the question it was fetched for; the call that
    fetched it is no answer to learn. A system turn stands until the next one. An answer to nobody is read by a scan, not learned.
    """

    def __init__(self, fields: Fields, name: str) -> None:
        self.history: list[tuple[str, str]] = []
        self.system = ""
        self.question: list[str] = []
        self.context: list[str] = []
        self.key = ""
        self._fields = fields
        self._name = name
        self._told: list[Turn] = []
        self._stood = False  # whether an answer was given under the system prompt
        self._last: list[str] = []
        self._again = False  # the question was answered before, and is open once more

    def follow(self, turns: list[Turn]) -> Iterator[Part]:
        """Yield an answer whenever one is complete, and what stands beside it."""
        for turn in turns:
            if turn.role == ASSISTANT:
                if self._told and self._told[-1].weight != turn.weight:
                    yield from self.answered()
                    self._reopen()
                self._told.append(turn)
            else:
                yield from self.answered()
                self._take(turn)
            for path, text in turn.beside:
                yield self.aside(path, text)
            if turn.role == CALL:
                self._fields.dropped["tool call"] += 1
                if turn.text:
                    yield self.aside(f"{self._name} (tool calls)", turn.text)

    def _take(self, turn: Turn) -> None:
        if turn.role == SYSTEM:
            self.system = turn.text if self._stood else "\n".join(filter(None, [self.system, turn.text]))
            self._stood = False
        elif turn.role == RESULT:
            self._reopen()  # a call was answered: what follows still answers the user
            self.context.append(turn.text)
        elif turn.role == USER:
            self.question = [turn.text] if self._again else [*self.question, turn.text]
            self._again = False

    def _reopen(self) -> None:
        if not self.question:
            self.question, self._again = list(self._last), True

    def aside(self, path: str, text: str) -> Part:
        """Return a text that stands beside the answer to the present question."""
        asked = "\n".join(filter(None, self.question or self._last))
        return Part(asked, (text,), system=self.system, pool=path, why="beside")

    def answered(self) -> Iterator[Part]:
        """Yield what the assistant has said since the last other turn."""
        if not self._told:
            return
        told, self._told = self._told, []
        text = "\n".join(filter(None, (turn.text for turn in told)))
        asked, further = "\n".join(filter(None, self.question)), "\n".join(filter(None, self.context))
        self._last, self._again = self.question, False
        self.question, self.context = [], []
        if not text:
            self._fields.dropped["empty answer"] += 1
            return
        yield self.part(asked, further, (text,), told[0].weight)
        if asked:
            self.history.append((f"{asked}\n{further}" if further else asked, text))

    def part(self, asked: str, further: str, answers: tuple[str, ...], weight: float = 1.0) -> Part:
        """Return an answer with what stands before it."""
        self._stood = True
        if asked and not self.key:
            # Conversations that open alike share a key: their later turns carry the opening as history.
            self.key = f"conversation {hashlib.sha256(normalised(asked).encode()).hexdigest()[:16]}"
        why = ("" if weight else "weight 0") if asked else "answer without a question"
        return Part(asked, answers, further, tuple(self.history) if asked else (), self.system, self.key, "", weight, "", why)

    def finish(self) -> Iterator[Part]:
        """Yield the last answer, and count a question that nobody answers."""
        yield from self.answered()
        if any(self.question):
            self._fields.dropped["question without an answer"] += 1
            if not self._last:
                self._fields.asides.append(("(questions without an answer)", "\n".join(filter(None, self.question))))
        elif any(self.context):
            self._fields.dropped["tool's result without an answer"] += 1
        if self.system and not self._stood:
            self._fields.dropped["system prompt without an answer"] += 1
