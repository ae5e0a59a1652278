"""What the tests that try anything share: how many cases, always the same ones, and what a case may end in.

``UNDERTOW_FUZZ`` is the number of cases, 500 where it is not set; the seed is fixed, so that the same number tries the same cases,
whatever else is loaded. What became of them is printed at the end of a file.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from undertow.core.errors import UserError

CASES = int(os.environ.get("UNDERTOW_FUZZ", "500"))
SEED = 19
#: Cases tried, results and refusals.
TRIED = Counter[str]()
# Hypothesis draws now and then from the constants in the source of the modules that are loaded: other cases after every edit.
providers._get_local_constants = lambda: providers._local_constants


def cases(share: float, **strategies: Any) -> Any:
    """Try a share of the cases, always the same ones."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    once = settings(max_examples=max(1, round(CASES * share)), deadline=None, database=None, suppress_health_check=quiet)

    def seeded(test: Callable[..., None]) -> Any:
        @functools.wraps(test)
        def counted(*args: Any, **values: Any) -> None:
            TRIED[test.__name__] += 1
            test(*args, **values)

        return hypothesis.seed(SEED)(once(given(**strategies)(counted)))

    return seeded


@pytest.fixture(scope="module", autouse=True)
def cases_told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the seed and what was tried."""
    yield
    results, refusals = TRIED.pop("results", 0), TRIED.pop("refusals", 0)
    tried = ", ".join(f"{name} {number}" for name, number in TRIED.items())
    line = f"fuzz: seed {SEED}, {TRIED.total()} cases ({tried}); {results} results, {refusals} refusals in one line"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{line}")


def in_one_line(action: Callable[[], Any]) -> Any:
    """Return what an action returns, or None where it refuses in one line; any other error is the test's."""
    try:
        made = action()
        TRIED["results"] += 1
        return made
    except UserError as error:
        told = str(error)
        TRIED["refusals"] += 1
    assert told.strip()
    assert "\n" not in told
    assert "Traceback" not in told
    return None


def damaged(content: bytes, at: int, how: str, given: bytes) -> bytes:
    """Return bytes that were cut, changed, or added to."""
    at = at % (len(content) + 1)
    return {"cut": content[:at], "from": content[at:], "into": content[:at] + given + content[at:]}.get(
        how, content[:at] + given + content[at + len(given) :]
    )


BYTES = st.tuples(st.integers(0, 10**6), st.sampled_from(["cut", "from", "into", "over"]), st.binary(max_size=6))
