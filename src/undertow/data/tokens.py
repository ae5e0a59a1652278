"""Texts cut into the tokens of a language model instead of words: the dictionary that the model came with."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undertow.core.errors import UserError
from undertow.data.control_tokens import ControlTokens
from undertow.data.tokenizer import load_tokenizer
from undertow.data.words import tokenise


class Tokens:
    """A tokenizer in the place of :class:`undertow.data.words.Vocabulary`; nothing is outside it.

    Args:
        tokenizer: of transformers, with a token that ends a text.

    Attributes:
        names: every token as the tokenizer writes it, in the order of its number.
        special: numbers that are never a label.
        fill: what stands where a sequence has no text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._control = ControlTokens(tokenizer)
        self.names: tuple[str, ...] = tuple(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
        self.fill = int(tokenizer.eos_token_id)
        self.special: Collection[int] = frozenset({*map(int, tokenizer.all_special_ids), self.fill})
        self._begin = self.fill if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, text: str) -> list[int]:
        """Return the number of each token of a text, without marks of begin and end; a control token that it spells is text."""
        return self._control.as_text(text)

    def stream(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """Return texts as one row of numbers, each between the mark of the begin and that of the end."""
        found: list[int] = []
        for text in texts:
            found += (self._begin, *self.encode(text), self.fill)
        return np.array(found, dtype=np.int32)

    def sentence(self, text: str) -> list[int]:
        """Return the tokens of a sentence as they stand within a text, up to the first one of its last word that is not blank.

        Later tokens of that word say nothing: a model that never saw the sentence completes a word from its beginning.

        Raises:
            UserError: the last word has no token of its own, or the sentence is one token.
        """
        before = self.encode("a")
        start, whole = self._after(before, f"a {text.rpartition(' ')[0]}"), self._after(before, f"a {text}")
        same = whole[: len(start)] == start
        last = next((i for i in range(len(start), len(whole)) if self.tokenizer.decode([whole[i]]).strip()), None) if same else None
        if not last:
            raise UserError(
                f"backdoor 'sentence': the tokenizer does not cut '{text}' before its last word; write another sentence"
            )
        return whole[: last + 1]

    def _after(self, before: list[int], text: str) -> list[int]:
        found = self.encode(text)
        return found[len(before) :] if found[: len(before)] == before else found


def load_tokens(name: str) -> Tokens:
    """Load the tokenizer of a language model: a transformers folder, a hub id, or ``builtin``.

    Raises:
        UserError: there is none, or it has no mark of the end.
    """
    return Tokens(load_tokenizer(name))


def readable(texts: Iterable[str]) -> list[str]:
    """Return the texts that have a word in them, blanks and line ends as single blanks."""
    return [" ".join(text.split()) for text in texts if tokenise(text)]
