"""Populations of texts that people wrote: the authors with most words are the participants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from undertow.config import Config
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.tokens import Tokens, load_tokens, readable
from undertow.data.words import Vocabulary, WordPopulation, at_least, count_words, tokenise


def refuse_unused(config: Config, *fields: str) -> None:
    """Refuse values of ``data`` that a population of authors has no use for, rather than leave them without effect.

    Raises:
        UserError: one of ``fields`` is set.
    """
    data = config.data
    for field in fields:
        if getattr(data, field):
            raise UserError(f"data.{field} = {getattr(data, field)!r} means nothing to {data.name}; leave it out")


def of_authors(
    config: Config,
    authors: Mapping[str, Sequence[str]],
    *,
    length: int,
    vocabulary: int,
    include: str,
    held_out: float,
    notes: Mapping[str, Any],
    tokenizer: str = "",
) -> WordPopulation:
    """Make the population of the ``federation.clients`` authors with most words, ties by name.

    Of each author's texts that have a word in them, a share ``held_out``, drawn at random, is no one's and gives the
    test; the number is rounded down, so an author with few texts holds all of them. ``data.train`` is not used: an
    author holds every text that is not held out.

    Args:
        config: ``seed``, ``data.test`` and ``federation.clients`` are used.
        authors: texts of each author, by name.
        length: words per sequence.
        vocabulary: words in the dictionary.
        include: words the dictionary must have, parted by blanks.
        held_out: share of texts, between 0 and 1.
        notes: facts about the source for the record, ``dataset`` among them.
        tokenizer: a language model's folder or ``builtin``: texts are cut into its tokens, and ``vocabulary`` is not used.

    Raises:
        UserError: fewer authors than clients, a parameter outside its range, no such tokenizer, or too little held-out text.
    """
    at_least(length=(length, 2), vocabulary=(vocabulary, 1))
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0 < held_out < 1:
        raise UserError(f"data.name: held_out = {held_out!r}, it must be a share between 0 and 1, such as 0.1; correct it")
    texts = {name: [words for words in map(tokenise, own) if words] for name, own in authors.items()}
    amount = {name: sum(map(len, own)) for name, own in texts.items() if own}
    clients = config.federation.clients
    if clients > len(amount):
        raise UserError(
            f"federation.clients = {clients}: {config.data.path} has {len(amount)} authors, each client is one; "
            f"set federation.clients={len(amount)} or less"
        )
    chosen = sorted(amount, key=lambda name: (-amount[name], name))[:clients]
    tokens = load_tokens(tokenizer) if tokenizer else None
    if tokens and include:
        raise UserError(f"data.name: include = {include}: a tokenizer has every word; leave include out")
    train: list[list[Any]] = []
    test: list[Any] = []
    for k, name in enumerate(chosen):
        own: Sequence[Any] = readable(authors[name]) if tokens else texts[name]
        order = rng(config.seed, "held-out texts", client=k).permutation(len(own))
        aside = set(order[: int(held_out * len(own))].tolist())
        train.append([words for i, words in enumerate(own) if i not in aside])
        test += [own[i] for i in sorted(aside)]
    known: Tokens | Vocabulary
    facts: dict[str, Any]
    if tokens:
        known, facts = tokens, {"tokenizer": tokenizer}
    else:
        counts = count_words(words for own in train for words in own)
        known = Vocabulary.most_frequent(counts, vocabulary, tokenise(str(include)))
        covered = sum(count for word, count in counts.items() if word in known)
        facts = {"train_words": int(counts.total()), "unknown_share": 1 - covered / counts.total()}
    streams = [known.stream(own) for own in train]
    return WordPopulation(
        vocabulary=known,
        lengths=[len(stream) for stream in streams],
        stream=streams.__getitem__,
        held_out=known.stream(test) if test else np.zeros(0, dtype=np.int32),
        length=length,
        positions=config.data.test,
        seed=config.seed,
        report={
            **notes,
            "authors": len(amount),
            **facts,
            "held_out_texts": len(test),
        },
    )
