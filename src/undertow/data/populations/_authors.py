"""Populations of texts that people wrote: the authors with most words are the clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from undertow.config import NextWordData
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.tokens import Tokens, load_tokens, readable
from undertow.data.words import Vocabulary, WordPopulation, at_least, count_words, tokenise


@dataclass(frozen=True)
class Reading:
    """How authors' texts become sequences, and which of them nobody holds.

    Attributes:
        length: words per sequence.
        vocabulary: words in the dictionary.
        include: words the dictionary must have, separated by blanks.
        held_out: share of each author's texts, between 0 and 1, that gives the test.
        tokenizer: a language model's folder or ``builtin``: texts are cut into its tokens, and ``vocabulary`` is not used.

    Raises:
        UserError: a parameter outside its range.
    """

    length: int
    vocabulary: int
    include: str
    held_out: float
    tokenizer: str = ""

    def __post_init__(self) -> None:
        at_least(length=(self.length, 2), vocabulary=(self.vocabulary, 1))
        share = self.held_out
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise UserError(f"data.name: held_out = {share!r}, it must be a share between 0 and 1, such as 0.1; correct it")
        if self.tokenizer and self.include:
            raise UserError(f"data.name: include = {self.include}: a tokenizer has every word; leave include out")

    def dictionary(self, train: Sequence[Sequence[Any]]) -> tuple[Tokens | Vocabulary, dict[str, Any]]:
        """Return what numbers the texts, made of the clients' own, and facts about it for the record."""
        if self.tokenizer:
            return load_tokens(self.tokenizer), {"tokenizer": self.tokenizer}
        counts = count_words(words for own in train for words in own)
        known = Vocabulary.most_frequent(counts, self.vocabulary, tokenise(str(self.include)))
        covered = sum(count for word, count in counts.items() if word in known)
        return known, {"train_words": int(counts.total()), "unknown_share": 1 - covered / counts.total()}


def refuse_path(options: NextWordData) -> None:
    """Refuse a path for a population that reads no file.

    Raises:
        UserError: it is set.
    """
    if options.path:
        raise UserError(f"data.path = {options.path!r} is not supported by {options.name}, whose texts are generated; leave it out")


def of_authors(
    options: NextWordData, seed: int, clients: int, authors: Mapping[str, Sequence[str]], reading: Reading, notes: Mapping[str, Any]
) -> WordPopulation:
    """Make the population of the authors with most words, one for each client, ties by name.

    Of each author's texts that have a word in them, a random share is no one's and gives the test; the number is rounded down,
    so an author with few texts holds all of them. ``data.train`` is not used: an author holds every text that is not held out.

    Args:
        options: ``test`` is used.
        seed: of the run.
        clients: how many.
        authors: texts of each author, by name.
        reading: how texts become sequences.
        notes: facts about the source for the record, ``dataset`` among them.

    Raises:
        UserError: fewer authors than clients, no such tokenizer, or too little held-out text.
    """
    texts = {name: [words for words in map(tokenise, own) if words] for name, own in authors.items()}
    amount = {name: sum(map(len, own)) for name, own in texts.items() if own}
    if clients > len(amount):
        raise UserError(
            f"federation.clients = {clients}: {options.path} has {len(amount)} authors, each client is one; "
            f"set federation.clients={len(amount)} or less"
        )
    train: list[list[Any]] = []
    test: list[Any] = []
    for k, name in enumerate(sorted(amount, key=lambda name: (-amount[name], name))[:clients]):
        own: Sequence[Any] = readable(authors[name]) if reading.tokenizer else texts[name]
        order = rng(seed, "held-out texts", client=k).permutation(len(own))
        aside = set(order[: int(reading.held_out * len(own))].tolist())
        train.append([words for i, words in enumerate(own) if i not in aside])
        test += [own[i] for i in sorted(aside)]
    known, facts = reading.dictionary(train)
    streams = [known.stream(own) for own in train]
    return WordPopulation(
        vocabulary=known,
        lengths=[len(stream) for stream in streams],
        stream=streams.__getitem__,
        held_out=known.stream(test) if test else np.zeros(0, dtype=np.int32),
        length=reading.length,
        positions=options.test,
        seed=seed,
        report={**notes, "authors": len(amount), **facts, "held_out_texts": len(test)},
    )
