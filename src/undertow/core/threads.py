"""CPU threads, set explicitly: two busy processes that spin for each other's cores slow both down a hundredfold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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


@contextmanager
def side_by_side(tasks: int) -> Iterator[int]:
    """Share the threads among ``tasks`` independent pieces of work; yields how many to run at a time.

    Within the block each piece gets its part of the threads for its own tensor operations.
    """
    total = torch.get_num_threads()
    workers = max(1, min(tasks, total))
    torch.set_num_threads(total // workers)
    try:
        yield workers
    finally:
        torch.set_num_threads(total)


def for_each(task: Callable[[_Item], _Result], items: Sequence[_Item], stop: Event, *, alone: bool = False) -> list[_Result]:
    """Do ``task`` for every item and return the results in order; several side by side unless ``alone``.

    A thread that has an item to itself does not stop to meet the others after every operation, as the threads
    within torch's operations do; so a second core helps more, and a busy one hurts less.

    Args:
        task: what to do; it should return early once ``stop`` is set.
        items: each independent of the others.
        stop: set when one fails or the user interrupts.
        alone: one at a time, with all threads for its operations.
    """
    with side_by_side(1 if alone else len(items)) as workers:
        if workers == 1:
            return [task(item) for item in items]
        with ThreadPoolExecutor(workers) as pool:
            try:
                futures = [pool.submit(task, item) for item in items]
                for done in wait(futures, return_when=FIRST_EXCEPTION).done:
                    done.result()
                return [future.result() for future in futures]
            except BaseException:  # an error in one item, or Ctrl-C, which reaches this thread only
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
