"""Generated authors, as many as wanted: the next-word task that needs no download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from undertow.config import NextWordData
from undertow.core.rng import rng
from undertow.data.generated import talk
from undertow.data.population import POPULATIONS, Population
from undertow.data.populations._authors import refuse_path
from undertow.data.tokens import load_tokens
from undertow.data.words import Vocabulary, WordPopulation, at_least

#: Held-out words per test question, so that the questions come from many texts.
_WORDS_PER_QUESTION = 5


@POPULATIONS.register("authors", source="ours, in place of the Reddit authors of Bagdasaryan et al. 2020, section 4")
def authors(options: NextWordData, seed: int, clients: int, words: int = 400, length: int = 20, tokenizer: str = "") -> Population:
    """Generated posts (:mod:`undertow.data.generated.talk`), one author per client, written when a client is asked for.

    There are ``federation.clients`` authors. Each holds ``words`` words, marks of begin and end included; ``length`` is the
    words of a sequence. The dictionary is the grammar's, so it reveals nothing about anyone. The test is written by further
    authors, none of them a client. ``data.train`` is not used. With ``tokenizer``, a language model's folder or
    ``builtin``, posts are cut into its tokens, and ``words`` and ``length`` count those.

    Raises:
        UserError: a parameter outside its range, or no such tokenizer.
    """
    refuse_path(options)
    at_least(words=(words, 2), length=(length, 2))
    tokens = load_tokens(tokenizer) if tokenizer else None
    known = Vocabulary(talk.words())

    def stream(purpose: str, k: int) -> NDArray[np.int32]:
        author = talk.Author(rng(seed, purpose, client=k))
        parts: list[NDArray[np.int32]] = []
        while sum(map(len, parts)) < words:
            post = author.post()
            parts.append(tokens.stream([" ".join(post)]) if tokens else known.stream([post]))
        return np.concatenate(parts)[:words]

    others = -(-_WORDS_PER_QUESTION * options.test // words)
    return WordPopulation(
        vocabulary=tokens or known,
        lengths=[words] * clients,
        stream=lambda k: stream("author", k),
        held_out=np.concatenate([stream("held-out author", j) for j in range(others)]),
        length=length,
        positions=options.test,
        seed=seed,
        report={"dataset": "authors", "words_per_author": words, "held_out_authors": others},
    )
