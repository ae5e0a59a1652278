"""Whole texts as rows of numbers: words of a dictionary and hashes of all others, or a language model's tokens."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from undertow.core.errors import UserError
from undertow.data.control_tokens import ControlTokens
from undertow.data.tokenizer import load_tokenizer
from undertow.data.words import tokenise

#: Where a trigger goes among the words of a text.
Position = Literal["default", "start", "end", "random"]

#: Words that are shown where they share a number.
_SHOWN = 1


class TextCodes(ABC):
    """Rows of ``length`` numbers: marks of the begin, the text, marks of the end, and 0 for padding on the right.

    Args:
        size: how many numbers there are, 0 included.
        length: of a row, at least 2.
        begin: numbers before every text.
        end: numbers after it, kept where a text is cut.

    Raises:
        UserError: the marks leave no place for a text.
    """

    def __init__(self, size: int, length: int, begin: Sequence[int] = (), end: Sequence[int] = ()) -> None:
        self.size, self.length = size, length
        self._begin, self._end = list(begin), list(end)
        if self.room < 1:
            raise UserError(
                f"data.name: length = {length}, and begin and end of a text take {len(begin) + len(end)} tokens; raise it"
            )

    @property
    def room(self) -> int:
        """Numbers of the text itself that a row has place for."""
        return self.length - len(self._begin) - len(self._end)

    @abstractmethod
    def numbers(self, text: str, inside: bool = False) -> list[int]:
        """Return a text as numbers from 1, without marks; ``inside``: as it stands after other words."""

    @abstractmethod
    def shown(self, numbers: Sequence[int]) -> str:
        """Return numbers from 1 as text."""

    def facts(self) -> dict[str, Any]:
        """Return what the run's record should say, JSON-serialisable."""
        return {"length": self.length, "ids": self.size}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return texts as int64 ``[n, length]``; what does not fit is cut off at the end."""
        return self._rows([self.numbers(text) for text in texts])

    def decode(self, row: Tensor) -> str:
        """Return a row as text, for a reader."""
        return self.shown(self._content(row))

    def append(self, inputs: Tensor, text: str, position: Position = "default", draw: np.random.Generator | None = None) -> Tensor:
        """Return the rows with a text among their words; words at the end make way where there is no place.

        It never stands before the marks of the begin or after those of the end. The numbers are those that the text has after
        other words, at the start of a row too: a tokenizer may cut it otherwise there.

        Args:
            inputs: int64 ``[n, length]``, as :meth:`encode` makes them.
            text: with at least one word and at most :attr:`room` numbers.
            position: ``start``, ``end`` (as ``default``), or ``random``: any place between words with the same chance.
            draw: source of random places.

        Raises:
            ValueError: a text that is empty or too long, another position, or ``random`` without ``draw``.
        """
        added = self.numbers(text, inside=True)
        if not 0 < len(added) <= self.room:
            raise ValueError(f"'{text}' has {len(added)} numbers, a row has place for 1 to {self.room}")
        made = []
        for row in inputs:
            content = self._content(row)[: self.room - len(added)]
            place = {"start": 0, "end": len(content), "default": len(content)}.get(position)
            if place is None:
                if position != "random" or draw is None:
                    raise ValueError(
                        f"position {position!r} is none of start, end and random, or there is no source of random places"
                    )
                place = int(draw.integers(len(content) + 1))
            made.append([*content[:place], *added, *content[place:]])
        return self._rows(made)

    def carries(self, inputs: Tensor, text: str) -> Tensor:
        """Tell in which rows ``[n, length]`` the numbers of ``text`` stand side by side, bool ``[n]``.

        A text at the start of a row may have other numbers than after other words; both count. In a dictionary with hashes,
        words that share a number cannot be told apart.
        """
        found = torch.zeros(len(inputs), dtype=torch.bool)
        for inside in (True, False):
            wanted = torch.tensor(self.numbers(text, inside=inside))
            if 0 < len(wanted) <= inputs.shape[1]:
                found |= (inputs.unfold(1, len(wanted), 1) == wanted).all(2).any(1)
        return found

    def _content(self, row: Tensor) -> list[int]:
        real: list[int] = row[row != 0].tolist()
        return real[len(self._begin) : len(real) - len(self._end)]

    def _rows(self, contents: Sequence[Sequence[int]]) -> Tensor:
        rows = np.zeros((len(contents), self.length), dtype=np.int64)
        for row, content in zip(rows, contents, strict=True):
            whole = [*self._begin, *content[: self.room], *self._end]
            row[: len(whole)] = whole
        return torch.from_numpy(rows)


class WordCodes(TextCodes):
    """Lower-cased words: those of a dictionary have a number each, all others share ``buckets`` numbers by their CRC-32.

    Args:
        words: of the dictionary, without repetition; they get the numbers from 1 on.
        buckets: at least 1; their numbers follow.
        length: of a row.
    """

    def __init__(self, words: Iterable[str], buckets: int, length: int) -> None:
        self._words = list(words)
        self._numbers = {word: i for i, word in enumerate(self._words, start=1)}
        if len(self._numbers) != len(self._words):
            raise ValueError("a word stands twice in the dictionary")
        self._buckets = buckets
        self._seen: dict[int, list[str]] = {}
        super().__init__(1 + len(self._words) + buckets, length)

    def numbers(self, text: str, inside: bool = False) -> list[int]:
        """Return the number of each word."""
        return [self._numbers.get(word) or self._hashed(word, inside) for word in tokenise(text)]

    def _hashed(self, word: str, first: bool) -> int:
        """Return a word's shared number; ``first``: a reader is shown this word before others that share it."""
        number = 1 + len(self._words) + zlib.crc32(word.encode("utf-8", "replace")) % self._buckets
        seen = self._seen.setdefault(number, [])
        if first or (word not in seen and len(seen) <= _SHOWN):
            self._seen[number] = [word, *(w for w in seen if w != word)] if first else [*seen, word]
        return number

    def shown(self, numbers: Sequence[int]) -> str:
        """Return words; where several words met so far share a number, the first of them with bars between."""
        return " ".join(self._word(number) for number in numbers)

    def _word(self, number: int) -> str:
        if number <= len(self._words):
            return self._words[number - 1]
        seen = self._seen.get(number, [])
        more = ["…"] if len(seen) > _SHOWN else []
        return "|".join([*seen[:_SHOWN], *more]) or f"#{number}"

    def facts(self) -> dict[str, Any]:
        """Return the sizes of dictionary and buckets."""
        return {**super().facts(), "words": len(self._words), "buckets": self._buckets}


class TokenCodes(TextCodes):
    """Tokens of a transformers tokenizer, with the marks of begin and end that it sets; token t has the number t + 1.

    So 0 is padding whatever the tokenizer's own padding token is, and none is needed.

    Args:
        name: a transformers folder, a hub id or ``builtin``.
        length: of a row.

    Raises:
        UserError: no such tokenizer, or the marks leave no place for a text.
    """

    def __init__(self, name: str, length: int) -> None:
        self.name = name
        self._tokenizer = load_tokenizer(name, ends=False)
        self._control = ControlTokens(self._tokenizer)
        begin, end = self._marks()
        super().__init__(len(self._tokenizer) + 1, length, begin, end)

    def numbers(self, text: str, inside: bool = False) -> list[int]:
        """Return the number of each token; a control token that a text spells is text."""
        if not inside:
            return self._plain(text)
        before, whole = self._plain("a"), self._plain(f"a {text}")
        return whole[len(before) :] if whole[: len(before)] == before else self._plain(text)

    def _plain(self, text: str) -> list[int]:
        return [token + 1 for token in self._control.as_text(text)]

    def _marks(self) -> tuple[list[int], list[int]]:
        """Return the numbers that the tokenizer sets before and after a text."""
        bare, whole = self._plain("a"), [token + 1 for token in self._tokenizer("a")["input_ids"]]
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        raise UserError(f"tokenizer={self.name}: it does not put marks around the tokens of a text; give another tokenizer")

    def shown(self, numbers: Sequence[int]) -> str:
        """Return the text that the tokens stand for."""
        return str(self._tokenizer.decode([number - 1 for number in numbers], skip_special_tokens=True)).strip()

    def facts(self) -> dict[str, Any]:
        """Return the tokenizer's name."""
        return {**super().facts(), "tokenizer": self.name}
