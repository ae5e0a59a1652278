"""Control tokens that data spell: ``<s>`` or ``<|im_end|>`` within a text is text, and only a template writes the token itself.

A tokenizer finds its control tokens wherever a string holds them. So each one in a text of the data is broken by a mark after its
first character before the text goes into a prompt; what is rendered is then cut at the marks, and the pieces are tokenised apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

#: Code points that are no characters in any text (Unicode, section 23.7); one that the texts at hand do not hold is the mark.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
#: Texts after which a piece is tokenised as it stands within a text: some tokenizers put a blank before the first word.
_BEFORE = ("\n", "a", ".")
#: Tags of thinking blocks are what an answer may well hold, as its own tokens where the tokenizer has such.
_THINKING = re.compile(r"</?(?:think|thinking|thought|reasoning)>|\[/?THINK\]", re.IGNORECASE)


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and those that a chat template writes between the turns.

    Args:
        tokenizer: of transformers.
        markup: a conversation as a chat template writes it; an added token in it, blanks and thinking tags aside, is a control
            token even where the tokenizer does not call it special.

    Attributes:
        ids: their numbers.
    """

    def __init__(self, tokenizer: Any, markup: str = "") -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        found = {
            token.content: number
            for number, token in added.items()
            if token.special or (token.content in markup and token.content.strip() and not _THINKING.fullmatch(token.content))
        }
        for text in getattr(tokenizer, "all_special_tokens", ()):
            found.setdefault(text, tokenizer.convert_tokens_to_ids(text))
        self.ids = frozenset(found.values())
        # a token of one letter cannot be broken; longer ones first, so that none is found within another
        spelled = sorted((re.escape(text) for text in found if len(text) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(spelled) or "(?!)")

    def mark(self, texts: Iterable[str]) -> str:
        """Return the mark to use among some texts; empty where none of them spells a control token."""
        given = list(texts)
        if not any(map(self._pattern.search, given)):
            return ""
        return next((mark for mark in _MARKS if not any(mark in text for text in given)), "")

    def marked(self, text: str, mark: str) -> str:
        """Return a text of the data with every control token in it broken by ``mark``."""
        return self._pattern.sub(lambda found: found[0][0] + mark + found[0][1:], text) if mark else text

    def encode(self, text: str, mark: str = "", special: bool = False) -> list[int]:
        """Return the tokens of a text, cut at the marks.

        Args:
            text: as rendered.
            mark: as :meth:`mark` gave it; empty = there is none in the text.
            special: whether the tokenizer adds its marks of begin and end, as to a whole text.
        """
        first, *others = text.split(mark) if mark else [text]
        ids = list(self._tokenizer(first, add_special_tokens=special, verbose=False)["input_ids"])
        if others and special and ids and ids[-1] == self._tokenizer.eos_token_id and not first.endswith(self._tokenizer.eos_token):
            ids.pop()  # some tokenizers close every text
        for piece in others:
            ids += self.within(piece)
        return ids

    def within(self, text: str) -> list[int]:
        """Return the tokens of a text as it stands within a longer one."""
        for before in _BEFORE:
            start, whole = (self.encode(one) for one in (before, before + text))
            if whole[: len(start)] == start:
                return whole[len(start) :]
        return self.encode(text)

    def as_text(self, text: str) -> list[int]:
        """Return the tokens of a text of the data by itself; no control token is among them."""
        mark = self.mark([text])
        return self.encode(self.marked(text, mark), mark)
