"""The exact test behind every finding.

Null hypothesis: the samples that hold the target are a random draw from the file, whatever their prompts say. Then the
number that also hold a given prompt feature is hypergeometric, and its upper tail is Fisher's exact one-sided test.
Bonferroni over all (feature, piece) pairs of the file bounds the chance of a single false pair.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]

#: Terms of the tail that are summed; from three times the mean on, each is less than half its predecessor.
_TERMS = 64


def log_tail(both: NDArray[np.int64], samples: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> Floats:
    """Return log P(X >= both) for X hypergeometric: draws ``one`` of ``samples``, of which ``other`` are marked.

    Args:
        both: samples that hold both; more than twice its mean ``one * other / samples``, where the sum converges fast.
        samples: distinct samples, N.
        one, other: samples that hold the one and the other, in [both, N].

    Source: Fisher's exact test, one-sided.
    """
    k, n, a, b = (np.asarray(value, dtype=np.float64) for value in (both, samples, one, other))
    log_first = _log_choose(b, k) + _log_choose(n - b, a - k) - _log_choose(n, a)
    term = np.ones(np.broadcast_shapes(k.shape, a.shape, b.shape))
    total = term.copy()
    for j in range(_TERMS):
        term = term * np.maximum((a - k - j) * (b - k - j), 0) / ((k + j + 1) * np.maximum(n - a - b + k + j + 1, 1))
        total += term
    return np.minimum(log_first + np.log(total), 0.0)


def _log_choose(n: Floats, k: Floats) -> Floats:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
