"""A mean over seeds with two intervals, what can be said about it and a bar, and the three answers that a statement may get.

Between seeds: a percentile bootstrap of the mean (Efron 1979), seeds drawn with replacement. Within them: the Wilson
interval of the pooled counts, which knows the number of test questions but not the seeds. A statement is judged by both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

from undertow.core.rng import rng
from undertow.metrics.intervals import Rate

Answer = Literal["holds", "does not hold", "undecided"]

#: Resamples of every bootstrap.
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        value: the mean.
        low, high: 95 % bootstrap interval over seeds.
        wilson_low, wilson_high: 95 % Wilson interval of the pooled counts; None for what is no share.
        n: pooled test questions; 0 for what is no share.
        seeds: seeds behind it.
    """

    value: float
    low: float
    high: float
    wilson_low: float | None
    wilson_high: float | None
    n: int
    seeds: int

    @property
    def alone(self) -> bool:
        """Whether it has no interval at all: one seed, and no counts behind it."""
        return self.seeds < 2 and self.wilson_low is None

    @property
    def least(self) -> float:
        """The lower of the two lower ends."""
        return self.low if self.wilson_low is None else min(self.low, self.wilson_low)

    @property
    def most(self) -> float:
        """The higher of the two higher ends."""
        return self.high if self.wilson_high is None else max(self.high, self.wilson_high)


def bootstrap(seeds: int, statistic: Callable[[np.ndarray], float], purpose: str) -> np.ndarray:
    """Return ``[RESAMPLES]`` values of a statistic over resampled seeds.

    Args:
        seeds: how many there are.
        statistic: takes the drawn seeds' places ``[seeds]``, with repetitions.
        purpose: names the random numbers.
    """
    draws = rng(0, f"bootstrap {purpose}").integers(seeds, size=(RESAMPLES, seeds))
    return np.array([statistic(draw) for draw in draws])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of the values that are finite."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def of_numbers(values: Sequence[float], purpose: str = "mean") -> Estimate | None:
    """Return the mean of one number a seed; None without any."""
    if not values:
        return None
    known = np.array(values, dtype=np.float64)
    low, high = interval(bootstrap(len(known), lambda draw: float(known[draw].mean()), purpose))
    return Estimate(float(known.mean()), low, high, None, None, 0, len(known))


def of_rates(rates: Sequence[Rate], purpose: str = "mean") -> Estimate | None:
    """Return the mean of one share a seed, with the Wilson interval of all their questions; None without any."""
    told = [rate for rate in rates if rate.value is not None]
    found = of_numbers([rate.value for rate in told if rate.value is not None], purpose)
    if found is None:
        return None
    pooled = Rate(sum(rate.hits for rate in told), sum(rate.n for rate in told))
    return Estimate(found.value, found.low, found.high, pooled.low, pooled.high, pooled.n, found.seeds)


def of_differences(pairs: Sequence[tuple[Rate, Rate]], purpose: str = "mean") -> Estimate | None:
    """Return the mean of ``before - after``, two shares a seed; None without any.

    The Wilson ends are those of the pooled shares put together by Newcombe (1998, Interval estimation for the difference between
    independent proportions, method 10). Both shares are of the same questions, so that the true interval is narrower.
    """
    told = [(before, after) for before, after in pairs if before.n and after.n]
    found = of_numbers([before.hits / before.n - after.hits / after.n for before, after in told], purpose)
    if found is None:
        return None
    old, new = (Rate(sum(pair[i].hits for pair in told), sum(pair[i].n for pair in told)) for i in (0, 1))
    p, q = old.hits / old.n, new.hits / new.n
    down = sqrt((p - (old.low or 0.0)) ** 2 + ((new.high or 0.0) - q) ** 2)
    up = sqrt(((old.high or 0.0) - p) ** 2 + (q - (new.low or 0.0)) ** 2)
    return Estimate(found.value, found.low, found.high, p - q - down, p - q + up, new.n, found.seeds)


def at_least(found: Estimate | None, bar: float) -> Answer:
    """Judge ``found >= bar``: it holds if all of both intervals does, fails if none does; undecided without any interval."""
    if found is None or found.alone:
        return "undecided"
    return "holds" if found.least >= bar else "does not hold" if found.most < bar else "undecided"


def at_most(found: Estimate | None, bar: float) -> Answer:
    """Judge ``found <= bar``, as :func:`at_least`."""
    if found is None or found.alone:
        return "undecided"
    return "holds" if found.most <= bar else "does not hold" if found.least > bar else "undecided"


@dataclass(frozen=True)
class Verdict:
    """Whether a statement holds, and the evidence in words."""

    answer: Answer
    evidence: str


def overall(answers: Sequence[Answer]) -> Answer:
    """Return the answer on all parts together: one that does not hold decides, then one that is undecided."""
    if "does not hold" in answers:
        return "does not hold"
    return "holds" if answers and set(answers) == {"holds"} else "undecided"
