import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.config import Partition
from undertow.data.partition import by_group, dirichlet, fill_empty, iid, largest_remainder, partition
from undertow.data.sample import Sample
from undertow.errors import UserError
from undertow.rng import rng


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
    kind=st.sampled_from(["iid", "dirichlet", "key"]),
    alpha=st.sampled_from([1e-300, 1e-3, 0.1, 0.5, 10.0, 1e300, float("inf")]),
    seed=st.integers(0, 99),
)
def test_every_kind_is_a_partition_without_empty_clients(groups, clients, kind, alpha, seed):
    samples = make(groups)
    possible = len(set(groups)) if kind == "key" else len(samples)
    if possible < clients:
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
    assert ids(iid(samples, 4, rng(7, "partition"))) == expected
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
    counts = [len(client) for client in dirichlet(samples, 6, 5.0, rng(3, "partition"))]
    assert sum(counts) == 1000
    assert all(abs(count - 1000 * share) < 1 for count, share in zip(counts, shares, strict=True))


def test_alpha_decides_between_one_home_and_an_even_spread():
    samples = make([g for g in "abcdefghij" for _ in range(100)])

    def largest_share(alpha: float) -> float:
        dealt = dirichlet(samples, 5, alpha, rng(0, "partition"))
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
    dealt = by_group(samples, 2)
    assert [sorted({s.group for s in client}) for client in dealt] == [["a", "d"], ["b", "c", "e"]]


@pytest.mark.parametrize("kind", ["dirichlet", "key"])
def test_a_sample_without_group_is_refused_by_name(kind):
    with pytest.raises(UserError, match=r"s1 has no group.*data\.partition=iid"):
        partition(make(["a", "", "b"]), 2, options(kind), rng(0, "partition"))


def test_too_few_groups_names_both_numbers():
    with pytest.raises(UserError, match=r"2 groups for 3 clients.*federation\.clients=2"):
        partition(make(["a", "a", "b"]), 3, options("key"), rng(0, "partition"))
