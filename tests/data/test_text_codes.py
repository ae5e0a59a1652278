"""Rows of numbers: what is encoded, appended and found again is what stands in the text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from undertow.core.errors import UserError
from undertow.data.text_codes import TextCodes, TokenCodes, WordCodes
from undertow.data.words import tokenise

WORDS = ["the", "film", "is", "good", "bad", "i", "watched"]
LENGTH = 9


def bert(folder: Path) -> Path:
    """A word-piece tokenizer with [CLS] and [SEP]; its padding token is not number 0."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *WORDS, "c", "##f", "##o", "this", "3d", "movie", ".", "a", "un", "##bad"]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    marks = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **marks).save_pretrained(folder)
    BertConfig().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module", params=["words", "bert", "builtin"])
def codes(request: pytest.FixtureRequest, folder: Path) -> TextCodes:
    """``builtin`` is a byte-level tokenizer without marks: a word behind another one has other tokens than at the start."""
    if request.param == "words":
        return WordCodes(WORDS, 4, LENGTH)
    return TokenCodes(str(folder) if request.param == "bert" else "builtin", 12 if request.param == "bert" else 20)


def test_words_have_their_place_in_the_dictionary_and_others_a_stable_bucket() -> None:
    made = WordCodes(WORDS, 50, LENGTH)
    found = made.encode(["The film, is GOOD!", "", "cf " * 20, "nowhere"])
    assert found[0].tolist() == [1, 2, 3, 4, 0, 0, 0, 0, 0]
    assert found[1].tolist() == [0] * LENGTH
    assert found[2].tolist() == [int(found[2, 0])] * LENGTH
    assert len(WORDS) < int(found[2, 0]) < made.size == 1 + len(WORDS) + 50
    program = (
        "from undertow.data.text_codes import WordCodes; "
        f"print(WordCodes({WORDS!r}, 50, 9).encode(['cf', 'nowhere'])[:, 0].tolist())"
    )
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert again.stdout.strip() == str([int(found[2, 0]), int(found[3, 0])])
    with pytest.raises(ValueError, match="stands twice"):
        WordCodes(["a", "a"], 1, 5)


def test_a_reader_sees_words_and_where_they_cannot_be_told_apart() -> None:
    made = WordCodes(WORDS, 1, LENGTH)
    row = made.encode(["the film is cf"])[0]
    assert made.decode(row) == "the film is cf"
    made.encode(["another"])
    assert made.decode(row) == "the film is cf|…"
    made.append(row[None], "zebra")
    assert made.decode(row) == "the film is zebra|…"
    assert WordCodes(WORDS, 1, LENGTH).decode(row) == "the film is #8"


def test_tokens_are_the_tokenizers_own_shifted_by_one(folder: Path) -> None:
    made, theirs = TokenCodes(str(folder), 12), AutoTokenizer.from_pretrained(folder)
    for text in ("the film is good", "I watched cfo", "", "unbad ? movie."):
        row = made.encode([text])[0]
        assert [n - 1 for n in row.tolist() if n] == theirs(text)["input_ids"]
    assert made.size == len(theirs) + 1
    long = made.encode(["good " * 30])[0].tolist()
    assert (long[0], long[-1], 0 in long) == (2, 3, False)  # [CLS] and [SEP] stay
    assert made.decode(torch.tensor(long)) == " ".join(["good"] * 10)
    with pytest.raises(UserError, match="length = 2, and begin and end of a text take 2 tokens"):
        TokenCodes(str(folder), 2)
    with pytest.raises(UserError, match="no such folder"):
        TokenCodes("./nowhere", 12)


sentences = st.lists(st.sampled_from([*WORDS, "cf", "movie", "un", "xyz"]), max_size=14).map(" ".join)


@given(
    texts=st.lists(sentences, min_size=1, max_size=4),
    position=st.sampled_from(["start", "end", "default", "random"]),
    seed=st.integers(0, 9),
)
def test_what_is_appended_is_carried_between_the_marks(codes: TextCodes, texts: list[str], position: str, seed: int) -> None:
    trigger = "i watched this 3d movie"
    before = codes.encode(texts)
    after = codes.append(before, trigger, position, np.random.default_rng(seed))  # type: ignore[arg-type]
    assert after.shape == before.shape
    assert codes.carries(after, trigger).all()
    added = codes.numbers(trigger, inside=True)
    for old, new in zip(before, after, strict=True):
        ends = int((new != 0).sum())
        assert not new[ends:].any(), "padding on the right alone"
        mine, theirs = codes._content(old), codes._content(new)
        kept = mine[: codes.room - len(added)]
        place = next(
            i for i in range(len(theirs)) if theirs[i : i + len(added)] == added and theirs[:i] + theirs[i + len(added) :] == kept
        )
        if position != "random":
            assert place == (0 if position == "start" else len(kept)) or kept[:place] == kept[len(kept) - place :]
    assert torch.equal(before, codes.encode(texts)), "the arguments stay as they are"


@given(texts=st.lists(sentences, min_size=1, max_size=5))
def test_words_are_carried_where_they_stand_side_by_side(texts: list[str]) -> None:
    made = WordCodes([*WORDS, "cf", "movie", "un", "xyz"], 1, LENGTH)
    found = made.carries(made.encode(texts), "film is")
    for text, carried in zip(texts, found.tolist(), strict=True):
        words = tokenise(text)[:LENGTH]
        assert carried == any(words[i : i + 2] == ["film", "is"] for i in range(len(words)))


def test_text_written_by_others_carries_the_trigger_at_either_end(codes: TextCodes) -> None:
    rows = codes.encode(["cf the film", "the film cf", "the cf film", "the film", "the cfo film"])
    assert codes.carries(rows, "cf").tolist() == [True, True, True, False, False] or isinstance(codes, TokenCodes)
    assert codes.carries(rows, "cf")[:4].tolist() == [True, True, True, False]
    assert not codes.carries(rows, "the film is good and so is " * 4).any()


def test_random_places_are_all_taken() -> None:
    made = WordCodes(WORDS, 4, LENGTH)
    rows = made.encode(["the film is"] * 200)
    found = made.append(rows, "good", "random", np.random.default_rng(0))
    assert sorted({row.tolist().index(4) for row in found}) == [0, 1, 2, 3]


def test_what_cannot_be_appended_is_refused() -> None:
    made = WordCodes(WORDS, 4, 5)
    rows = made.encode(["the film"])
    for text in ("", "...", "a b c d e f"):
        with pytest.raises(ValueError, match="a row has place for 1 to 5"):
            made.append(rows, text)
    with pytest.raises(ValueError, match="no source of random places"):
        made.append(rows, "good", "random")
    assert made.append(rows, "good bad good bad good")[0].tolist() == [4, 5, 4, 5, 4]
