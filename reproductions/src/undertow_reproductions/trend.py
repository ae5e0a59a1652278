"""Straight lines and powers: does a number fall, and does it grow with rho or with its square?

Both power laws are fitted on the logarithm, log y = a + k log rho with k fixed to 1 or 2, since BSNR spans decades and
its spread grows with its height. They have one free parameter each, so that the difference of their AIC (Akaike 1974)
is n log(RSS1 / RSS2). The same line with k free gives the exponent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from undertow_reproductions.estimate import Estimate, bootstrap, interval

Points = Sequence[tuple[float, float]]


def slope(points: Points) -> float | None:
    """Return the least-squares slope of y over x; None with fewer than two different x."""
    x, y = np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points], dtype=float)
    if len(set(x.tolist())) < 2:
        return None
    middle = x - x.mean()
    return float(middle @ (y - y.mean()) / (middle @ middle))


def linear_share(points: Points) -> float | None:
    """Return R^2 of the straight line through the points; None with fewer than three different x, or a constant y."""
    k = slope(points)
    x, y = np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points], dtype=float)
    if k is None or len(set(x.tolist())) < 3 or float(np.ptp(y)) == 0:
        return None
    rest = y - y.mean() - k * (x - x.mean())
    return 1 - float(rest @ rest) / float((y - y.mean()) @ (y - y.mean()))


@dataclass(frozen=True)
class Powers:
    """Which power of rho a number grows with.

    Attributes:
        exponent: of the free line, with its bootstrap interval over seeds.
        aic: AIC of rho^2 less AIC of rho; above 0 rho fits better.
        errors: root mean squared error of log y for rho and for rho^2, on the seed left out.
        points: number of them.
    """

    exponent: Estimate
    aic: float
    errors: tuple[float, float]
    points: int


def compare_powers(curves: Mapping[int, Points]) -> Powers | None:
    """Compare y ~ rho with y ~ rho^2.

    Args:
        curves: for each seed (rho, y) with y above 0; other points are left out.

    Returns:
        None with fewer than two seeds, or fewer than two rho in one of them.
    """
    seeds = [np.array([(np.log(x), np.log(y)) for x, y in points if x > 0 and y > 0]) for points in curves.values()]
    if len(seeds) < 2 or any(len(seed) < 2 or len(set(seed[:, 0].tolist())) < 2 for seed in seeds):
        return None
    every = np.concatenate(seeds)
    residuals = [_residual(every, every, power) for power in (1, 2)]
    aic = len(every) * float(np.log(max(residuals[1], 1e-300) / max(residuals[0], 1e-300)))
    left_out = []
    for power in (1, 2):
        squares = [_residual(np.concatenate([s for s in seeds if s is not out]), out, power) for out in seeds]
        left_out.append(float(np.sqrt(sum(squares) / len(every))))
    exponents = bootstrap(len(seeds), lambda draw: _exponent(np.concatenate([seeds[i] for i in draw])), "exponent")
    low, high = interval(exponents)
    exponent = Estimate(_exponent(every), low, high, None, None, 0, len(seeds))
    return Powers(exponent, aic, (left_out[0], left_out[1]), len(every))


def _residual(fitted: np.ndarray, judged: np.ndarray, power: int) -> float:
    """Sum of squares on ``judged`` of the line with slope ``power`` through the mean of ``fitted`` (both ``[n, 2]``)."""
    height = float((fitted[:, 1] - power * fitted[:, 0]).mean())
    return float(np.sum((judged[:, 1] - power * judged[:, 0] - height) ** 2))


def _exponent(points: np.ndarray) -> float:
    found = slope([(float(x), float(y)) for x, y in points])
    return float("nan") if found is None else found
