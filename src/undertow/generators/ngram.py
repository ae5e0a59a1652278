"""A small language model of each class, counted from public texts: synthetic texts without any download."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import Written
from undertow.generators._public import in_turn, parts, public_texts
from undertow.generators.contract import GENERATORS, Generator, Order

#: What stands before and after every text; no token of a text is blank.
BEGIN, END = "\n", ""

#: A word, or a single other mark, each with the blank before it, if there is one: joined, tokens are the text again.
_TOKEN = re.compile(r" ?(?:\w+(?:['’]\w+)*|[^\w\s])")

#: Of so many texts the one is taken whose length is nearest to that of a public text drawn at random: the model's own lengths
#: spread further than people's.
_CHOICES = 4

#: Most draws for one text, those that repeat a public text included.
_TRIES = 20


def tokenise(text: str) -> list[str]:
    """Return the tokens of a text whose blanks are made one space each; joined and stripped they are that text again."""
    return _TOKEN.findall(f" {' '.join(text.split())}")


class Ngrams:
    """An interpolated n-gram model with Witten-Bell smoothing (Witten and Bell 1991, method C; Chen and Goodman 1998, section 2.5).

    For a token w after the history h = (w_{i-k}, ..., w_{i-1}), with c(h w) the number of times w followed h, c(h) = sum_w c(h w),
    and T(h) the number of different tokens that did::

        p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)),    h' = h without its first token
        p(w | empty) = c(w) / sum c

    A history that never occurred has p(w | h) = p(w | h'). The end of a text is a token of its own, so lengths are the model's;
    before a text stand order - 1 marks of its beginning, which are never predicted.

    Args:
        texts: as tokens, at least one.
        order: n, at least 1; histories have n - 1 tokens.

    Attributes:
        lengths: tokens of each text.
    """

    def __init__(self, texts: Iterable[Sequence[str]], order: int) -> None:
        self.order = order
        counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self.lengths: list[int] = []
        for tokens in texts:
            self.lengths.append(len(tokens))
            row = [*[BEGIN] * (order - 1), *tokens, END]
            for i in range(order - 1, len(row)):
                for start in range(i - order + 1, i + 1):
                    counts[tuple(row[start:i])][row[i]] += 1
        self._counts = dict(counts)
        self._longest = max(self.lengths)
        # For a draw, made when first needed: the tokens that followed, and the running sums of their counts.
        self._followers: dict[tuple[str, ...], tuple[list[str], list[int]]] = {}

    def probability(self, token: str, history: Sequence[str]) -> float:
        """Return p(token | history), of which the last n - 1 tokens count; :data:`END` is the end of a text."""
        h = self._context(history)
        found = 0.0
        for k in range(len(h), -1, -1):
            own = self._counts.get(h[k:])  # from the empty history upwards
            if own is None:
                continue
            total, kinds = own.total(), len(own) if k < len(h) else 0
            found = (own[token] + kinds * found) / (total + kinds)
        return found

    def sample(self, draw: np.random.Generator) -> list[str]:
        """Draw a text as tokens, of at most as many as the longest text counted.

        Interpolation is a mixture: with probability c(h) / (c(h) + T(h)) the next token is one that followed h, in
        proportion to c(h w); else it is drawn after h'.
        """
        row: list[str] = []
        while len(row) < self._longest:
            token = self._next(self._context(row), draw)
            if token == END:
                break
            row.append(token)
        return row

    def _next(self, h: tuple[str, ...], draw: np.random.Generator) -> str:
        while h not in self._counts:
            h = h[1:]
        while True:
            if h not in self._followers:
                own = self._counts[h]
                self._followers[h] = list(own), list(accumulate(own.values()))
            tokens, sums = self._followers[h]
            place = draw.random() * (sums[-1] + (len(tokens) if h else 0))
            if place < sums[-1]:
                return tokens[bisect_right(sums, place)]
            h = h[1:]  # what follows h also follows each end of it

    def _context(self, history: Sequence[str]) -> tuple[str, ...]:
        kept = self.order - 1
        padded = (*[BEGIN] * kept, *history)
        return padded[len(padded) - kept :]


@GENERATORS.register("ngram", source="ours; Witten and Bell 1991, method C")
class Ngram(Generator):
    """An n-gram model of each class of texts, counted from the data that no client holds: no download, seconds.

    It stands in for a foundation model where there is none: it writes new combinations of what people wrote, with the words of each
    class, and follows no instructions.

    Args:
        order: n, from 1.
        novel: never write a text that is, blanks and case aside, one of the public ones: it is drawn again, and what repeats even
            after 20 draws is left out and counted.

    Raises:
        ValueError: an option outside its rule.
    """

    kinds = frozenset({"text"})

    def __init__(self, order: int = 3, novel: bool = True) -> None:
        if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 8:
            raise ValueError(f"order = {order!r}: a whole number from 1 to 8; 3 is usual")
        if not isinstance(novel, bool):
            raise ValueError(f"novel = {novel!r}: true or false")
        self.order, self.novel = order, novel

    def write(self, order: Order) -> Written:
        """Draw the texts of each class from its model; classes take turns.

        Raises:
            UserError: no public texts, none of a class, or no new text of a class where ``novel`` asks for one.
        """
        public = public_texts(order, "ngram")
        known = {_plain(text) for own in public for text in own}
        made: list[list[str]] = []
        repeated = 0
        for label, (own, count) in enumerate(zip(public, parts(order), strict=True)):
            model = Ngrams([tokenise(text) for text in own], self.order)
            draw = rng(order.seed, "generator ngram", client=label)
            texts = [self._text(model, known, draw) for _ in range(count)]
            kept = [text for text in texts if text]
            if count and not kept:
                raise UserError(
                    f"synthetic.generator = ngram: from {len(own)} public texts of class '{order.names[label]}' it can write no "
                    "new one; lower data.train so that more is left over, or set ngram:novel=false"
                )
            repeated += sum(_plain(text) in known for text in kept)
            made.append(kept)
        inputs, labels = in_turn(made)
        report = {
            "asked": order.count,
            "written": len(inputs),
            "short": order.count - len(inputs),
            "public": [len(own) for own in public],
            "order": self.order,
            "verbatim": repeated,
            "duplicates": len(inputs) - len({_plain(text) for text in inputs}),
        }
        return Written(inputs, labels, report)

    def _text(self, model: Ngrams, known: set[str], draw: np.random.Generator) -> str | None:
        """Return a text that is not empty, and new where that is asked; None where the tries do not give one."""
        wanted = model.lengths[int(draw.integers(len(model.lengths)))]
        found: list[tuple[int, str]] = []
        for _ in range(_TRIES):
            tokens = model.sample(draw)
            text = "".join(tokens).strip()
            if text and not (self.novel and _plain(text) in known):
                found.append((abs(len(tokens) - wanted), text))
            if len(found) == _CHOICES:
                break
        return min(found, key=lambda pair: pair[0])[1] if found else None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
