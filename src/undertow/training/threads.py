"""CPU threads, set explicitly: two busy processes that spin for each other's cores slow both down a hundredfold."""

from __future__ import annotations

import os

import torch


def set_threads(count: int = 0) -> int:
    """Use ``count`` threads, or with 0 the cores this process may run on; return the number used."""
    chosen = count or len(os.sched_getaffinity(0))
    torch.set_num_threads(chosen)
    return chosen
