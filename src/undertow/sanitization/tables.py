"""Hashed counts that parties add up: each party's table is an array of whole numbers, and only the sum is used.

A table has one or two rows of cells. A key is counted in one cell of each row and read as the smaller of the two, so a count is
never too small (a count-min sketch; Cormode and Muthukrishnan 2005). Cells are elements of the ring of 32-bit numbers, as secure
summation has them; a noisy sum below zero stands as its residue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undertow.sanitization.grams import FEW, Keys, Places, mixed, mixed_one

Cells = NDArray[np.uint32]
Counts = NDArray[np.int64]

#: Smallest table.
_LEAST = 1 << 12


@dataclass(frozen=True)
class Table:
    """The form of one exchange's message: ``head`` plain counters, then ``rows`` rows of ``cells`` cells.

    Attributes:
        number: of the exchange; tables of different exchanges place a key in different cells.
        cells: a power of two.
        rows: 1 or 2.
        head: counters in front that no key is placed in.
    """

    number: int
    cells: int
    rows: int = 2
    head: int = 0

    @property
    def size(self) -> int:
        """Numbers in the message."""
        return self.head + self.rows * self.cells

    def filled(self, keys: Keys) -> Cells:
        """Return the message that counts each key once for each time it is given."""
        message = np.zeros(self.size, dtype=np.uint32)
        for row in range(self.rows):
            np.add.at(message, self._places(keys, row), np.uint32(1))
        return message

    def read(self, pooled: Cells, keys: Keys) -> Counts:
        """Return the count of each key in a sum of messages; below zero (noise) is zero."""
        if len(keys) <= FEW:
            return np.array([self.read_one(pooled, key) for key in keys.tolist()], dtype=np.int64)
        signed = pooled.view(np.int32)
        found = np.stack([signed[self._places(keys, row)] for row in range(self.rows)])
        counts: Counts = np.maximum(found.min(axis=0), 0).astype(np.int64)
        return counts

    def read_one(self, pooled: Cells, key: int) -> int:
        """Return the same of one key."""
        found = []
        for row in range(self.rows):
            cell = mixed_one(key, 100 + 2 * self.number + row) & (self.cells - 1)
            found.append(int(pooled[cell + self.head + row * self.cells]))
        return max(0, min(count - (count >> 31 << 32) for count in found))

    def over(self, pooled: Cells, least: int) -> int:
        """Return how many cells of the first row hold ``least`` or more."""
        return int((pooled[self.head : self.head + self.cells].view(np.int32) >= least).sum())

    def _places(self, keys: Keys, row: int) -> Places:
        cell = mixed(keys, 100 + 2 * self.number + row) & np.uint64(self.cells - 1)
        return cell.astype(np.int64) + self.head + row * self.cells


def cells_for(samples: int, each: int) -> int:
    """Return a number of cells for ``each`` keys a sample: a power of two."""
    return 1 << max(_LEAST - 1, samples * each - 1).bit_length()


def floored(total: Cells, head: int, least: int) -> Cells:
    """Return a sum without the cells that hold less than ``least``: what is said by so few is not sent back."""
    kept = total.copy()
    kept[head:][kept[head:].view(np.int32) < least] = 0
    return kept


def clipped(sample: Places, keys: Keys, limit: int) -> NDArray[np.bool_]:
    """Tell which keys stay if each sample may give ``limit``: those with the smallest scrambled values, so that the same keys
    are left out of every sample."""
    order = np.lexsort((mixed(keys, 99), sample))
    ordered = sample[order]
    first = np.searchsorted(ordered, ordered)
    kept = np.zeros(len(keys), dtype=bool)
    kept[order] = np.arange(len(keys)) - first < limit
    return kept


def noise(size: int, scale: float, parties: int, draw: np.random.Generator) -> Cells:
    """Return one party's share of two-sided geometric noise; over all ``parties`` the shares add up to it.

    P(X = x) is proportional to exp(-|x| / scale) (Ghosh, Roughgarden, Sundararajan 2009), the difference of two geometric
    numbers; a geometric number is a sum of ``parties`` negative binomials of 1 / parties successes each.

    Args:
        size: numbers.
        scale: L1 sensitivity / ε, > 0.
        parties: that add noise; if some stay away, there is less noise and the promise is weaker.
        draw: the party's own random numbers.
    """
    success = -math.expm1(-1 / scale)
    up, down = (draw.negative_binomial(1 / parties, success, size) for _ in range(2))
    return (up - down).astype(np.int64).astype(np.uint32)


def noise_limit(scale: float, chance: float = 1e-3) -> int:
    """Return the smallest count that two-sided geometric noise of this scale reaches with at most this chance."""
    # P(X >= x) = r^x / (1 + r) with r = exp(-1 / scale)
    return max(1, math.ceil(-math.log(chance * (1 + math.exp(-1 / scale))) * scale))
