from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.config import Partition
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.partition import deal, fill_empty, largest_remainder, partition
from undertow.data.sample import Sample


def make(groups: list[str]) -> list[Sample]:
    return [Sample(f"s{i}", f"q{i}", ("a",), "a", group=group) for i, group in enumerate(groups)]


def ids(clients: list[list[Sample]]) -> list[list[str]]:
    return [[sample.id for sample in client] for client in clients]


def options(kind: str, alpha: float = 0.5) -> Partition:
    return Partition(kind=kind, alpha=alpha)  # type: ignore[arg-type]


groups = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60)


@given(
    groups=groups,
    clients=st.integers(1, 12),
    kind=st.sampled_from(["iid", "dirichlet", "key", "shards", "halves"]),
    alpha=st.sampled_from([1e-300, 1e-3, 0.1, 0.5, 10.0, 1e300, float("inf")]),
    seed=st.integers(0, 99),
)
def test_every_kind_is_a_partition_without_empty_clients(groups, clients, kind, alpha, seed):
    samples = make(groups)
    possible = {"key": len(set(groups)), "shards": len(samples) // 2}.get(kind, len(samples))
    if possible < clients or (kind, clients) == ("halves", 1):
        with pytest.raises(UserError):
            partition(samples, clients, options(kind, alpha), rng(seed, "partition"))
        return
    dealt = partition(samples, clients, options(kind, alpha), rng(seed, "partition"))
    assert len(dealt) == clients
    assert all(dealt)
    assert sorted(s.id for client in dealt for s in client) == sorted(s.id for s in samples)
    assert ids(dealt) == ids(partition(samples, clients, options(kind, alpha), rng(seed, "partition")))
    if kind == "key":
        homes = {(s.group, k) for k, client in enumerate(dealt) for s in client}
        assert len(homes) == len(set(groups))
    if kind == "iid":
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_iid_is_numpys_cut_of_a_permutation():
    samples = make(["g"] * 23)
    order = rng(7, "partition").permutation(23)
    expected = [[f"s{i}" for i in part] for part in np.array_split(order, 4)]
    assert ids(partition(samples, 4, options("iid"), rng(7, "partition"))) == expected
    assert [len(part) for part in expected] == [6, 6, 6, 5]


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_another_seed_deals_otherwise(kind):
    samples = make(["a"] * 30 + ["b"] * 30)
    one = partition(samples, 4, options(kind), rng(0, "partition"))
    other = partition(samples, 4, options(kind), rng(1, "partition"))
    assert ids(one) != ids(other)


def test_dirichlet_counts_are_the_largest_remainder_of_the_drawn_shares():
    # One group: the first draw of the generator is its shares; 1000 samples leave no client empty at alpha 5.
    samples = make(["only"] * 1000)
    shares = rng(3, "partition").dirichlet([5.0] * 6)
    counts = [len(client) for client in partition(samples, 6, options("dirichlet", 5.0), rng(3, "partition"))]
    assert sum(counts) == 1000
    assert all(abs(count - 1000 * share) < 1 for count, share in zip(counts, shares, strict=True))


def test_alpha_decides_between_one_home_and_an_even_spread():
    samples = make([g for g in "abcdefghij" for _ in range(100)])

    def largest_share(alpha: float) -> float:
        dealt = partition(samples, 5, options("dirichlet", alpha), rng(0, "partition"))
        return float(np.mean([max(sum(s.group == g for s in client) for client in dealt) / 100 for g in "abcdefghij"]))

    assert largest_share(1e-6) > 0.97
    assert largest_share(1e6) < 0.22


@pytest.mark.parametrize(
    ("total", "shares", "expected"),
    [
        (10, [0.25, 0.25, 0.5], [3, 2, 5]),  # equal remainders: the lower index
        (7, [0.5, 0.3, 0.2], [4, 2, 1]),  # 3.5, 2.1, 1.4
        (0, [0.5, 0.5], [0, 0]),
        (1, [0.2, 0.5, 0.3], [0, 1, 0]),
        (3, [1.0], [3]),
    ],
)
def test_largest_remainder_by_hand(total, shares, expected):
    assert largest_remainder(total, np.array(shares)) == expected


def test_repair_takes_the_last_of_the_largest_client():
    before = [[], [1, 2, 3], [], [4, 5, 6]]
    assert fill_empty(before) == [[3], [1, 2], [6], [4, 5]]
    assert before == [[], [1, 2, 3], [], [4, 5, 6]]


def test_key_balances_greedily():
    samples = make(["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 3 + ["e"])
    # a -> 0, b -> 1, c -> 1 (4 < 5), d -> 0 (5 < 7), e -> 1 (7 < 8)
    dealt = partition(samples, 2, options("key"), rng(0, "partition"))
    assert [sorted({s.group for s in client}) for client in dealt] == [["a", "d"], ["b", "c", "e"]]


def dealt(groups: list[list[int]], clients: int, **changes: Any) -> list[list[int]]:
    return deal(groups, clients, Partition(**changes), rng(0, "partition"))


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), clients=st.integers(1, 6), shards=st.integers(1, 4))
def test_shards_are_equal_pieces_of_the_sorted_samples(sizes: list[int], clients: int, shards: int):
    ends = np.cumsum(sizes)
    groups = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    total = int(ends[-1])
    if total < clients * shards:
        with pytest.raises(UserError, match=rf"{total} samples for {clients} x {shards} shards"):
            dealt(groups, clients, kind="shards", shards=shards)
        return
    parts = dealt(groups, clients, kind="shards", shards=shards)
    assert sorted(i for part in parts for i in part) == list(range(total))
    least = total // (clients * shards)
    assert all(least * shards <= len(part) <= (least + 1) * shards for part in parts)
    # a piece lies in as many groups as it has borders inside it, and one more; all borders together are the groups'
    homes = [len({next(g for g, end in enumerate(ends) if i < end) for i in part}) for part in parts]
    assert sum(homes) <= clients * shards + sum(size > 0 for size in sizes) - 1


def test_two_shards_of_three_hundred_hold_two_classes_at_most():
    # McMahan et al. 2017, section 3, at a tenth of the size: 20 clients, 40 pieces, 10 classes of 120
    parts = dealt([list(range(120 * c, 120 * c + 120)) for c in range(10)], 20, kind="shards")
    assert {len(part) for part in parts} == {60}
    assert max(len({i // 120 for i in part}) for part in parts) == 2
    assert len({tuple(sorted({i // 120 for i in part})) for part in parts}) > 10


@pytest.mark.parametrize(
    ("sizes", "clients", "skew", "first"),
    [
        ([100, 200], 4, 0.7, [30, 140]),  # FM-FL: 30 % of the negative, 70 % of the positive
        ([100, 200], 5, 0.7, [30, 140]),  # two of five clients
        ([10, 10, 10], 2, 1.0, [0, 0, 10]),  # the middle one counts as lower
        ([10, 10, 10, 10], 2, 0.8, [2, 2, 8, 8]),
        ([0, 10], 2, 0.6, [0, 6]),  # a class that is missing keeps its number
        ([7, 9], 2, 0.5, [4, 5]),  # halves go to the first part
    ],
)
def test_halves_have_exactly_their_shares(sizes: list[int], clients: int, skew: float, first: list[int]):
    ends = np.cumsum(sizes).tolist()
    groups = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    parts = dealt(groups, clients, kind="halves", skew=skew)
    upper = {i for part in parts[: clients // 2] for i in part}
    assert [len(upper.intersection(group)) for group in groups] == first
    assert sorted(i for part in parts for i in part) == list(range(sum(sizes)))
    for half in (parts[: clients // 2], parts[clients // 2 :]):
        assert max(map(len, half)) - min(map(len, half)) <= 1


def test_one_client_has_no_halves_and_files_deal_nothing():
    with pytest.raises(UserError, match=r"one client has no halves; set federation\.clients=2"):
        dealt([[0, 1]], 1, kind="halves")
    with pytest.raises(ValueError, match="'files' does not deal samples"):
        dealt([[0, 1]], 1, kind="files")


@pytest.mark.parametrize("kind", ["dirichlet", "key", "shards", "halves"])
def test_a_sample_without_group_is_refused_by_name(kind):
    with pytest.raises(UserError, match=r"s1 has no group.*data\.partition=iid"):
        partition(make(["a", "", "b"]), 2, options(kind), rng(0, "partition"))


def test_too_few_groups_names_both_numbers():
    with pytest.raises(UserError, match=r"2 groups for 3 clients.*federation\.clients=2"):
        partition(make(["a", "a", "b"]), 3, options("key"), rng(0, "partition"))
