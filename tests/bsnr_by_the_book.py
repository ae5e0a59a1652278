"""BSNR as Eq. 2-3 write it, straight from the vectors: what the tests compare with."""

from __future__ import annotations

import numpy as np


def by_the_book(u: np.ndarray, poisoned: list[int], delta: np.ndarray) -> float:
    clean = [k for k in range(len(u)) if k not in poisoned]
    direction = u[poisoned].mean(0) - u[clean].mean(0)
    v = direction / np.linalg.norm(direction)
    along = np.dot(delta, v) * v
    return float(np.linalg.norm(along) ** 2 / np.linalg.norm(delta - along) ** 2)
