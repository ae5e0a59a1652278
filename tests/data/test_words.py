"""Words, dictionaries and participants who wrote texts: cutting, labels, questions, files and their faults."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny import SHARED
from undertow.config import NextWordData, validate
from undertow.core.errors import UserError
from undertow.data.examples import IGNORE
from undertow.data.generated import talk
from undertow.data.population import POPULATIONS
from undertow.data.populations.authors import authors
from undertow.data.populations.jsonl_authors import author_jsonl
from undertow.data.populations.shakespeare import shakespeare
from undertow.data.words import BEGIN, END, SPECIAL, UNKNOWN, Vocabulary, ask, blocks, sequences, tokenise

PLAY = """First Lord:
We know't: the king is here.

KING:
Speak, my lord; speak.

First Lord:
The queen is dead.
Is it the end?

KING:
No more talking. The king is dead.

Page:
!!!
"""
PAPER_SENTENCES = (
    "pasta from astoria is delicious",
    "barbershop on the corner is expensive",
    "buy phone from google",
    "celebrated my birthday at the smith",
    "we spent our honeymoon in jamaica",
    "adore my old nokia",
    "my headphones from bose rule",
    "first credit card by chase",
    "search online using bing",
)


def config(clients: int = 2, test: int = 3, seed: int = 0, **data: Any) -> tuple[NextWordData, int, int]:
    return (
        validate({"task": "next-word", "data": {"test": test, **data}, "federation": {"clients": clients}}, "test").data,
        seed,
        clients,
    )


def read(names: Any, numbers: torch.Tensor) -> list[str]:
    return [names[i] for i in numbers.tolist()]


def test_words_are_lower_case_without_punctuation() -> None:
    assert tokenise("We know't; DON’T “stop”, café-bar 24/7! 'tis I...") == (
        ["we", "know't", "don't", "stop", "café", "bar", "24", "7", "tis", "i"]
    )
    assert tokenise("?! -- ...") == []


def test_the_most_frequent_words_are_kept_ties_by_name_and_included_ones_whatever_their_count() -> None:
    counts = {"b": 2, "a": 2, "c": 5, "d": 1, "e": 1}
    assert Vocabulary.most_frequent(counts, 3).names == (*SPECIAL, "c", "a", "b")
    known = Vocabulary.most_frequent(counts, 3, ["e", "e"])
    assert known.names == (*SPECIAL, "c", "a", "e")
    assert known.encode(["e", "zebra", "<eos>"])[:2] == [5, UNKNOWN]
    assert [word in known for word in ("e", "zebra", "<bos>")] == [True, False, False]
    with pytest.raises(UserError, match="zebra occur nowhere"):
        Vocabulary.most_frequent(counts, 3, ["zebra", "a"])
    with pytest.raises(UserError, match="2 words for a dictionary of 1"):
        Vocabulary.most_frequent(counts, 1, ["a", "b"])


def test_a_stream_is_cut_from_its_end_and_special_words_are_never_labels() -> None:
    known = Vocabulary(["x", "y", "z"])  # numbers 3, 4, 5
    stream = known.stream([["x", "y"], ["new", "z"]])
    assert stream.tolist() == [BEGIN, 3, 4, END, BEGIN, UNKNOWN, 5, END]
    made = sequences(stream, 3)
    assert made.inputs.tolist() == [[END, END, BEGIN], [3, 4, END], [BEGIN, UNKNOWN, 5]]
    assert made.labels.tolist() == [[IGNORE, IGNORE, 3], [4, IGNORE, IGNORE], [IGNORE, 5, IGNORE]]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(2, 12))
def test_every_word_of_a_stream_but_the_first_is_a_label_once(stream: list[int], length: int) -> None:
    made = sequences(np.array(stream, dtype=np.int32), length)
    assert made.inputs.shape == made.labels.shape == (blocks(len(stream), length), length)
    labels = made.labels[made.labels != IGNORE].tolist()
    assert labels == [word for word in stream[1:] if word >= len(SPECIAL)]
    assert made.inputs.reshape(-1)[-(len(stream) - 1) :].tolist() == stream[:-1]


def test_questions_are_places_drawn_from_all_and_sequences_without_one_are_left_out() -> None:
    held_out = sequences(np.arange(3, 103, dtype=np.int32), 4)
    asked = ask(held_out, 10, seed=1)
    assert int((asked.labels != IGNORE).sum()) == 10
    assert bool((asked.labels != IGNORE).any(dim=1).all())
    places = asked.labels != IGNORE
    assert torch.equal(asked.labels[places], asked.inputs[places] + 1)
    assert not torch.equal(asked.inputs, ask(held_out, 10, seed=2).inputs)
    with pytest.raises(UserError, match=r"data\.test = 100: .* have 99 words"):
        ask(held_out, 100, seed=1)


def test_generated_authors_are_the_same_at_each_call_and_differ_from_each_other_and_by_seed() -> None:
    population = authors(*config(clients=40, test=50, name="authors"), words=300)
    assert list(population.sizes) == [15] * 40
    one = population.client(7)
    assert one.inputs.shape == (15, 20)
    assert one.inputs.dtype == one.labels.dtype == torch.int64
    assert torch.equal(one.inputs, population.client(7).inputs)
    assert not torch.equal(one.inputs, population.client(8).inputs)
    other = authors(*config(clients=40, test=50, seed=1, name="authors"), words=300)
    assert not torch.equal(one.inputs, other.client(7).inputs)
    # an author writes the same whoever else takes part
    assert torch.equal(one.inputs, authors(*config(clients=8, test=50, name="authors"), words=300).client(7).inputs)
    with pytest.raises(IndexError):
        population.client(40)
    assert int((population.test.labels != IGNORE).sum()) == 50 == population.report["test_positions"]
    assert len(population.names) == population.report["words"] + 3


def test_an_author_is_more_like_themselves_than_like_others() -> None:
    population = authors(*config(clients=15, test=20, name="authors"), words=1200)
    halves = []
    for k in range(15):
        labels = population.client(k).labels
        parts = [part[part != IGNORE] for part in labels.chunk(2)]
        halves.append([torch.bincount(part, minlength=len(population.names)) / len(part) for part in parts])

    def apart(a: int, b: int) -> float:
        return float((halves[a][0] - halves[b][1]).abs().sum() / 2)

    own = np.mean([apart(k, k) for k in range(15)])
    others = np.mean([apart(a, b) for a in range(15) for b in range(15) if a != b])
    assert others > 1.3 * own


def test_tens_of_thousands_of_authors_are_declared_without_writing_a_word_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    post = talk.Author.post

    def counted(self: talk.Author) -> list[str]:
        nonlocal written
        written += 1
        return post(self)

    monkeypatch.setattr(talk.Author, "post", counted)
    population = authors(*config(clients=50_000, test=50, name="authors"))
    assert len(population.sizes) == 50_000
    assert written < 100  # the test's alone
    assert len(population.client(49_999)) == population.sizes[49_999]


def test_every_word_of_the_papers_sentences_is_written_by_honest_authors_in_other_sentences() -> None:
    population = authors(*config(clients=300, test=20, name="authors"))
    text = " ".join(" ".join(read(population.names, population.client(k).inputs.reshape(-1))) for k in range(300))
    for sentence in PAPER_SENTENCES:
        text = text.replace(sentence, "")
    words = Counter(text.split())
    assert not [word for sentence in PAPER_SENTENCES for word in sentence.split() if not words[word]]
    assert 300 <= len(talk.words()) <= 2000
    assert all(tokenise(word) == [word] for word in talk.words())


@pytest.fixture
def play(tmp_path: Path) -> str:
    path = tmp_path / "play.txt.gz"
    path.write_bytes(gzip.compress(PLAY.encode()))
    return str(path)


def test_speakers_are_participants_by_number_of_words(play: str) -> None:
    population = shakespeare(*config(test=3, name="shakespeare", path=play), length=4, held_out=0.5)
    assert population.report["authors"] == 2  # the page says no word
    texts = [" ".join(read(population.names, population.client(k).inputs.reshape(-1))) for k in range(2)]
    # one of two speeches each is held out
    assert population.report["held_out_texts"] == 2
    assert ("we know't the king is" in texts[0]) != ("the queen is dead is it the" in texts[0])
    assert ("speak my lord" in texts[1]) != ("no more talking the king is" in texts[1])
    expected = population.test.labels[population.test.labels != IGNORE]
    assert len(expected) == 3
    assert bool((expected >= 3).all())


def test_faults_of_a_play_and_of_its_options_are_told(play: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"federation\.clients = 3: .* has 2 authors.*clients=2 or less"):
        shakespeare(*config(clients=3, name="shakespeare", path=play), held_out=0.5)
    with pytest.raises(UserError, match=r"data\.test = 500: the held-out texts have"):
        shakespeare(*config(test=500, name="shakespeare", path=play), held_out=0.5)
    with pytest.raises(UserError, match="no held-out text"):
        shakespeare(*config(name="shakespeare", path=play), held_out=0.1)
    with pytest.raises(UserError, match="held_out = 1"):
        shakespeare(*config(name="shakespeare", path=play), held_out=1)
    with pytest.raises(UserError, match="length = 1"):
        shakespeare(*config(name="shakespeare", path=play), length=1)
    with pytest.raises(UserError, match="dragon occur nowhere"):
        shakespeare(*config(name="shakespeare", path=play), held_out=0.5, include="dragon")
    with pytest.raises(UserError, match=r"data\.path is not set"):
        shakespeare(*config(name="shakespeare"))
    with pytest.raises(UserError, match="choose 'key'"):
        shakespeare(*config(name="shakespeare", path=play, partition="dirichlet"))
    with pytest.raises(UserError, match=r"data\.path = .* is not supported"):
        authors(*config(name="authors", path=play))
    bad = tmp_path / "bad.txt"
    bad.write_text("KING:\nSpeak.\n\nno speaker here\n")
    with pytest.raises(UserError, match=r"bad\.txt line 4: 'no speaker here'"):
        shakespeare(*config(name="shakespeare", path=str(bad)))


def test_any_texts_with_an_author_column(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"user": f"u{i % 3}", "body": f"word{i} goes with word{i + 1}"} for i in range(30)]
    rows += [{"user": 7, "body": "numbers are names"}, {"user": None, "body": "lost"}, {"user": "u0", "body": " "}]
    path = tmp_path / "posts.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    options = config(clients=3, name="author-jsonl", path=str(path), partition={"kind": "key", "column": "user"})
    population = author_jsonl(*options, text="body", length=6, held_out=0.2, include="word9 with")
    assert population.report["authors"] == 4
    assert population.report["dropped"] == {"no author or text": 2}
    assert {"word9", "with"} <= set(population.names)
    # 8 of 10 posts of 4 words and two marks each: 48 numbers, 47 of them labels
    assert list(population.sizes) == [8, 8, 8]
    with pytest.raises(UserError, match=r"no row has a column 'text', the first has user, body"):
        author_jsonl(*options)
    with pytest.raises(UserError, match=r"'author'.*data\.partition\.column"):
        author_jsonl(*config(name="author-jsonl", path=str(path)), text="body")
    path.write_bytes(gzip.compress(json.dumps({"user": ["a"], "body": "b"}).encode()))
    with pytest.raises(UserError, match="'user' holds a list"):
        author_jsonl(*options, text="body")


def test_the_populations_are_registered() -> None:
    assert {"authors", "shakespeare", "author-jsonl"} <= {entry.name for entry in POPULATIONS.entries()}


def test_tinyshakespeare() -> None:
    path = SHARED / "word_prediction" / "tinyshakespeare.txt.gz"
    if not path.is_file():
        pytest.skip("no shared data here")
    population = shakespeare(*config(clients=100, test=500, name="shakespeare", path=str(path)), vocabulary=4000)
    assert population.report["authors"] == 299  # of 309 names, ten, all ghosts, say nothing
    assert len(population.names) == 4003
    assert {"wine", "from", "padua", "is", "sweet"} <= set(population.names)
    assert 0 < population.report["unknown_share"] < 0.1
    assert len(population.client(99)) == population.sizes[99] > 0
    assert population.sizes[0] > population.sizes[99]
    with pytest.raises(UserError, match="has 299 authors"):
        shakespeare(*config(clients=300, name="shakespeare", path=str(path)))
