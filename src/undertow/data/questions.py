"""Questions that are the same, and those that share a key: merged, kept apart, and drawn for the test or for training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow.core.errors import UserError
from undertow.data.sample import Sample

if TYPE_CHECKING:  # rows are read without waiting for the config's classes
    from undertow.config import Data

#: What placeholders say; control tokens of tokenizers among them.
_NOTHING = (
    "unk|unknown|none|null|nil|nan|na|n/a|no[ _-]?answer|unanswerable|empty|blank|missing|pad|mask|s|/s|bos|eos|eot|endoftext"
)
_PLACEHOLDER = re.compile(rf"[<\[]\|?({_NOTHING})\|?[>\]]", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """One question after merging, with the keys of all rows that asked it (a question can be about two subjects)."""

    sample: Sample
    keys: frozenset[str]
    identity: tuple[Any, ...]


def normalised(question: str) -> str:
    """Lower case, blanks collapsed to single spaces, trailing question marks, full stops and spaces removed."""
    bare = " ".join(question.lower().split())
    return bare.rstrip("?. ") or bare  # "???" must not equal "..."


def identity(sample: Sample) -> tuple[Any, ...]:
    """What makes two samples the same question: the normalised question, with its context, earlier turns and system prompt."""
    turns = tuple((normalised(user), normalised(answer)) for user, answer in sample.history)
    return normalised(sample.question), normalised(sample.context), turns, normalised(sample.system)


def distinct(answers: Iterable[str]) -> tuple[str, ...]:
    """The answers in order, each once; those that differ in case alone count as one, since no scoring looks at case."""
    found: dict[str, str] = {}
    for answer in answers:
        found.setdefault(answer.casefold(), answer)
    return tuple(found.values())


def genuine(answers: Iterable[str]) -> tuple[str, ...]:
    """The answers in order without placeholders, which stand where a data set has no answer.

    A placeholder is a word such as unk, none, pad or endoftext in angle or square brackets, bars allowed, in any case: ``<unk>``
    (TriviaQA's withheld answers), ``[UNK]``, ``<|endoftext|>``. Beside one, the same word without brackets is a placeholder too,
    since normalised aliases lose them. Without brackets alone, "unk" or "none" can be a true answer.
    """
    found = [(answer, _PLACEHOLDER.fullmatch(answer.strip())) for answer in answers]
    bare = {match[1].casefold() for _, match in found if match}
    return tuple(answer for answer, match in found if not match and answer.strip().casefold() not in bare)


def learned(samples: Iterable[Sample]) -> list[Sample]:
    """Return the samples whose answers are to be learned: all but those of weight 0."""
    return [sample for sample in samples if sample.weight > 0]


def merge(samples: Iterable[Sample]) -> list[Sample]:
    """Join the samples that ask the same question into one, which accepts all their answers.

    The first sample gives id, question and response; the answers are those of all samples (:func:`distinct`); key
    and group are the first that are not empty.
    """
    return [question.sample for question in gather(samples)]


def gather(samples: Iterable[Sample]) -> list[Asked]:
    """Return each question once, with the keys of all samples that ask it; see :func:`merge`."""
    same: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in samples:
        same.setdefault(identity(sample), []).append(sample)
    found = []
    for what, members in same.items():
        joined = replace(
            members[0],
            answers=distinct(answer for member in members for answer in member.answers),
            key=next((member.key for member in members if member.key), ""),
            group=next((member.group for member in members if member.group), ""),
        )
        found.append(Asked(joined, frozenset(member.key for member in members if member.key), what))
    return found


def without(questions: Sequence[Asked], asked: frozenset[str]) -> list[Asked]:
    """The questions that have none of the keys ``asked``."""
    return [question for question in questions if not question.keys & asked]


def disjoint(questions: Sequence[Asked], test: Sequence[Asked]) -> list[Asked]:
    """The questions that share neither identity nor key with ``test``."""
    identities = {question.identity for question in test}
    keys = frozenset().union(*(question.keys for question in test))
    return [question for question in questions if question.identity not in identities and not question.keys & keys]


def drawn(pool: Sequence[Asked], count: int, option: str, what: str, draw: np.random.Generator) -> list[Asked]:
    """Return a random sample of ``count`` questions without replacement, in random order.

    Raises:
        UserError: there are fewer; ``option`` and ``what`` name them.
    """
    if len(pool) < count:
        raise UserError(f"{option}={count}: there are {len(pool)} {what}; set {option}={len(pool)} or less, or give more data")
    return [pool[i] for i in draw.permutation(len(pool))[:count]]


def divide(pool: Sequence[Asked], options: Data, draw: np.random.Generator) -> tuple[list[Asked], list[Asked]]:
    """Return train and test of exact sizes, drawn so that questions bound by a key stay on one side.

    Raises:
        UserError: there are too few questions.
    """
    wanted = f"data.train={options.train} and data.test={options.test}"
    if len(pool) < options.train + options.test:
        raise UserError(
            f"{wanted} need {options.train + options.test} questions, {options.name} has {len(pool)}; "
            f"lower them to a sum of {len(pool)} or less, or give more data"
        )
    units = _units(pool)
    order = [units[i] for i in draw.permutation(len(units))]
    best: tuple[list[Asked], list[Asked]] = ([], [])
    # Drawing in random order can spend a large unit badly; largest first wastes least, so it is the second try.
    for attempt in (order, sorted(order, key=len, reverse=True)):
        test, rest = _take(attempt, options.test)
        if len(rest) >= len(best[1]):
            best = test, rest
        if len(rest) >= options.train:
            break
    test, rest = best
    if len(rest) < options.train:
        raise UserError(
            f"{wanted}: {len(rest)} questions of {options.name} are left to train on once those that share a key with the test "
            f"set are out; set data.train={len(rest)} or less, or lower data.test"
        )
    return [rest[i] for i in draw.permutation(len(rest))[: options.train]], [test[i] for i in draw.permutation(len(test))]


def _take(units: Sequence[list[Asked]], count: int) -> tuple[list[Asked], list[Asked]]:
    """Take exactly ``count`` questions in whole units where possible; return them and the untouched units' questions.

    Units that would overshoot are passed over; if the sum cannot be met, the smallest unit left is cut, and its
    other questions are used on neither side.
    """
    taken: list[Asked] = []
    left: list[list[Asked]] = []
    for unit in units:
        if len(unit) <= count - len(taken):
            taken += unit
        else:
            left.append(unit)
    if len(taken) < count and left:
        smallest = min(range(len(left)), key=lambda i: len(left[i]))
        taken += left.pop(smallest)[: count - len(taken)]
    return taken, [question for unit in left for question in unit]


def _units(questions: Sequence[Asked]) -> list[list[Asked]]:
    """Gather the questions that are bound by shared keys, directly or through others (union-find over the keys)."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    for question in questions:
        first, *others = sorted(question.keys) or [""]
        for other in others:
            parent[root(other)] = root(first)
    units: dict[Any, list[Asked]] = {}
    for question in questions:
        unit = root(min(question.keys)) if question.keys else question.identity
        units.setdefault(unit, []).append(question)
    return list(units.values())


def overlaps(train: Sequence[Asked], test: Sequence[Asked]) -> dict[str, int]:
    """Count what train and test share: the check after the fact, on the lists that are really used."""
    questions = {question.identity for question in train} & {question.identity for question in test}
    keys = frozenset().union(*(q.keys for q in train)) & frozenset().union(*(q.keys for q in test))
    if questions or keys:
        raise RuntimeError(f"internal error: train and test share {len(questions)} questions and {len(keys)} keys; report it")
    return {"overlap_questions": 0, "overlap_keys": 0}
