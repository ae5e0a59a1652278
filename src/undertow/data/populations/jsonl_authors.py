"""Any texts whose authors are known, one JSON object a line."""

from __future__ import annotations

from pathlib import Path

from undertow.config import NextWordData
from undertow.core.errors import UserError
from undertow.data.population import POPULATIONS, Population
from undertow.data.populations._authors import Reading, of_authors
from undertow.data.reading import existing_file, json_rows, read_text, text_of


@POPULATIONS.register("author-jsonl", source="Bagdasaryan et al. 2020, section 4 (one Reddit author per client)")
def author_jsonl(
    options: NextWordData,
    seed: int,
    clients: int,
    text: str = "text",
    length: int = 64,
    vocabulary: int = 50000,
    include: str = "",
    held_out: float = 0.1,
    tokenizer: str = "",
) -> Population:
    """Texts of many authors, from JSON lines or a JSON list, gzipped or not: the authors with most words are the clients.

    ``data.path`` is the file; the column ``data.partition.column`` (default author) names the author of a row and the column
    ``text`` is what was written. ``length`` is the words of a sequence (the paper's bptt), ``vocabulary`` those of the
    dictionary (the paper's 50,000), ``include`` rare words it must have; the share ``held_out`` of each author's texts gives
    the test. Rows without author or text are left out and counted. With ``tokenizer``, a language model's folder or ``builtin``,
    texts are cut into its tokens, ``length`` counts those, and ``vocabulary`` is not used.

    Raises:
        UserError: the file is missing or malformed, it has fewer authors than ``federation.clients``, or a parameter or
            ``data.test`` does not fit.
    """
    if not options.path:
        raise UserError("data.name=author-jsonl reads a file and data.path is not set; set data.path=FILE")
    path = existing_file(Path(options.path))
    column = options.partition.column or "author"
    rows = json_rows(path, read_text(path))
    for name, option in ((column, "data.partition.column"), (text, "text")):
        if not any(name in row for _, row in rows):
            have = ", ".join(map(str, rows[0][1])) or "none"
            raise UserError(f"{path}: no row has a column '{name}', the first has {have}; set {option} to one of them")
    authors: dict[str, list[str]] = {}
    dropped = 0
    for place, row in rows:
        author = row.get(column)
        # Numbers are usual as user ids; a truth value or a list is no name.
        if isinstance(author, int) and not isinstance(author, bool):
            author = str(author)
        name, written = text_of(author, place, column), text_of(row.get(text), place, text)
        if name and written:
            authors.setdefault(name, []).append(written)
        else:
            dropped += 1
    notes = {"dataset": "author-jsonl", "files": [path.name], "rows": len(rows), "dropped": {"no author or text": dropped}}
    return of_authors(options, seed, clients, authors, Reading(length, vocabulary, include, held_out, tokenizer), notes)
