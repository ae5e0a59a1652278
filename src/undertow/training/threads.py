"""CPU threads, set explicitly: two busy processes that spin for each other's cores slow both down a hundredfold."""

from __future__ import annotations

import os

import torch


def cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(count: int = 0) -> int:
    """Use ``count`` threads, or with 0 the cores this process may run on; return the number used."""
    chosen = count or cores()
    torch.set_num_threads(chosen)
    return chosen
