"""Hashed counts: sums, the order of parties, what comes back, and the noise."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.sanitization.grams import mixed, mixed_one
from undertow.sanitization.questions import about, about_one
from undertow.sanitization.tables import Table, cells_for, clipped, floored, noise, noise_limit

KEYS = st.lists(st.integers(0, 2**64 - 1), max_size=60)


@given(st.lists(KEYS, min_size=1, max_size=4), st.randoms())
def test_the_sum_of_messages_holds_every_count_in_any_order(parties: list[list[int]], chance) -> None:
    table = Table(3, 1 << 14, 2, 5)
    messages = [table.filled(np.array(keys, dtype=np.uint64)) for keys in parties]
    total = np.sum(messages, axis=0, dtype=np.uint32)
    chance.shuffle(messages)
    assert (np.sum(messages, axis=0, dtype=np.uint32) == total).all()
    wanted = Counter(key for keys in parties for key in keys)
    asked = np.array(sorted(wanted), dtype=np.uint64)
    found = table.read(total, asked)
    assert all(count >= wanted[int(key)] for key, count in zip(asked, found, strict=True)), "never too small"
    assert total[:5].tolist() == [0] * 5
    assert total[5:].sum() == 2 * sum(map(len, parties))


def test_a_second_row_makes_wrong_counts_rare() -> None:
    keys = np.random.default_rng(0).integers(0, 2**63, 2000).astype(np.uint64)
    asked = np.random.default_rng(1).integers(0, 2**63, 2000).astype(np.uint64)
    wrong = []
    for rows in (1, 2):
        table = Table(1, 1 << 13, rows)
        wrong.append(int((table.read(table.filled(keys), asked) > 0).sum()))
    # 2000 keys in 8192 cells: a cell is taken with p = 0.22, both with 0.05
    assert 350 < wrong[0] < 520
    assert 50 < wrong[1] < 150


def test_a_residue_under_zero_reads_as_zero() -> None:
    table = Table(0, 1 << 12, 1)
    key = np.array([7], dtype=np.uint64)
    below = -table.filled(key)
    assert below.max() == 2**32 - 1
    assert table.read(below, key) == [0]
    assert not floored(below, 0, 1).any()


def test_small_cells_are_not_sent_back_and_the_head_is() -> None:
    total = np.array([1, 1, 2, 3, 0, 7], dtype=np.uint32)
    assert floored(total, 1, 3).tolist() == [1, 0, 0, 3, 0, 7]
    assert total.tolist() == [1, 1, 2, 3, 0, 7], "the sum itself stays"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), max_size=80), st.integers(1, 6))
def test_clipping_leaves_the_same_keys_of_every_sample(pairs: list[tuple[int, int]], limit: int) -> None:
    unique = sorted(set(pairs))
    sample = np.array([s for s, _ in unique], dtype=np.int64)
    keys = np.array([k for _, k in unique], dtype=np.uint64)
    kept = clipped(sample, keys, limit)
    for one in set(sample.tolist()):
        mine = sample == one
        assert kept[mine].sum() == min(limit, mine.sum())
        alone = clipped(np.zeros(mine.sum(), dtype=np.int64), keys[mine], limit)
        assert (alone == kept[mine]).all()


@pytest.mark.parametrize("samples", [1, 500, 5000, 123_456])
def test_cells_are_a_power_of_two_and_enough(samples: int) -> None:
    cells = cells_for(samples, 16)
    assert cells & (cells - 1) == 0
    assert 16 * samples <= cells < max(32 * samples, 1 << 13)


def test_the_shares_of_all_parties_are_two_sided_geometric_noise_together() -> None:
    scale, parties, size = 3.0, 5, 40_000
    draws = [noise(size, scale, parties, np.random.default_rng(k)) for k in range(parties)]
    total = np.sum(draws, axis=0, dtype=np.uint32).view(np.int32)
    ratio = math.exp(-1 / scale)
    for value in range(-4, 5):
        wanted = (1 - ratio) / (1 + ratio) * ratio ** abs(value)
        assert (total == value).mean() == pytest.approx(wanted, abs=5 * math.sqrt(wanted / size))
    limit = noise_limit(scale, 0.01)
    assert (total >= limit).mean() <= 0.013 < (total >= limit - 3).mean()


def test_one_key_is_asked_about_as_many_are() -> None:
    draw = np.random.default_rng(5)
    keys = draw.integers(0, 1 << 64, 200, dtype=np.uint64, endpoint=False)
    for salt in (0, 1, 77):
        assert [mixed_one(int(key), salt) for key in keys] == mixed(keys, salt).tolist()
        assert [about_one(int(key), salt) for key in keys] == about(keys, salt).tolist()
    for rows in (1, 2):
        table = Table(3, 1 << 8, rows, head=5)
        pooled = draw.integers(0, 1 << 32, table.size, dtype=np.uint64).astype(np.uint32)  # half of them below zero
        assert [table.read_one(pooled, int(key)) for key in keys] == table.read(pooled, keys).tolist()
