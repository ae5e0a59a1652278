"""A share with its sample size and interval: no rate is shown without them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Rate:
    """``hits`` of ``n`` with the 95 % Wilson score interval (Wilson 1927).

    With p = hits / n and z = 1.96: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Unlike the
    textbook interval it stays inside [0, 1] and is sound at 0 and n hits.

    Args:
        hits: 0 to n.
        n: samples; with 0 the share and its interval are None.

    Raises:
        ValueError: hits outside 0..n.
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n:
            raise ValueError(f"{self.hits} hits of {self.n} samples: hits must lie in 0..n")

    @property
    def value(self) -> float | None:
        """The share, 0 to 1."""
        return self.hits / self.n if self.n else None

    @property
    def low(self) -> float | None:
        """Lower end of the interval; exactly 0 at 0 hits."""
        return None if not self.n else 0.0 if self.hits == 0 else max(0.0, self._end(-1))

    @property
    def high(self) -> float | None:
        """Upper end of the interval; exactly 1 at n hits."""
        return None if not self.n else 1.0 if self.hits == self.n else min(1.0, self._end(1))

    def _end(self, side: int) -> float:
        p, square = self.hits / self.n, _Z * _Z / self.n
        return (p + square / 2 + side * sqrt(p * (1 - p) * square + square * square / 4)) / (1 + square)

    def as_dict(self) -> dict[str, float | int | None]:
        """Return ``{"value", "n", "hits", "low", "high"}`` for JSON."""
        return {"value": self.value, "n": self.n, "hits": self.hits, "low": self.low, "high": self.high}
