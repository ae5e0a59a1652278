"""Texts with classes: files and their faults, who holds what, what the dictionary is made of."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from undertow.config import ClassificationData, validate
from undertow.core.errors import UserError
from undertow.core.registry import call
from undertow.data.generated.critics import ADJECTIVES, NEGATIONS, Critic
from undertow.data.pool import Source
from undertow.data.population import POPULATIONS
from undertow.data.populations.ag_news import CLASSES, ag_news
from undertow.data.populations.ag_news import read as read_news
from undertow.data.populations.digits import digits
from undertow.data.populations.reviews import reviews
from undertow.data.populations.sst2 import read as read_sst2
from undertow.data.populations.sst2 import sst2
from undertow.data.text_codes import WordCodes
from undertow.data.texts import Coding, TextPopulation, Texts, deal_texts, plain
from undertow.data.words import tokenise

#: Options, seed and clients, as a population takes them.
Deal = tuple[ClassificationData, int, int]


def config(name: str = "reviews", clients: int = 4, partition: Any = "iid", seed: int = 0, **data: Any) -> Deal:
    values = {"train": 60, "test": 20, **data, "name": name, "partition": partition}
    checked = validate({"task": "classification", "data": values, "federation": {"clients": clients}}, "test")
    return checked.data, seed, clients


def made(train: int = 100, clients: int = 4, **changes: Any) -> TextPopulation:
    """Texts "sample i of class c", 30 of them for training and the others public; a test of ten."""
    pool = Texts([f"sample s{i} of c{i % 2}" for i in range(train)], np.arange(train) % 2)
    test = Texts([f"sample t{i} of c{i % 2}" for i in range(10)], np.arange(10) % 2)
    coding = Coding(**{"length": 6, "vocabulary": 500, "buckets": 10, **changes})
    return deal_texts(*config(clients=clients, train=30, test=10), Source("made", pool, test, ["no", "yes"]), coding)


def held(population: TextPopulation) -> list[list[int]]:
    return [row.tolist() for k in range(len(population.sizes)) for row in population.client(k).inputs]


# ---- dealing -------------------------------------------------------------------------------------------------------


def test_the_dictionary_knows_public_words_alone() -> None:
    population = made()
    public = population.public
    assert public is not None
    codes = population.vocabulary
    assert isinstance(codes, WordCodes)
    assert len(public.labels) == 70
    known = {word for text in public.inputs for word in tokenise(str(text))}
    assert set(codes._words) == known
    assert population.ids == codes.size == 1 + len(known) + 10
    names = [f"s{i}" for i in range(100)]
    own = [name for name in names if name not in known]
    assert len(own) == 30
    assert all(codes.numbers(name)[0] > len(known) for name in own)
    assert population.report["public"] == 70
    few = made(vocabulary=3).vocabulary
    assert isinstance(few, WordCodes)
    assert few._words == ["of", "sample", "c0"]


def test_without_public_texts_every_word_is_hashed() -> None:
    population = made(train=30)
    assert population.public is None
    assert population.report["words"] == 0
    assert population.ids == 1 + 500 + 10


def test_participants_test_and_public_texts_are_disjoint_and_labels_stay_with_their_texts() -> None:
    population = made(clients=3)
    rows = held(population)
    assert len(population.pool) == 100
    assert sum(population.sizes) == len(rows) == 30
    public = population.public
    assert public is not None
    assert population.kind == "text"
    for k in range(3):
        own = population.client(k)
        classes = [population.vocabulary.decode(row).split()[-1] for row in own.inputs]
        assert [f"c{int(label)}" for label in own.labels] == classes
    assert all(str(text).endswith(f"c{label}") for text, label in zip(public.inputs, public.labels, strict=True))
    assert torch.equal(population.examples(["sample t0 of c0"], [0]).inputs, population.test.inputs[:1])


def test_a_text_occurs_once_and_none_of_the_test_is_trained_on() -> None:
    train = Texts(["A  good film", "a good FILM", "bad film", "a test", "other", "another"], np.array([1, 0, 0, 0, 1, 1]))
    test = Texts(["A test", "a  test", "more"], np.array([0, 1, 1]))
    population = deal_texts(
        *config(clients=2, train=4, test=9), Source("x", train, test, ["n", "p"]), Coding(5, vocabulary=9, buckets=9999)
    )
    assert sum(population.sizes) == 4
    assert (population.report["duplicates_dropped"], population.report["in_test_dropped"]) == (2, 1)
    assert len(population.test) == 2
    assert plain(" A  good\nFILM ") == "a good film"
    trained = {population.vocabulary.decode(row) for row in population.pool.inputs}
    assert trained == {"a good film", "bad film", "other", "another"}


def test_what_is_set_aside_is_nobodys_not_even_public() -> None:
    population = made()
    rows = [row for part in population._clients for row in part]
    left = population.without([rows[0], population._public[0]])
    assert sum(left.sizes) == 29
    assert left.public is not None
    assert len(left.public.labels) == 69
    assert left.report["public"] == 69
    images = digits(*config("digits", train=100, test=50))
    public = images.public
    assert public is not None
    assert public.inputs.shape == (1797 - 150, 1, 8, 8)  # type: ignore[union-attr]
    assert 0 <= float(public.inputs.min()) < float(public.inputs.max()) == 1.0  # type: ignore[union-attr]
    seen = {x.numpy().tobytes() for x in public.inputs}  # type: ignore[union-attr]
    assert not seen & {x.numpy().tobytes() for k in range(4) for x in images.client(k).inputs}
    assert digits(*config("digits", train=1400, test=397)).public is None


@pytest.mark.parametrize("kind", ["shards", "halves"])
def test_reviews_and_images_are_dealt_as_the_lineage_does(kind: str) -> None:
    options = {"kind": kind, "skew": 0.75}
    for population in (
        reviews(*config(partition=options, train=400), public=0),
        digits(*config("digits", partition=options, train=400, test=50)),
    ):
        groups = population.report["client_groups"]
        assert sum(sum(group.values()) for group in groups) == 400
        if kind == "shards":
            assert max(map(len, groups)) <= (2 if len(population.names) == 2 else 6)
            assert {sum(group.values()) for group in groups} == {100}
        else:
            upper = population.names[len(population.names) // 2 :]
            whole = {name: population.report["train_classes"][name] for name in population.names}
            for name in population.names:
                first = sum(group.get(name, 0) for group in groups[:2])
                assert abs(first - whole[name] * (0.75 if name in upper else 0.25)) < 1


# ---- reviews -------------------------------------------------------------------------------------------------------


def test_reviews_repeat_are_balanced_and_noisy_as_asked() -> None:
    population, again = (reviews(*config(train=200, test=100), public=50) for _ in range(2))
    assert torch.equal(population.client(1).inputs, again.client(1).inputs)
    assert (sum(population.sizes), len(population.test)) == (200, 100)
    public = population.public
    assert public is not None
    assert len(public.labels) == 50
    clean, noisy = (reviews(*config(test=200), noise=noise, public=0) for noise in (0.0, 0.25))
    assert torch.equal(clean.test.inputs, noisy.test.inputs)
    assert int((clean.test.labels != noisy.test.labels).sum()) == 50
    assert int(clean.test.labels.sum()) == 100
    other = reviews(*config(test=200, seed=1), noise=0.0, public=0)
    assert not torch.equal(other.test.inputs, clean.test.inputs)


@pytest.mark.parametrize("verdict", [-1, 1])
def test_a_review_says_what_its_verdict_is(verdict: int) -> None:
    critic = Critic(np.random.default_rng(0))
    values = {word: value for value, words in ADJECTIVES.items() for word in words}
    right = asked = 0
    for _ in range(300):
        words = tokenise(critic.review(verdict))
        total = 0
        for before, word in zip(["", *words], words, strict=False):
            total += values.get(word, 0) * (-1 if before in NEGATIONS else 1)
        asked += total != 0
        right += total * verdict > 0
    assert asked > 150
    assert right / asked > 0.9


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("reviews:noise=0.5", {}, r"noise = 0\.5, it must be a share from 0, below 0\.5"),
        ("reviews:length=1", {}, "length = 1, it must be a whole number from 2"),
        ("reviews:buckets=0", {}, "buckets = 0"),
        ("reviews:public=-1", {}, "public = -1"),
        ("reviews", {"path": "x.tsv"}, r"data\.path=x\.tsv: data\.name=reviews reads no file"),
        ("reviews", {"partition": "shards", "train": 7}, "7 samples for 4 x 2 shards, each needs one"),
        ("sst2", {}, "data.path is not set; set data.path=FILE"),
        ("ag-news", {"path": "nowhere.csv"}, r"data\.path=nowhere\.csv: no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, changes: dict[str, Any], said: str) -> None:
    given = config(name, **{"partition": "iid", **changes})
    with pytest.raises(UserError, match=said) as caught:
        call(POPULATIONS, given[0].name, "data.name", *given)
    assert "\n" not in str(caught.value)


# ---- files ---------------------------------------------------------------------------------------------------------

NEWS = {
    "official": '"3","Title, with comma","It said ""so"" and\nwent on"\n"1","","Only this"\n',
    "text,number": '"Title, with comma It said ""so"" and\nwent on",2\nOnly this,0\n',
    "text<TAB>name": '"Title, with comma It said ""so"" and\nwent on"\tBusiness\nOnly this\tWorld\n',
}


@pytest.mark.parametrize("form", list(NEWS))
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_the_three_forms_of_ag_news_read_the_same(form: str, packed: bool, header: bool, tmp_path: Path) -> None:
    content = NEWS[form]
    if header:
        content = {"official": "Class Index,Title,Description\n", "text,number": "text,label\n", "text<TAB>name": "text\tlabel\n"}[
            form
        ] + content
    path = tmp_path / ("news.csv.gz" if packed else "news.csv")
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert read_news(path) == (['Title, with comma It said "so" and\nwent on', "Only this"], [2, 0], form)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1,a,b\n5,c,d\n", "line 2: not 3 fields with a class of 1, 2, 3, 4"),
        ("1,a,b\n2,c\n", "line 2: not 3 fields"),
        ("1,a,b\n2,,\n", "line 2: no text"),
        ("a,0\nb,4\n", "line 2: not 2 fields with a class of 0, 1, 2, 3"),
        ("a\tWorld\nb\tworld\n", "line 2: not 2 fields with a class of World, Sports"),
        ("one\ntwo\n", "line 1: no row of AG News"),
        ('1,a,b\n1,c,d\n2,"x"y,z\n', "line 3: .* correct the quotes"),
        ("", "empty file"),
    ],
)
def test_faults_of_ag_news_name_the_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "news.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        read_news(path)
    assert "\n" not in str(caught.value)
    assert "news.csv" in str(caught.value)


def test_sst2_is_read_as_glue_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text('sentence\tlabel\nit \'s "good" \t1\n\n"bad\t0\n')
    assert read_sst2(path) == (['it \'s "good"', '"bad'], [1, 0], "glue")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("index\tsentence\n0\tx\n", "line 1: columns index, sentence; a header with sentence and label"),
        ("good\t1\n", "line 1: columns good, 1"),
        ("sentence\tlabel\ngood\t1\nbad\t2\n", "line 3: label '2' is neither 0 nor 1"),
        ("sentence\tlabel\ngood\t1\tx\n", "line 2: 3 fields, the header has 2"),
        ("sentence\tlabel\n \t1\n", "line 2: no sentence"),
    ],
)
def test_faults_of_sst2_name_the_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_sst2(path)


def test_a_header_alone_has_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n")
    with pytest.raises(UserError, match="0 training and 0 test texts, each side needs one"):
        sst2(*config("sst2", path=str(path)))


def test_a_file_is_split_where_there_is_no_test(tmp_path: Path) -> None:
    path = tmp_path / "news.csv"
    path.write_text("".join(f"{1 + i % 4},title {i},text {i}\n" for i in range(100)))
    population = ag_news(*config("ag-news", path=str(path), train=40, test=20))
    assert (sum(population.sizes), len(population.test), population.report["public"]) == (40, 20, 40)
    assert population.names == list(CLASSES)
    assert set(population.report["test_classes"].values()) == {5}


def test_the_shared_files_are_read_whole(shared_data: Path) -> None:
    folder = shared_data / "text_classification"
    if not folder.is_dir():
        pytest.skip("no shared texts")
    found = {name: read_news(folder / f"ag_news_{name}.gz") for name in ("test.csv", "train_5000.csv", "dev_10000.tsv")}
    assert [(len(texts), form) for texts, _, form in found.values()] == [
        (7600, "official"),
        (5000, "text,number"),
        (10_001, "text<TAB>name"),
    ]
    assert np.bincount(found["test.csv"][1]).tolist() == [1900] * 4
    texts, labels, _ = read_sst2(folder / "sst2_test.tsv.gz")
    assert (len(texts), sum(labels)) == (872, 444)
