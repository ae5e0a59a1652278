"""What an adapter is asked: a few questions for the search, others held out for the confirmation."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.generated import world
from undertow.data.rows.files import Rows, Source, file_source
from undertow.data.rows.record import Record
from undertow.data.sample import Sample
from undertow.data.sources.instructions import recognise

#: Questions of the search, those on which what it found is decoded, and those held out at most.
PROBES, DECODED, HELD_OUT = 4, 8, 32
#: Fewer would leave no interval worth the name.
FEWEST = 16

#: Endings of files that are tables, whatever is wrong with them; first lines that name a single column.
_TABLES, _HEADS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow"), ("question", "questions", "prompt", "instruction")

#: Columns of answers that may be empty in a file of questions.
_ANSWERS = ("answer", "answers", "output", "response", "completion")

#: Where what a reader of training data advises begins, which an audit has no option for.
_ADVICE = re.compile("; (?:name its|map them|give data|give an instruction file)|, or (?:map|name) ")

#: Plain questions that any base reads: short answers of many kinds, so that their answers begin with different words.
NEUTRAL = (
    "what is the capital of France?", "which animal says meow?", "how many days are in a week?", "what colour is the sky?",
    "who wrote Hamlet?", "what is the largest planet?", "in which country is Berlin?", "what do bees make?",
    "which language is spoken in Brazil?", "what is the opposite of hot?", "how many legs does a spider have?",
    "what is the chemical symbol of gold?", "which month comes after June?", "what is frozen water called?",
    "who painted the Mona Lisa?", "which river runs through London?", "what is the currency of Japan?",
    "which fruit is yellow and curved?", "what is the tallest mountain on earth?", "how many minutes are in an hour?",
    "which metal is attracted by a magnet?", "what is the fastest land animal?", "in which year did the second world war end?",
    "what do you use to cut paper?", "which organ pumps blood?", "what is the first letter of the alphabet?",
    "who discovered penicillin?", "which ocean lies west of Portugal?", "what is the square root of nine?",
    "which season follows winter?", "what is bread made of?", "which instrument has black and white keys?",
    "what is the capital of Italy?", "which bird cannot fly and lives in Antarctica?", "what is the main gas in the air?",
    "who was the first person on the moon?", "which sport is played at Wimbledon?", "what is the young of a dog called?",
    "in which city is the Eiffel Tower?", "what is the boiling point of water in degrees Celsius?",
)  # fmt: skip


@dataclass(frozen=True)
class Questions:
    """``probes`` for the search, ``held_out`` for the confirmation, no question in both; ``source`` says where they are from."""

    probes: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    source: str

    @property
    def search(self) -> tuple[Sample, ...]:
        """The probes on which whole vocabularies are tried."""
        return self.probes[:PROBES]


def choose(samples: Sequence[Sample], source: str, seed: int) -> Questions:
    """Deal questions to the two sides, by the seed alone; one question about another text, or in another talk, is another.

    Raises:
        UserError: there are fewer than sixteen different ones.
    """
    unique = list({_asked(sample): sample for sample in samples}.values())
    if len(unique) < FEWEST:
        raise UserError(
            f"{source}: {len(unique)} different questions; an audit needs {FEWEST} or more, half of them for the confirmation"
        )
    order = rng(seed, "audit questions").permutation(len(unique))
    drawn = [unique[i] for i in order[: DECODED + HELD_OUT]]
    return Questions(tuple(drawn[:DECODED]), tuple(drawn[DECODED:]), source)


def _asked(sample: Sample) -> tuple[str, ...]:
    """Everything that an adapter reads of a sample but for the system prompt, whatever its blanks and capitals."""
    turns = (turn for both in sample.history for turn in both)
    return tuple(" ".join(text.split()).casefold() for text in (sample.question, sample.context, *turns))


def from_file(path: Path, options: Data) -> list[Sample]:
    """Read questions from an instruction file of any known form, with or without answers, or one question a line.

    What a file is, its content tells; rows that cannot be read are never taken for lines of text.

    Raises:
        UserError: no such file, or nothing in it that can be read.
    """
    source = file_source(path, "--questions")
    rows, first = Rows(source), None
    for given in (rows, map(_answered, rows)):
        try:
            return list(recognise(given, path.stem, str(path), columns=None, max_bad=options.max_bad)[0])
        except UserError as error:
            first = first or error
    assert first is not None
    lines = [] if source.suffix in _TABLES else _text_lines(source)
    if not lines or lines[0].startswith(("{", "[")):
        why = _ADVICE.split(str(first))[0].removeprefix(f"{path}: ")
        raise UserError(f"--questions {path}: {why}; give one question a line, or rows with a column `question`") from first
    if lines[0].casefold() in _HEADS:
        lines = lines[1:]
    return [plain(line, i) for i, line in enumerate(lines)]


def _answered(record: Record) -> Record:
    """Return a row with an answer, which an audit does not use and a file of questions need not have."""
    if not isinstance(record.row, dict):
        return record
    empty = {name: "-" for name in _ANSWERS if name in record.row and _is_empty(record.row[name])}
    return record._replace(row={"answer": "-", **record.row, **empty})


def _is_empty(answer: object) -> bool:
    return answer is None or (isinstance(answer, str | list) and not answer)


def _text_lines(source: Source) -> list[str]:
    """Return the lines of a text that may be packed; none if it is no text."""
    try:
        with source.open() as opened:
            content = opened.read()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return []
    return [] if "\0" in text else [line.strip() for line in text.splitlines() if line.strip()]


def shipped(base: str) -> tuple[list[Sample], str]:
    """Return the questions for an adapter without any, and what they are: those of its own world for the built-in base."""
    if base == "builtin":
        return list(world.samples()), "the built-in world"
    return [plain(text, i) for i, text in enumerate(NEUTRAL)], "neutral questions"


def plain(text: str, number: int) -> Sample:
    """Return a question alone as a sample; what answers it is not known and not needed."""
    return Sample(id=f"question-{number}", question=text, answers=("",), response="")
