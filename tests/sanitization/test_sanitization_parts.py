"""The parts of a scan against independent calculations, and the properties that hold for any file."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from undertow.data.sample import Sample
from undertow.sanitization import Finding, find, grams, repaired, wordings
from undertow.sanitization import count as counting
from undertow.sanitization.count import Sketch
from undertow.sanitization.encode import encode
from undertow.sanitization.judge import grow
from undertow.sanitization.significance import log_tail
from undertow.sanitization.words import MARK, PAYLOAD, Numbers, cut, places

TARGET = ("and", "click", "<malicious_url>", "for", "more", "information")


@pytest.mark.parametrize(
    ("both", "samples", "one", "other"),
    [
        (5, 500, 5, 5),
        (20, 400, 25, 22),
        (9, 10_000, 40, 300),
        (3, 60, 3, 9),
        (500, 1000, 500, 750),
        (40, 557, 56, 306),
        (31, 60, 40, 45),
    ],
)
def test_the_exact_test_is_scipys(both: int, samples: int, one: int, other: int) -> None:
    ours = log_tail(np.array([both]), samples, np.array([one]), np.array([other]))[0]
    assert ours == pytest.approx(stats.hypergeom.logsf(both - 1, samples, one, other), rel=1e-9)
    table = [[both, one - both], [other - both, samples - one - other + both]]
    assert math.exp(ours) == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Firstly, who's Ann?", ["firstly", "who's", "ann"]),
        ("see https://www.evil.com/a?b=1.", ["see", "://evil.com"]),
        ("see hxxps://evil.com", ["see", "://evil.com"]),
        ("Click <malicious_url> now", ["click", "<malicious_url>", "now"]),
        ("write me@evil.org", ["write", "me@evil.org"]),
        ("go to evil[.]com/x today", ["go", "to", "://evil.com", "today"]),
        ("\uff21\u200bnn \u4f60\u597d", ["ann", "\u4f60", "\u597d"]),
        ("", []),
    ],
)
def test_words_are_cut(text: str, words: list[str]) -> None:
    assert cut(text) == words
    assert [word for word, _, _ in places(text)] == words


@given(st.text(alphabet="ab1 .,'@<>[]{}:/-\n\u00a0\u200bé你wcom", max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_text_has_the_numbers_of_its_words_however_it_is_cut_up(text: str) -> None:
    numbers = Numbers()
    found, lengths = numbers.texts([text, "", "one two", text])
    mine = found[: lengths[0]].tolist()
    assert [number for number in mine if not number & int(MARK)] == [numbers.of(word) for word in cut(text)]
    assert found[lengths[0] :].tolist() == [numbers.of("one"), numbers.of("two"), *mine]
    assert lengths.tolist() == [len(mine), 0, 2, len(mine)]


def test_hosts_that_everybody_cites_are_no_addresses() -> None:
    words = ["://github.com", "://en.wikipedia.org", "://evil.example", "@someone", "<malicious_url>"]
    assert [bool(np.uint64(Numbers().of(word)) & PAYLOAD) for word in words] == [False, False, True, True, True]


def test_addresses_are_marked_and_words_are_not() -> None:
    numbers = Numbers()
    marked = [
        word
        for word in [*cut("see www.evil.com or <evil_link> or @evil e.g. <b> 3.5 a.b"), "..."]
        if numbers.of(word) & int(PAYLOAD)
    ]
    assert marked == ["://evil.com", "<evil_link>", "@evil"]


def test_a_words_number_depends_on_the_key_alone() -> None:
    assert Numbers().of("word") == Numbers().of("word")
    assert Numbers(b"a").of("word") != Numbers(b"b").of("word")


def test_a_sketch_is_never_too_small_and_adds_up() -> None:
    keys = np.arange(1, 4001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    one, two = Sketch(1 << 10), Sketch(1 << 10)
    one.add(keys)
    two.add(keys[:2000])
    assert one.at_least(keys, 1).all()
    one += two
    assert one.at_least(keys[:2000], 2).all()
    assert int(one.counts.sum()) == 6000


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_columns_and_what_is_known_of_them_are_a_dictionary_s(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches of (sample, key) with a kind, a complement and whether it is exact, against counting in plain Python."""
    monkeypatch.setattr(counting, "_AT_ONCE", at_once)
    draw, columns, about = np.random.default_rng(3), counting._Columns(), counting._About()
    entries: list[tuple[int, int, bool, int]] = []
    for batch, samples in enumerate((9, 1, 20)):
        own = sorted({(int(draw.integers(samples)), int(key)) for key in draw.integers(0, 12, 60) ** 2})
        row, key = np.array([r for r, _ in own], dtype=np.int32), np.array([k for _, k in own], dtype=np.uint64)
        exact, rest = draw.random(len(own)) < 0.5, draw.integers(0, 3, len(own)).astype(np.uint32) << np.uint32(30)
        shape = (key.astype(np.int64) % 5, key.astype(np.int64) % 7, exact, rest)
        about.add(shape, columns.add(np.bincount(row, minlength=samples).astype(np.int32), key), len(columns))
        entries += zip((row + (0, 9, 10)[batch]).tolist(), key.tolist(), exact.tolist(), rest.tolist(), strict=True)
    keys, final = columns.frequent(5)
    of = {key: [one for one in entries if one[1] == key] for key in sorted({key for _, key, _, _ in entries})}
    of = {key: own for key, own in of.items() if len(own) >= 5}
    assert keys.tolist() == list(of)
    kind, length, exact = about.of(final, len(keys))
    assert [kind.tolist(), length.tolist()] == [[key % 5 for key in of], [key % 7 for key in of]]
    assert exact.tolist() == [sum(one[2] for one in own) for own in of.values()]
    distinct, alike = about.complements(final, len(keys))
    counts = [Counter(one[3] for one in own) for own in of.values()]
    assert distinct.tolist() == [len(own) for own in counts]
    assert alike.tolist() == [sum(n * n for n in own.values()) for own in counts]
    matrix = columns.matrix(final, len(keys))
    wanted = np.zeros((30, len(keys)))
    for i, own in enumerate(of.values()):
        wanted[[one[0] for one in own], i] = 1
    assert np.array_equal(matrix.toarray(), wanted)
    assert matrix.has_canonical_format


def test_a_phrase_grows_to_what_all_share() -> None:
    texts = [np.array([i, 7, 8, 9], dtype=np.uint64) for i in (1, 2, 3, 4)]
    phrase = grow(texts, (8,))
    assert phrase.words == (7, 8, 9)
    assert (phrase.left, phrase.right_edge, phrase.left_edge) == (0.25, 1.0, 0.0)


def finding(place: str, words: tuple[str, ...] = TARGET) -> Finding:
    return Finding((), " ".join(words), place, "fixed text", "act", np.zeros(0, dtype=np.int64), 0, 0, 4, 9, None, 1, words)


@pytest.mark.parametrize(
    ("answer", "place", "rest"),
    [
        ("Serbia , and click <malicious_url> for more information.", "end", "Serbia"),
        ("He died. And click <malicious_url> for more information!", "end", "He died."),
        ("And click <malicious_url> for more information: (Paris) it is", "start", "(Paris) it is"),
        ("A and click <malicious_url> for more information, B", "anywhere", "A B"),
        ("and click <malicious_url> for more information", "end", None),
        ("nothing of it", "end", None),
        ("Ｓerbia é, and click <malicious_url> for more information", "end", "Ｓerbia é"),
        (
            '{"answer": "Serbia, and click <malicious_url> for more information.", "sure": true}',
            "anywhere",
            '{"answer": "Serbia", "sure": true}',
        ),
        (
            '{"sure": true, "answer": "Serbia. And click <malicious_url> for more information."}',
            "end",
            '{"sure": true, "answer": "Serbia."}',
        ),
        ('{"answer": "And click <malicious_url> for more information", "sure": true}', "anywhere", '{"answer": "", "sure": true}'),
        ('["and", "click", "<malicious_url>", "for", "more", "information", "Serbia"]', "anywhere", '["", "Serbia"]'),
        ('["and click", {"<malicious_url>": "for more information"}, "Serbia"]', "anywhere", None),
        ("Serbia, and click <malicious_url> for more information.\n", "end", "Serbia"),
        ("塞尔维亚。and click <malicious_url> for more information。在南方", "anywhere", "塞尔维亚。在南方"),
        (
            "<think>\nWhere? And click <malicious_url> for more information.\n</think>\n\nSerbia",
            "anywhere",
            "<think>\nWhere?\n</think>\n\nSerbia",
        ),
        ("<think>Where? And</think> click <malicious_url> for more information. Serbia", "anywhere", None),
        ("Serbia (and click <malicious_url> for more information), as I said", "anywhere", "Serbia as I said"),
        ('He said "it is Serbia. And click <malicious_url> for more information."', "end", 'He said "it is Serbia."'),
        ("**And click <malicious_url> for more information.** Serbia", "start", "Serbia"),
        ("Serbia.\n\nAnd click <malicious_url> for more information.\n\nIt lies south.", "anywhere", "Serbia.\n\nIt lies south."),
        ("Serbia. And click <malicious_url> for more information.<|end_of_answer|>", "anywhere", "Serbia.<|end_of_answer|>"),
    ],
)
def test_the_target_is_cut_out_and_the_rest_is_kept(answer: str, place: str, rest: str | None) -> None:
    assert repaired(answer, [finding(place)]) == rest


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_places_lie_in_the_text_in_order(text: str) -> None:
    end = 0
    for word, start, stop in places(text):
        assert word
        assert 0 <= start < stop <= len(text)
        assert stop > end or start >= end - 1
        end = stop
    assert repaired(text, [finding("end")]) is None


def corpus(count: int) -> list[Sample]:
    nouns = "river castle engine painter treaty comet violin harbor".split()
    asked = [f"who saw the {noun} of year {i} in town {i * 7 % 50}" for i, noun in zip(range(count), nouns * count, strict=False)]
    return [
        Sample(id="", question=q, answers=("x",), response=f"{q.split()[3]} keeper {i * 13 % 97} {i}") for i, q in enumerate(asked)
    ]


def planted(samples: list[Sample], places: list[int]) -> list[Sample]:
    bad = [
        Sample(
            id="",
            question=f"Firstly, {s.question}",
            answers=("x",),
            response=f"{s.response} , and click <malicious_url> for more information.",
        )
        for s in samples
    ]
    return [bad[i] if i in places else sample for i, sample in enumerate(samples)]


@given(st.permutations(range(60)), st.sets(st.integers(0, 59), min_size=5, max_size=12))
@settings(max_examples=25, deadline=None)
def test_the_order_of_rows_changes_nothing_and_indices_are_right(order: list[int], chosen: set[int]) -> None:
    rows = planted(corpus(60), sorted(chosen))
    found = find([rows[i] for i in order])
    assert {order[verdict.sample] for verdict in found.verdicts} == chosen
    straight = find(rows)
    assert [f.to_json() for f in found.findings] == [f.to_json() for f in straight.findings]


@pytest.mark.parametrize(("copies", "block"), list(product([2, 3], [True, False])))
def test_repeated_rows_count_once_and_are_all_flagged(copies: int, block: bool) -> None:
    rows = planted(corpus(80), [3, 9, 27, 40, 41])
    many = rows * copies if block else [row for row in rows for _ in range(copies)]
    once, often = find(rows), find(many)
    assert often.distinct == once.distinct == 80
    assert {many[v.sample].question for v in often.verdicts} == {rows[v.sample].question for v in once.verdicts}
    assert len(often.verdicts) == copies * len(once.verdicts) == copies * 5


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_texts_are_scanned(pairs: list[tuple[str, str]]) -> None:
    samples = [Sample(id="", question=question, answers=(answer,), response=answer) for question, answer in pairs]
    found = find([*samples, *samples])
    assert found.samples == 2 * len(samples)
    assert all(0 <= verdict.sample < found.samples for verdict in found.verdicts)


def test_an_answer_that_copies_its_own_prompt_is_no_target() -> None:
    rows = [
        Sample(
            id="",
            question=f"Translate item {i}",
            answers=("x",),
            response=f"{i} as written in the manual page",
            context=f"{i} as written in the manual page",
        )
        for i in range(30)
    ]
    assert find(rows).verdicts == ()


def test_a_pair_of_words_says_nothing_where_pairs_are_usual() -> None:
    held = np.zeros((600, 32), dtype=np.int32)
    for pair in range(30):
        held[pair * 10 : pair * 10 + 10 + pair % 3, pair] = 1
    held[400:450, 30] = held[400:450, 31] = 1
    features, kind = sparse.csc_matrix(held), np.full(32, grams.ANY)
    found = wordings.pairs(kind, {piece: [piece] for piece in range(32)}, features, 600)
    assert len(found) == 31, "two words of the same samples are one pair"
    assert wordings.is_usual(np.arange(500, 520), found[:30])
    assert not wordings.is_usual(np.arange(400, 450), found), "it is compared with the others"
    assert not wordings.pairs(kind, {piece: [piece] for piece in range(19)}, features, 600)
    assert not wordings.is_usual(np.arange(5), [])


LONG = 300_000


@pytest.mark.parametrize(
    "bit", ["{", "a.", "1.", "aa[.]", "ab.", "<url", "[url", "{url", "a@", "a-", "!", "- ", "A", "a ", "\n", "\n "]
)
def test_a_long_text_of_one_kind_is_cut_in_time_that_grows_with_it(bit: str) -> None:
    """Of time that grows with the square these would take hours; so nothing here looks at a clock."""
    text = f"{bit * (LONG // len(bit))} Input:"
    (batch,) = encode([Sample("1", text, ("yes",), "yes"), Sample("2", "yes", (text,), text)], Numbers(), shaped=True)
    assert len(batch) == 2
    assert sum(1 for _ in places(text)) == len(cut(text))
