"""In which type a CPU multiplies fastest: measured, not read from a list of processors."""

from __future__ import annotations

import time
from functools import cache

import torch

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

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


def weights_dtype(asked: str, stored: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the type of a base's weights, and why where that was measured.

    Args:
        asked: a type's name, or ``auto``.
        stored: the checkpoint's own type, if it says.
        device: where the base will live.
    """
    if asked != "auto":
        return _DTYPES[asked], ""
    if device.type != "cpu":
        return (stored if isinstance(stored, torch.dtype) else torch.float32), ""
    if stored != torch.bfloat16:
        return torch.float32, ""
    if bfloat16_speedup() >= WORTH:
        return torch.bfloat16, "this CPU multiplies faster in it than in float32"
    return torch.float32, "this CPU does not multiply faster in bfloat16, in which it is stored"
