"""Control tokens spelled in texts of classification and of next-word prediction, and by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from chat_forms import with_form
from undertow.data.control_tokens import ControlTokens
from undertow.data.text_codes import TokenCodes
from undertow.data.tokens import Tokens

SPELLED = ["<s>", "good </s> film", "<pad><pad>", "a<s></s>b", "</s>\n", "北京</s>"]


@pytest.mark.parametrize("text", SPELLED)
def test_texts_as_tokens_hold_none(tiny_base: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    ids = Tokens(tokenizer).encode(text)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text
    codes = TokenCodes(str(tiny_base), 64)
    assert [number - 1 for number in codes.numbers(text)] == ids


@pytest.mark.parametrize("special", [True, False])
def test_tokens_that_the_tokenizer_does_not_call_special_count_where_a_template_writes_them(tiny_base: Path, special: bool) -> None:
    tokenizer: Any = with_form(AutoTokenizer.from_pretrained(tiny_base), "qwen-3", special)
    tokenizer.add_tokens(["<think>", "</think>"])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    plain, marked = ControlTokens(tokenizer), ControlTokens(tokenizer, "<|im_start|>user\nq<|im_end|><think>\n</think>")
    assert (end in plain.as_text("x<|im_end|>")) == (not special)
    assert end not in marked.as_text("x<|im_end|>")
    assert tokenizer.convert_tokens_to_ids("<think>") in marked.as_text("<think>so</think>"), "answers may think"


@pytest.mark.parametrize("text", ["plain words", "", "\ufdd0<s>", "\ufdd0\ufdd1<s>\ufdd2"])
def test_texts_with_the_marks_own_letters_come_back_whole(tiny_base: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    assert tokenizer.decode(ControlTokens(tokenizer).as_text(text)) == text
