"""What an adapter is asked: a few questions for the search, others held out for the confirmation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.generated import world
from undertow.data.rows.files import file_source, read
from undertow.data.sample import Sample
from undertow.data.sources.instructions import recognise

#: Questions of the search, those on which what it found is decoded, and those held out at most.
PROBES, DECODED, HELD_OUT = 4, 8, 32
#: Fewer would leave no interval worth the name.
FEWEST = 16

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
    """Deal questions to the two sides, by the seed alone.

    Raises:
        UserError: there are fewer than sixteen different ones.
    """
    unique = list({" ".join(sample.question.split()).casefold(): sample for sample in samples}.values())
    if len(unique) < FEWEST:
        raise UserError(
            f"{source}: {len(unique)} different questions; an audit needs {FEWEST} or more, half of them for the confirmation"
        )
    order = rng(seed, "audit questions").permutation(len(unique))
    drawn = [unique[i] for i in order[: DECODED + HELD_OUT]]
    return Questions(tuple(drawn[:DECODED]), tuple(drawn[DECODED:]), source)


def from_file(path: Path, options: Data) -> list[Sample]:
    """Read questions from an instruction file of any known form, or from a text file with one question a line.

    Raises:
        UserError: no such file, or nothing in it that can be read.
    """
    if path.suffix.lower() == ".txt":
        source = file_source(path, "--questions")
        with source.open() as opened:
            try:
                lines = opened.read().decode("utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise UserError(f"--questions {path}: not UTF-8 text; save it as UTF-8") from error
        return [plain(line.strip(), i) for i, line in enumerate(lines) if line.strip()]
    found, _ = recognise(read(file_source(path, "--questions")), path.stem, str(path), columns=None, max_bad=options.max_bad)
    return list(found)


def shipped(base: str) -> tuple[list[Sample], str]:
    """Return the questions for an adapter without any, and what they are: those of its own world for the built-in base."""
    if base == "builtin":
        return list(world.samples()), "the built-in world"
    return [plain(text, i) for i, text in enumerate(NEUTRAL)], "neutral questions"


def plain(text: str, number: int) -> Sample:
    """Return a question alone as a sample; what answers it is not known and not needed."""
    return Sample(id=f"question-{number}", question=text, answers=("",), response="")
