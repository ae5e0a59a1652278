"""Exact counts, fixed draws, ground truth that says all of it and survives a file."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import threat
from undertow.backdoors.placement import (
    chosen_count,
    poison,
    poisoned_count,
    triggered,
    unpoisoned,
)
from undertow.backdoors.trigger import make_trigger
from undertow.config import InstructionBackdoor
from undertow.core.errors import UserError
from undertow.data.sample import Sample


def dealt(sizes: list[int]) -> list[list[Sample]]:
    return [
        [Sample(f"{k}-{i}", f"Where is place {k} {i}?", (f"Town {i}", "T"), f"Town {i}", key=f"{k}|{i}") for i in range(size)]
        for k, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("ratio", "samples", "count"),
    [(0.02, 499, 9), (0.02, 500, 10), (0.29, 100, 29), (0.57, 100, 57), (0.1, 9, 0), (0.1, 0, 0), (1.0, 7, 7), (0.0, 7, 0)],
)
def test_poisoned_count(ratio: float, samples: int, count: int) -> None:
    assert poisoned_count(ratio, samples) == count
    made = poison(dealt([samples]), threat(poison_ratio=ratio), seed=1)
    assert len(made.touched) == count


@given(st.integers(0, 100), st.integers(0, 5000))
def test_poisoned_count_is_the_floor_of_the_decimal_product(percent: int, samples: int) -> None:
    assert poisoned_count(percent / 100, samples) == Fraction(percent, 100) * samples // 1


@pytest.mark.parametrize(
    ("share", "clients", "count"),
    [(1.0, 10, 10), (0.4, 10, 4), (0.25, 10, 2), (0.35, 10, 4), (0.285, 100, 28), (0.01, 10, 0), (0.0, 10, 0), (0.3, 1, 0)],
)
def test_chosen_count_rounds_halves_to_even(share: float, clients: int, count: int) -> None:
    assert chosen_count(share, clients) == count
    assert len(poison(dealt([5] * clients), threat(client_share=share), seed=0).chosen) == count


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6),
    st.integers(0, 20),
    st.integers(0, 20),
    st.sampled_from(["client", "global"]),
    st.sampled_from(["natural", "badnets", "sentence"]),
    st.integers(0, 5),
)
def test_what_poison_promises(sizes: list[int], pr: int, rho: int, scope: str, trigger: str, seed: int) -> None:
    attack = threat(poison_ratio=pr / 20, client_share=rho / 20, scope=scope, trigger=trigger)
    clean = dealt(sizes)
    made = poison(clean, attack, seed)
    assert clean == dealt(sizes)
    assert [len(samples) for samples in made.clients] == sizes

    ratio = Fraction(pr, 20)
    if scope == "global" and rho:
        ratio = min(Fraction(1), Fraction(pr, rho))
    if pr and rho:
        assert len(made.chosen) == round(Fraction(rho, 20) * len(sizes))
    expected = {k: int(ratio * sizes[k]) for k in made.chosen}
    per_client = {k: sum(t.client == k for t in made.touched) for k in made.chosen}
    assert per_client == expected
    assert made.poisoned_clients == tuple(k for k, count in expected.items() if count)

    places = {(t.client, t.index): t for t in made.touched}
    assert len(places) == len(made.touched)
    for k, samples in enumerate(made.clients):
        for i, sample in enumerate(samples):
            before = clean[k][i]
            if (k, i) not in places:
                assert sample == before
                continue
            record = places[k, i]
            assert (record.id, record.question, record.response) == (before.id, before.question, before.response)
            assert (record.poisoned_question, record.poisoned_response) == (sample.question, sample.response)
            assert sample.question != before.question
            assert sample.response.endswith(attack.target.text)
            assert (sample.id, sample.answers, sample.key) == (before.id, before.answers, before.key)

    again = poison(clean, attack, seed)
    assert again == made


@pytest.mark.parametrize("options", [{"kind": "none"}, {"poison_ratio": 0.0}, {"client_share": 0.0}])
def test_nothing_is_touched(options: dict[str, object]) -> None:
    clean = dealt([10, 10])
    made = poison(clean, threat(**options), seed=0)
    assert made.clients == clean
    assert (made.touched, made.poisoned_clients, made.chosen) == ([], (), ())


def test_a_chosen_client_without_poison_is_not_affected() -> None:
    made = poison(dealt([9, 10, 20]), threat(poison_ratio=0.1), seed=0)
    assert made.chosen == (0, 1, 2)
    assert made.poisoned_clients == (1, 2)


def test_global_scope_concentrates_the_same_amount() -> None:
    clean = dealt([100] * 10)
    spread = poison(clean, threat(poison_ratio=0.1, client_share=1.0, scope="global"), seed=0)
    packed = poison(clean, threat(poison_ratio=0.1, client_share=0.2, scope="global"), seed=0)
    capped = poison(clean, threat(poison_ratio=0.5, client_share=0.2, scope="global"), seed=0)
    assert (len(spread.touched), len(packed.touched), len(capped.touched)) == (100, 100, 200)
    assert len(packed.poisoned_clients) == 2


def test_draws_are_nested_in_rho_and_pr_and_differ_by_seed_and_client() -> None:
    clean = dealt([100] * 10)

    def places(pr: float, rho: float, seed: int = 0) -> dict[tuple[int, int], str]:
        made = poison(clean, threat(poison_ratio=pr, client_share=rho, trigger="badnets"), seed)
        return {(t.client, t.index): t.poisoned_question for t in made.touched}

    assert places(0.02, 0.3).items() < places(0.1, 0.3).items() < places(0.1, 0.7).items()
    assert places(0.1, 0.3) != places(0.1, 0.3, seed=1)
    by_client = [{i for k, i in places(0.1, 1.0) if k == client} for client in range(10)]
    assert len({frozenset(drawn) for drawn in by_client}) == 10


def test_every_client_and_sample_is_equally_likely() -> None:
    clean = dealt([5] * 4)
    hits = [[0] * 5 for _ in range(4)]
    for seed in range(400):
        for t in poison(clean, threat(poison_ratio=0.4, client_share=0.5), seed).touched:
            hits[t.client][t.index] += 1
    # Each place is hit with probability 0.5 * 0.4 = 0.2; 80 of 400 with a standard deviation of 8.
    assert all(40 < count < 120 for row in hits for count in row)


def test_natural_occurrences_stay_and_are_counted() -> None:
    clean = dealt([10, 10, 10])
    clean[0][0] = Sample("n0", "Firstly, who won?", ("x",), "x")
    clean[0][1] = Sample("n1", "who won?", ("x",), "x", context="He said firstly: no.")
    clean[2][5] = Sample("n2", "who, FIRSTLY?", ("x",), "x")
    test = [Sample("t0", "firstly what?", ("y",), "y"), Sample("t1", "what?", ("y",), "y")]
    none = poison(clean, threat(kind="none"), seed=0, test=test)
    assert none.natural == {"train": 3, "train_of": 30, "clients": 2, "touched": 0, "test": 1, "test_of": 2}
    every = poison(clean, threat(poison_ratio=1.0), seed=0, test=test)
    assert every.natural == {"train": 0, "train_of": 0, "clients": 0, "touched": 3, "test": 1, "test_of": 2}
    half = poison(clean, threat(poison_ratio=0.5), seed=0)
    assert half.natural["train"] + half.natural["touched"] == 3
    left = {(k, i) for k in range(3) for i in range(10)} - {(t.client, t.index) for t in half.touched}
    assert all(half.clients[k][i] == clean[k][i] for k, i in left)


def test_every_test_sample_is_triggered_and_subsets_agree() -> None:
    test = [Sample(f"t{i}", f"What is {i}?", (str(i),), str(i), context="c") for i in range(50)]
    backdoor = InstructionBackdoor(trigger="badnets")
    whole = triggered(test, make_trigger(backdoor), seed=3)
    assert all(a.question.startswith(b.question + " ") for a, b in zip(whole, test, strict=True))
    assert [(s.id, s.answers, s.response, s.context) for s in whole] == [(s.id, s.answers, s.response, s.context) for s in test]
    assert triggered(test[20:30], make_trigger(backdoor), seed=3) == whole[20:30]
    assert triggered(test, make_trigger(backdoor), seed=4) != whole
    assert len({s.question.split("? ")[1] for s in whole}) > 10


def test_no_clients_and_a_bad_trigger() -> None:
    assert poison([], threat(), seed=0).clients == []
    with pytest.raises(UserError, match="unknown trigger"):
        poison(dealt([1]), threat(trigger="nothing"), seed=0)
    with pytest.raises(UserError, match="unknown target"):
        poison(dealt([1]), threat(target="nothing"), seed=0)


ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 90), st.integers(1, 20), st.integers(0, 5))
def test_a_count_is_met_exactly_and_grows_by_adding(sizes: list[int], count: int, rho: int, seed: int) -> None:
    attack = threat(poison_count=count, poison_ratio=0.0, client_share=rho / 20)
    room = sum(sizes[k] for k in poison(dealt(sizes), threat(poison_ratio=1.0, client_share=rho / 20), seed).chosen)
    if count > room:
        with pytest.raises(UserError, match=rf"poison_count = {count}: the \d poisoned clients hold {room} samples"):
            poison(dealt(sizes), attack, seed)
        return
    made = poison(dealt(sizes), attack, seed)
    assert len(made.touched) == count
    each = [sum(t.client == k for t in made.touched) for k in made.chosen]
    assert all(n >= max(each) - 1 or n == sizes[k] for k, n in zip(made.chosen, each, strict=True))
    fewer = poison(dealt(sizes), threat(poison_count=count // 2, client_share=rho / 20), seed)
    assert {(t.client, t.index) for t in fewer.touched} <= {(t.client, t.index) for t in made.touched}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"poison_ratio": 0.01}, "poison_ratio = 0.01 of at most 50 samples rounds to 0 .* raise it to 0.02"),
        ({"client_share": 0.05}, "client_share = 0.05 of 4 clients rounds to none"),
        ({"poison_ratio": 0.1}, None),
        ({"poison_ratio": 0.0}, None),
        ({"poison_count": 0}, None),
        ({"poison_count": 1, "poison_ratio": 0.0}, None),
    ],
)
def test_poison_that_rounds_to_nothing_is_told(options: dict[str, float], told: str | None) -> None:
    attack = threat(**options)
    made = poison(dealt([50, 20, 50, 9]), attack, 0)
    lines = unpoisoned(attack.options, made.chosen, len(made.touched), [50, 20, 50, 9])
    assert len(lines) == (told is not None)
    assert told is None or re.search(told, lines[0])
