"""In which type a CPU multiplies fastest: measured, not read from a list of processors."""

from __future__ import annotations

import time
from functools import cache

import torch

#: A square product of this side is timed, several times: some 50 ms in all.
_SIDE, _TIMES = 768, 5

#: bfloat16 must be so many times as fast to be taken: less pays for no rounding.
WORTH = 1.3


@cache
def bfloat16_speedup() -> float:
    """Return how many times as fast as in float32 a matrix product is in bfloat16 on this CPU; measured once a process.

    By the seconds of one thread's own processor, the best of several, so that a busy machine gives the same answer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = {}
        for dtype in (torch.float32, torch.bfloat16):
            left, right = (torch.ones(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
            times = []
            for _ in range(_TIMES):
                began = time.thread_time()
                torch.mm(left, right)
                times.append(time.thread_time() - began)
            best[dtype] = min(times)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / max(best[torch.bfloat16], 1e-9)
