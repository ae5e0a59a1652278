"""Freed memory goes back to the system."""

from __future__ import annotations

import psutil
import pytest

from undertow.core import memory


def test_freed_memory_below_a_live_block_goes_back() -> None:
    if memory._malloc_trim() is None:
        pytest.skip("the C library is not glibc")
    process = psutil.Process()
    memory.give_back()
    before = process.memory_info().rss
    blocks = [bytearray(b"x" * 60_000) for _ in range(3000)]
    live = blocks.pop()
    blocks.clear()
    memory.give_back()
    assert process.memory_info().rss < before + (60 << 20)
    assert len(live) == 60_000


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._malloc_trim.cache_clear()
    monkeypatch.setattr("sys.platform", "darwin")
    memory.give_back()
    assert memory._malloc_trim() is None
    memory._malloc_trim.cache_clear()
