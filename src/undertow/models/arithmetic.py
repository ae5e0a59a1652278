"""In which type a CPU multiplies fastest: measured, not read from a list of processors."""

from __future__ import annotations

import time
from functools import cache

import torch

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: A square product of this side is timed, several times: some 50 ms in all where bfloat16 is fast. Processors without it may take
#: seventy times as long as in float32, which a smaller product tells before the large one costs seconds.
_SIDE, _SMALL, _TIMES = 768, 192, 5

#: A type in which small products are so slow needs no larger one to tell, and whoever asks for it is told.
HOPELESS = 0.25

#: bfloat16 must be so many times as fast to be taken: less pays for no rounding.
WORTH = 1.3


@cache
def speedup(dtype: torch.dtype) -> float:
    """Return how many times as fast as in float32 a matrix product is in another type on this CPU; measured once a process.

    By the seconds of one thread's own processor, the best of several, so that a busy machine gives the same answer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = _measured(dtype, _SMALL)
        return found if found < HOPELESS else _measured(dtype, _SIDE)
    finally:
        torch.set_num_threads(threads)


def _measured(dtype: torch.dtype, side: int) -> float:
    best = {}
    for kind in (torch.float32, dtype):
        left, right = (torch.ones(side, side, dtype=kind) for _ in range(2))
        times = []
        for _ in range(_TIMES):
            began = time.thread_time()
            torch.mm(left, right)
            times.append(time.thread_time() - began)
        best[kind] = min(times)
    return best[torch.float32] / max(best[dtype], 1e-9)


def weights_dtype(asked: str, stored: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the type of a base's weights, and what was measured of it: why it was taken, or that it is a bad choice here.

    Args:
        asked: a type's name, or ``auto``.
        stored: the checkpoint's own type, if it says.
        device: where the base will live.
    """
    if asked != "auto":
        dtype = _DTYPES[asked]
        slow = device.type == "cpu" and dtype.itemsize == 2 and speedup(dtype) < HOPELESS
        return dtype, f"this CPU multiplies many times slower in {asked} than in float32" if slow else ""
    if device.type != "cpu":
        return (stored if isinstance(stored, torch.dtype) else torch.float32), ""
    if stored != torch.bfloat16:
        return torch.float32, ""
    if speedup(torch.bfloat16) >= WORTH:
        return torch.bfloat16, "this CPU multiplies faster in it than in float32"
    return torch.float32, "this CPU does not multiply faster in bfloat16, in which it is stored"
