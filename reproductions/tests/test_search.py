"""The search for the smallest passing step: halving where it is sound, step by step where it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow_reproductions.search import monotone, next_step, smallest


def search(passes: Callable[[int], bool], top: int, start: int = 10, known: dict[int, bool] | None = None) -> dict[int, bool]:
    tried = dict(known or {})
    while (step := next_step(tried, top, start)) is not None:
        assert step not in tried, "no step is run twice"
        assert 1 <= step <= top
        tried[step] = passes(step)
    return tried


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_halving_finds_the_smallest_of_a_monotone_row_in_few_steps(first: int, top: int, start: int) -> None:
    tried = search(lambda step: step >= first, top, start)
    assert smallest(tried) == (first if first <= top else None)
    assert len(tried) <= 13
    assert monotone(tried)


@given(st.sets(st.integers(1, 30)), st.integers(1, 30))
def test_where_a_step_fails_above_one_that_passes_all_below_are_tried(passing: set[int], start: int) -> None:
    tried = search(lambda step: step in passing, 30, start)
    found = smallest(tried)
    if found is None:
        assert not any(tried.values())
    elif monotone(tried):
        assert found == 1 or tried[found - 1] is False
    else:
        assert all(step in tried for step in range(1, found))
        assert found == min(passing)


def test_what_other_runs_showed_starts_the_scan() -> None:
    # 6 failed although 4 passed: 1, 2, 3 are run one by one instead of halving
    known = {4: True, 6: False, 10: True}
    assert not monotone(known)
    order = []
    tried = search(lambda step: order.append(step) or step >= 3, 40, known=known)  # type: ignore[func-returns-value]
    assert order == [1, 2, 3]
    assert smallest(tried) == 3


def test_a_scan_stops_at_the_first_step_that_passes() -> None:
    tried = search(lambda step: step in (2, 8), 40, known={8: True, 9: False})
    assert set(tried) == {1, 2, 8, 9}
    assert smallest(tried) == 2


@pytest.mark.parametrize(("top", "steps"), [(40, [10, 20, 40]), (10, [10]), (5, [5]), (25, [10, 20, 25])])
def test_without_a_passing_step_it_doubles_up_to_the_top(top: int, steps: list[int]) -> None:
    tried = search(lambda step: False, top)
    assert list(tried) == steps
    assert smallest(tried) is None
