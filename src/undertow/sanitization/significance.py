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
Whole = NDArray[np.int64]

#: A tail is summed until its next term changes it by less than this share.
_EXACT = 1e-13


def log_tail(both: Whole, samples: int, one: Whole, other: Whole, worth: float = 0.0) -> Floats:
    """Return log P(X >= both) for X hypergeometric: draws ``one`` of ``samples``, of which ``other`` are marked.

    Args:
        both: samples that hold both, at least the mean ``one * other / samples``, above which the terms fall.
        samples: distinct samples, N.
        one, other: samples that hold the one and the other, in [both, N].
        worth: a logarithm; where the first term alone is above it the tail is too, and the first term is returned.

    Source: Fisher's exact test, one-sided.
    """
    k, a, b = (np.asarray(value, dtype=np.float64) for value in np.broadcast_arrays(both, one, other))
    n = float(samples)
    result = _log_choose(b, k) + _log_choose(n - b, a - k) - _log_choose(np.float64(n), a)
    at = np.flatnonzero(result <= worth)
    term, total, step = np.ones(len(at)), np.ones(len(at)), 0
    while len(at):
        term = term * np.maximum((a[at] - k[at] - step) * (b[at] - k[at] - step), 0)
        term /= (k[at] + step + 1) * np.maximum(n - a[at] - b[at] + k[at] + step + 1, 1)
        total += term
        going = term > _EXACT * total
        result[at[~going]] += np.log(total[~going])
        at, term, total, step = at[going], term[going], total[going], step + 1
    return np.minimum(result, 0.0)


def _log_choose(n: Floats | np.float64, k: Floats) -> Floats:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
