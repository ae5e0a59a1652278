"""Generators made from public data: counted n-grams and fitted mixtures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nltk.lm.counter import NgramCounter
from nltk.lm.models import WittenBellInterpolated
from nltk.lm.vocabulary import Vocabulary
from orders import TEXTS, text_order
from scipy.stats import chisquare
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from undertow.core.errors import UserError
from undertow.generators.contract import Order, Written, make_generator
from undertow.generators.ngram import BEGIN, END, Ngrams, tokenise
from undertow.listing import list_methods

WORDS = [tokenise(text) for own in TEXTS.values() for text in own]


def test_all_generators_are_listed() -> None:
    assert [method.name for method in list_methods("generators")] == ["causal-lm", "endpoint", "file", "mixture", "ngram"]


# --- n-grams ----------------------------------------------------------------------------------------------------


@given(st.text())
def test_tokens_joined_are_the_text_with_single_blanks(text: str) -> None:
    plain = " ".join(text.split())
    assert "".join(tokenise(text)).strip() == plain
    assert all(token.strip() for token in tokenise(text))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_probabilities_are_those_of_nltk(n: int) -> None:
    ours = Ngrams(WORDS, n)
    rows = [[*[BEGIN] * (n - 1), *tokens, END] for tokens in WORDS]
    grams = [tuple(row[i - k : i + 1]) for row in rows for i in range(n - 1, len(row)) for k in range(n)]
    theirs = WittenBellInterpolated(
        n, vocabulary=Vocabulary([token for row in rows for token in row], unk_cutoff=1), counter=NgramCounter([grams])
    )
    histories = [row[i - n + 1 : i] for row in rows for i in range(n - 1, len(row))] + [["never", " seen", " film"][: n - 1]]
    for history in histories:
        for token in (" film", " dull", END, "."):
            assert ours.probability(token, history) == pytest.approx(theirs.unmasked_score(token, tuple(history)), abs=1e-12)


@pytest.mark.parametrize("history", [[], [" a"], [" a", " dull"], [" a", " dull", " film"], ["never"]])
def test_probabilities_of_all_tokens_sum_to_one(history: list[str]) -> None:
    tokens = {END, *(token for row in WORDS for token in row)}
    assert sum(Ngrams(WORDS, 3).probability(token, history) for token in tokens) == pytest.approx(1)


def test_a_sample_is_drawn_from_these_probabilities() -> None:
    model = Ngrams(WORDS, 3)
    drawn = Counter()
    second = Counter()
    draw = np.random.default_rng(0)
    for _ in range(12000):
        row = [*model.sample(draw), END]
        drawn[row[0]] += 1
        if row[0] == " a":
            second[row[1]] += 1
    tokens = sorted({END, *(token for row in WORDS for token in row)})
    for counts, history in ((drawn, [BEGIN, BEGIN]), (second, [BEGIN, " a"])):
        wanted = np.array([model.probability(token, history) * counts.total() for token in tokens])
        seen = np.array([counts[token] for token in tokens])
        assert seen.sum() == counts.total()
        assert wanted.min() > 5
        assert chisquare(seen, wanted).pvalue > 1e-3


def test_texts_are_new_and_in_turn_and_the_same_again() -> None:
    order = text_order(41)
    made = make_generator("ngram:order=2").write(order)
    assert isinstance(made.inputs, list)
    assert made.labels == [i % 2 for i in range(41)]
    public = {text.casefold() for own in TEXTS.values() for text in own}
    assert not public & {text.casefold() for text in made.inputs}
    assert made.report["verbatim"] == 0
    words = {label: {token for text in own for token in tokenise(text)} for label, own in TEXTS.items()}
    for text, label in zip(made.inputs, made.labels, strict=True):
        assert set(tokenise(text)) <= words[label]
    assert make_generator("ngram:order=2").write(order) == made
    assert make_generator("ngram:order=2").write(replace(order, seed=4)) != made


def test_texts_may_repeat_and_are_counted_where_that_is_asked() -> None:
    made = make_generator("ngram:novel=false").write(text_order(100))
    assert len(made.inputs) == 100
    public = {text.casefold() for own in TEXTS.values() for text in own}
    assert made.report["verbatim"] == sum(text.casefold() in public for text in made.inputs) > 10


def test_where_nothing_new_can_be_written_it_says_so() -> None:
    order = text_order(4, public=False)
    known = Written(["only this", "only that"], [0, 1])
    with pytest.raises(UserError, match="novel=false"):
        make_generator("ngram:order=8").write(replace(order, public=known))
    assert make_generator("ngram:order=8:novel=false").write(replace(order, public=known)).inputs == ["only this", "only that"] * 2


def test_lengths_are_like_those_of_the_public_texts() -> None:
    draw = np.random.default_rng(1)
    texts = [" ".join(draw.choice(list("abcdefgh"), size=size)) for size in draw.integers(10, 15, size=200)]
    order = replace(text_order(200), names=("one",), public=Written(texts, [0] * 200))
    made = make_generator("ngram").write(order)
    lengths = [len(text.split()) for text in made.inputs]
    assert 10 <= np.median(lengths) <= 15
    assert max(lengths) <= 15


@pytest.mark.parametrize("name", ["ngram", "mixture"])
def test_without_public_data_the_next_action_is_told(name: str) -> None:
    order = Order("text" if name == "ngram" else "images", "thing", ("a", "b"), 4, (1, 2, 2), 0)
    with pytest.raises(UserError, match=r"lower data\.train"):
        make_generator(name).write(order)
    inputs = ["x y"] if name == "ngram" else torch.rand(1, 1, 2, 2)
    with pytest.raises(UserError, match="of class 'b'; lower"):
        make_generator(name).write(replace(order, public=Written(inputs, [0])))


@pytest.mark.parametrize(
    "name", ["ngram:order=0", "ngram:order=9", "ngram:novel=2", "mixture:components=0", "mixture:dimensions=1.5"]
)
def test_options_outside_their_rule_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"synthetic\.generator"):
        make_generator(name)


# --- mixtures ---------------------------------------------------------------------------------------------------


def digits(per_class: int, seed: int = 0) -> tuple[Order, np.ndarray, np.ndarray]:
    """An order with so many public images a class, and the images and labels that are not public."""
    found = load_digits()
    draw = np.random.default_rng(seed)
    rows = np.concatenate([draw.permutation(np.flatnonzero(found.target == c))[:per_class] for c in range(10)])
    rest = np.setdiff1d(np.arange(len(found.target)), rows)
    images = torch.from_numpy(found.images).to(torch.float32)[:, None] / 16
    public = Written(images[rows], found.target[rows].tolist())
    order = Order("images", "scanned digit", [str(c) for c in range(10)], 405, (1, 8, 8), 0, public)
    return order, images[rest].flatten(1).numpy(), found.target[rest]


@pytest.mark.parametrize(("per_class", "least"), [(2, 0.6), (40, 0.88)])
def test_digits_that_it_writes_teach_what_digits_are(per_class: int, least: float) -> None:
    order, images, labels = digits(per_class)
    made = make_generator("mixture").write(order)
    assert isinstance(made.inputs, torch.Tensor)
    assert made.inputs.shape == (405, 1, 8, 8)
    assert made.inputs.dtype == torch.float32
    assert 0 <= made.inputs.min() <= made.inputs.max() <= 1
    assert made.labels == [i % 10 for i in range(405)]
    learned = LogisticRegression(max_iter=200).fit(made.inputs.flatten(1).numpy(), made.labels)
    assert learned.score(images, labels) > least
    again = make_generator("mixture").write(order)
    assert torch.equal(again.inputs, made.inputs)
    assert not torch.equal(make_generator("mixture").write(replace(order, seed=1)).inputs, made.inputs)


def test_draws_have_the_mean_and_covariance_of_the_class() -> None:
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(4, 4)) * 0.05
    public = torch.from_numpy(0.5 + draw.normal(size=(500, 4)) @ mix).to(torch.float32).reshape(500, 1, 2, 2).clamp(0, 1)
    order = Order("images", "patch", ("a",), 20000, (1, 2, 2), 0, Written(public, [0] * 500))
    made = make_generator("mixture:components=1:dimensions=4").write(order).inputs
    assert isinstance(made, torch.Tensor)
    assert torch.allclose(made.mean(0), public.mean(0), atol=3e-3)
    wanted = torch.cov(public.flatten(1).T) + 1e-3 * torch.eye(4)
    assert torch.allclose(torch.cov(made.flatten(1).T), wanted, atol=6e-4)


def test_equal_images_and_fewer_images_than_dimensions_are_fine_and_one_is_too_few() -> None:
    order = Order("images", "patch", ("a", "b"), 7, (1, 2, 2), 0)
    same = replace(order, public=Written(torch.full((60, 1, 2, 2), 0.5), [0, 1] * 30))
    made = make_generator("mixture").write(same)
    assert len(made.labels) == 7
    assert made.report["variance_kept"] == 0
    with pytest.raises(UserError, match="class 'b' has one image"):
        make_generator("mixture").write(replace(order, public=Written(torch.rand(3, 1, 2, 2), [0, 0, 1])))
