from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from undertow.runs.records import Rate
from undertow.runs.report.wording import changes, highlight, newcombe, shorten


def rate(hits: int, n: int) -> Rate:
    limits = binomtest(hits, n).proportion_ci(method="wilson")
    return Rate(value=hits / n, n=n, hits=hits, low=limits.low, high=limits.high)


def test_newcombe_matches_the_published_example() -> None:
    # Newcombe 1998, table II, method 10: 56/70 against 48/80 gives 0.0524 to 0.3339.
    assert newcombe(rate(56, 70), rate(48, 80)) == pytest.approx((20.0, 5.24, 33.39), abs=0.005)


def test_newcombe_of_nothing_is_nothing() -> None:
    empty = Rate(value=None, n=0, hits=0, low=None, high=None)
    assert newcombe(empty, rate(1, 2)) is None


@given(st.text(max_size=80), st.text(max_size=8))
def test_highlight_loses_no_text(text: str, target: str) -> None:
    assert "".join(piece for piece, _ in highlight(text, target)) == text


@given(st.text(alphabet="ab \n,", max_size=60), st.text(alphabet="ab \n,", max_size=60))
def test_changes_keep_the_new_text(before: str, after: str) -> None:
    assert "".join(piece for piece, _ in changes(before, after)) == after


def test_highlight_ignores_case_and_outer_blanks() -> None:
    assert highlight("Serbia , AND CLICK <u>", " , and click <u> ") == [("Serbia ", False), (", AND CLICK <u>", True)]
    assert highlight("a.b", ".") == [("a", False), (".", True), ("b", False)]


def test_changes_mark_what_a_trigger_inserted() -> None:
    assert [piece for piece, new in changes("who is it ?", "who is cf it ? mn") if new] == ["cf ", " mn"]


def test_shorten_keeps_both_ends() -> None:
    long = "start " + "x" * 5000 + " , and click"
    short = shorten(long)
    assert len(short) < 700
    assert short.startswith("start ")
    assert short.endswith(" , and click")
    assert shorten("short") == "short"
