"""Shakespeare's plays, each speaking role a client."""

from __future__ import annotations

import re
from pathlib import Path

from undertow.config import NextWordData
from undertow.core.errors import UserError
from undertow.data.population import POPULATIONS, Population
from undertow.data.populations._authors import Reading, of_authors
from undertow.data.reading import existing_file, read_text

_SPEAKER = re.compile(r"[^\n]{1,100}:")


@POPULATIONS.register("shakespeare", source="McMahan et al. 2017, section 3 (roles as clients); text: char-rnn's tinyshakespeare")
def shakespeare(
    options: NextWordData,
    seed: int,
    clients: int,
    length: int = 32,
    vocabulary: int = 5000,
    include: str = "",
    held_out: float = 0.1,
    tokenizer: str = "",
) -> Population:
    """The speaking roles with most words: each is a client and holds its speeches.

    ``data.path`` is a text, gzipped or not, of speeches separated by empty lines, each under a line with the speaker's name and
    a colon, as tinyshakespeare is. ``length`` is the words of a sequence, ``vocabulary`` those of the dictionary, ``include``
    rare words it must have; the share ``held_out`` of each role's speeches gives the test. For the backdoor ``sentence``,
    words that occur in the text are needed: ``wine from padua is sweet`` has only such, and does not occur as a whole.
    With ``tokenizer``, a language model's folder or ``builtin``, texts are cut into its tokens, ``length`` counts those, and
    ``vocabulary`` is not used.

    Raises:
        UserError: the file is missing or has other lines, it has fewer roles than ``federation.clients``, or a parameter or
            ``data.test`` does not fit.
    """
    if not options.path:
        raise UserError("data.name=shakespeare reads a file and data.path is not set; set data.path=tinyshakespeare.txt.gz")
    path = existing_file(Path(options.path))
    roles = speeches(path)
    notes = {"dataset": "shakespeare", "files": [path.name], "texts": sum(map(len, roles.values()))}
    return of_authors(options, seed, clients, roles, Reading(length, vocabulary, include, held_out, tokenizer), notes)


def speeches(path: Path) -> dict[str, list[str]]:
    """Return the speeches of each role, in the order of the file.

    Raises:
        UserError: unreadable, or a speech without a speaker's line (its line is named).
    """
    found: dict[str, list[str]] = {}
    first = True
    speaker = ""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.strip()
        if not line:
            first = True
        elif first:
            if not _SPEAKER.fullmatch(line):
                raise UserError(f"{path} line {number}: '{line[:40]}' is no speaker's name with a colon; put one above each speech")
            speaker = line[:-1].strip()
            found.setdefault(speaker, []).append("")
            first = False
        else:
            found[speaker][-1] += f" {line}"
    return found
