"""What all aggregation rules share, in one table of cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses import (
    AlignIns,
    Anomaly,
    Bucketing,
    Bulyan,
    CenteredClipping,
    DeepSight,
    DnC,
    Flame,
    FLTrust,
    FoolsGold,
    FoundationFL,
    FreqFed,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NearestNeighborMixing,
    PreAggregator,
    RobustLR,
    Rule,
    SignGuard,
    TrimmedMean,
    WeakDP,
    composition,
)
from undertow.defenses.contexts import ServerContext
from undertow.defenses.making import make_defenses
from undertow.defenses.registry import DEFENSES

D = 16
LAYOUT = Layout.of({"q.lora_A": (2, 4), "q.lora_B": (4, 2)}, scale=2.0)
HEAD = Layout.of({"q.lora_A": (2, 2), "classifier.weight": (4, 2), "classifier.bias": (4,)})
ADAPTER = rng(0, "adapter").standard_normal(D)
TRUSTED = rng(0, "trusted").standard_normal(D)


@dataclass(frozen=True)
class Case:
    """A rule, the fewest clients it is defined for, and which of the shared properties it does not have."""

    make: Callable[[], Rule | PreAggregator]
    least: int = 1
    shifts: bool = False  # a shift of all updates shifts the answer
    scales: bool = True
    permutes: bool = True
    ties: bool = True  # the order of the clients does not matter for equal scores and equal updates either
    believes: bool = True  # clients that all say the same are believed
    zero: bool = True  # updates of zero give zero
    exact: bool = True  # all steps are taken in float64, so that reports do not depend on the dtype
    layout: Layout = LAYOUT


CASES = {
    "mean": Case(Mean, shifts=True),
    "plain mean": Case(lambda: Mean(weighted=False), shifts=True),
    "median": Case(Median, shifts=True),
    "trimmed mean": Case(TrimmedMean, shifts=True),
    "trimmed mean b": Case(lambda: TrimmedMean(b=2), 5, shifts=True),
    "krum": Case(lambda: Krum(ties="content"), 3, shifts=True),
    "krum f": Case(lambda: Krum(f=1, ties="content"), 5, shifts=True),
    # B A is no linear function of the update
    "krum delta_w": Case(lambda: Krum(f=1, ties="content", space="delta_w"), 5, scales=False, ties=False),
    "multi-krum": Case(lambda: MultiKrum(f=1, ties="content"), 5, shifts=True),
    "weighted multi-krum": Case(lambda: MultiKrum(f=1, m=2, weighted=True, ties="content"), 5, shifts=True),
    "multi-krum delta_w": Case(lambda: MultiKrum(f=1, space="delta_w"), 5, scales=False, ties=False),
    "bulyan": Case(lambda: Bulyan(ties="content"), 3, shifts=True),
    "bulyan f": Case(lambda: Bulyan(f=1, ties="content"), 7, shifts=True),
    "bulyan delta_w": Case(lambda: Bulyan(f=1, ties="content", space="delta_w"), 7, scales=False, ties=False),
    "geometric median": Case(lambda: GeometricMedian(nu=1e-30)),
    "geometric median mean": Case(lambda: GeometricMedian(nu=1e-30, start="mean", iterations=8, weighted=False), shifts=True),
    "geometric median delta_w": Case(lambda: GeometricMedian(space="delta_w"), scales=False, ties=False),
    "weak-dp": Case(WeakDP),
    "weak-dp noise": Case(lambda: WeakDP(bound=1.0, sigma=0.1, weighted=False), scales=False, believes=False, zero=False),
    "centered clipping": Case(CenteredClipping),
    "centered clipping tau": Case(lambda: CenteredClipping(tau=2.0, iterations=3), scales=False, believes=False),
    "fltrust": Case(FLTrust, believes=False),
    "fltrust client": Case(lambda: FLTrust(client=0), 2, permutes=False, ties=False),
    "fltrust delta_w": Case(lambda: FLTrust(space="delta_w"), scales=False, ties=False, believes=False),
    "flame": Case(Flame, 2, ties=False, believes=False),
    "flame still": Case(lambda: Flame(noise=0), 2, ties=False),
    "flame delta_w": Case(lambda: Flame(noise=0, space="delta_w"), 2, scales=False, ties=False),
    "foolsgold": Case(FoolsGold, 2, believes=False),
    "foolsgold part": Case(lambda: FoolsGold(divide="weights", kappa=0.5, tensors="lora_B"), 2, ties=False, believes=False),
    "foolsgold sum": Case(lambda: FoolsGold(divide="none"), 2, believes=False),
    # two clients of one angle to the adapter may both be at the limit of 1
    "alignins": Case(AlignIns, 3, ties=False),
    "robust-lr": Case(RobustLR),
    "robust-lr theta": Case(lambda: RobustLR(theta=3, weighted=False), 3),
    # equal singular values leave the direction open
    # when the iterations agree on nobody the answer is zero, wherever the updates are
    "dnc": Case(lambda: DnC(ties="content"), ties=False),
    "dnc f": Case(lambda: DnC(f=1, c=1.5, fraction=1.0, iterations=1, ties="content"), 2, ties=False, shifts=True),
    "signguard": Case(SignGuard),
    "signguard all": Case(lambda: SignGuard(fraction=1.0)),
    "deepsight": Case(DeepSight, 5, ties=False, layout=HEAD),
    "deepsight two": Case(lambda: DeepSight(min_samples=1, tau=1.0), 5, ties=False, layout=HEAD),
    "freqfed": Case(FreqFed, 2, ties=False),
    "freqfed rectangle": Case(lambda: FreqFed(mask="rectangle", weighted=False), 2, ties=False),
    "freqfed noise": Case(lambda: FreqFed(noise_as_cluster=True), 2, ties=False),
    "freqfed dense": Case(lambda: FreqFed(min_cluster_size=3, min_samples=2, allow_single_cluster=True), 3, ties=False),
    "foundationfl": Case(lambda: FoundationFL(ties="content"), shifts=True),
    "foundationfl trimmed": Case(lambda: FoundationFL(base="trimmed-mean", m=2, b=1, ties="content"), shifts=True),
    "nnm": Case(NearestNeighborMixing, shifts=True, ties=False, exact=False),
    "nnm krum": Case(lambda: NearestNeighborMixing(f=1, then=Krum(ties="content")), 3, shifts=True, ties=False, exact=False),
    "nnm delta_w": Case(
        lambda: NearestNeighborMixing(f=1, space="delta_w", then=Median()), 3, scales=False, ties=False, exact=False
    ),
    "bucketing": Case(Bucketing, shifts=True, permutes=False, ties=False, exact=False),
    "anomaly": Case(Anomaly, scales=False, ties=False, exact=False),
    "anomaly update": Case(lambda: Anomaly("update-cosine"), ties=False, exact=False),
    "anomaly length": Case(lambda: Anomaly("length", then=Median()), ties=False, exact=False),
    "bucketing krum": Case(lambda: Bucketing(s=2, then=Krum()), 5, shifts=True, permutes=False, ties=False, exact=False),
}
STATEFUL = {"weak-dp noise", "centered clipping", "centered clipping tau", "foolsgold", "foolsgold part", "foolsgold sum"}


def cases(having: Callable[[Case], bool] = lambda case: True) -> Any:
    return pytest.mark.parametrize("name", [name for name, case in CASES.items() if having(case)])


every = cases()
seeds = st.integers(0, 10_000)
more = st.integers(0, 4)  # clients beyond the fewest


def updates(k: int, seed: int = 0) -> Any:
    return rng(seed, "updates").standard_normal((k, D))


def counts(k: int) -> list[int]:
    return [3 * (i + 1) for i in range(k)]


def apply(name: str, u: Any, factor: float = 1.0, **given: Any) -> tuple[Any, dict[str, Any]]:
    """Call a fresh rule, with all that any of them asks for."""
    return CASES[name].make()(u, **{"layout": CASES[name].layout, "adapter": ADAPTER, "trusted": factor * TRUSTED, **given})


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_the_table_has_every_registered_rule() -> None:
    made = {type(case.make()) for case in CASES.values()}
    registered = {entry.make for entry in DEFENSES.entries() if isinstance(entry.make, type)}
    assert {kind for kind in registered if issubclass(kind, Rule | PreAggregator)} <= made


@cases(lambda case: case.permutes)
@given(extra=more, seed=seeds)
@settings(max_examples=12, deadline=None)
def test_the_order_of_the_clients_does_not_matter(name: str, extra: int, seed: int) -> None:
    k = max(5, CASES[name].least) + extra
    u, n = updates(k, seed), np.array(counts(k))
    order = rng(seed, "order").permutation(k)
    close(apply(name, u[order], counts=n[order].tolist())[0], apply(name, u, counts=n.tolist())[0])


@cases(lambda case: case.ties)
@given(rows=st.lists(st.tuples(*[st.integers(-1, 1)] * 2), min_size=7, max_size=9), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_nor_where_scores_and_updates_are_equal(name: str, rows: list[tuple[int, ...]], seed: int) -> None:
    u = np.array(rows, dtype=np.float64)
    shuffled = u[rng(seed, "order").permutation(len(u))]
    given = {"layout": None, "adapter": np.ones(2), "trusted": np.array([1.0, 0.5])}
    close(apply(name, shuffled, **given)[0], apply(name, u, **given)[0])


@cases(lambda case: case.scales)
@given(extra=more, seed=seeds, factor=st.sampled_from([1e-6, 0.3, 7.0, 1e6]))
@settings(max_examples=12, deadline=None)
def test_scaled_updates_give_a_scaled_answer(name: str, extra: int, seed: int, factor: float) -> None:
    u = updates(max(5, CASES[name].least) + extra, seed)
    close(apply(name, u * factor, factor)[0] / factor, apply(name, u)[0])


@cases(lambda case: case.shifts)
@given(extra=more, seed=seeds)
@settings(max_examples=12, deadline=None)
def test_shifted_updates_give_a_shifted_answer(name: str, extra: int, seed: int) -> None:
    u, shift = updates(max(5, CASES[name].least) + extra, seed), 3 * updates(1, seed + 1)
    np.testing.assert_allclose(apply(name, u + shift)[0], apply(name, u)[0] + shift[0], rtol=1e-9, atol=1e-9)


@every
def test_nothing_is_changed_and_the_same_comes_out_twice(name: str) -> None:
    u, kept = updates(7), updates(7)
    first, again = apply(name, u), apply(name, u)
    assert np.array_equal(u, kept)
    assert np.array_equal(first[0], again[0])
    assert first[1] == again[1]
    first[0][:] = 99  # the answer is no view of the updates
    assert np.array_equal(u, kept)


@every
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_and_numpy_agree_in_every_dtype(name: str, dtype: torch.dtype, device: str) -> None:
    u = torch.from_numpy(updates(7)).to(device, dtype)
    delta, report = apply(name, u)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert (delta.dtype, delta.shape, delta.device.type) == (wanted, (D,), device)
    exact, other = apply(name, u.double().cpu().numpy())
    assert isinstance(exact, np.ndarray)
    np.testing.assert_allclose(delta.cpu().numpy(), exact, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-6)
    if device == "cpu" and (CASES[name].exact or dtype == torch.float64):
        assert report == other, "every step is taken in float64, whatever the updates' dtype"
    if dtype not in (torch.bfloat16, torch.float64) and device == "cpu":
        close(apply(name, u.numpy())[0], delta.numpy())


@every
def test_a_list_of_vectors_is_a_matrix(name: str) -> None:
    u = updates(7)
    delta, report = apply(name, u)
    for vectors, kind in ((list(u), np.ndarray), (tuple(torch.from_numpy(u)), torch.Tensor)):
        found, same = apply(name, vectors)
        assert isinstance(found, kind)
        assert np.array_equal(np.asarray(found), delta)
        assert same == report


@every
def test_a_run_gets_what_a_call_gets(name: str) -> None:
    case, u = CASES[name], torch.from_numpy(updates(7)).float()
    context = ServerContext(
        case.layout, counts(7), 1, torch.from_numpy(ADAPTER), rng(0, "server", 1), range(7), torch.from_numpy(TRUSTED)
    )
    rule = case.make()
    delta, report = (rule.chain() if isinstance(rule, PreAggregator) else rule).aggregate(u, context)
    called, same = apply(name, u, counts=counts(7))
    assert torch.equal(delta, called)
    assert report == same
    assert delta.dtype == torch.float32


@every
def test_the_smallest_number_of_clients_works_and_fewer_are_refused(name: str) -> None:
    case = CASES[name]
    assert np.isfinite(apply(name, updates(case.least))[0]).all()
    rule = case.make()
    check = rule.chain().check if isinstance(rule, PreAggregator) else rule.check
    check(case.least)
    for k in range(case.least):
        with pytest.raises(UserError, match=r"^[^\n]+; (give|use)"):
            check(k)
        if k:
            with pytest.raises(UserError, match=r"^\w+ .*; (give|use)"):
                apply(name, updates(k))


@cases(lambda case: case.believes)
def test_clients_that_all_say_the_same_are_believed(name: str) -> None:
    u = np.repeat(updates(1), 7, axis=0)
    close(apply(name, u)[0], u[0])


@cases(lambda case: case.zero)
def test_updates_of_zero_give_zero(name: str) -> None:
    assert not apply(name, np.zeros((7, D)))[0].any()


@every
def test_reports_are_plain_values(name: str) -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) for key in value) and all(map(plain, value.values()))
        return all(map(plain, value)) if isinstance(value, list) else value is None or type(value) in (int, float, bool, str)

    report = apply(name, updates(7))[1]
    assert plain(report), report
    assert "name" not in report, "a run puts the defense's name there"


@every
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(3), r"updates of shape \[3\]; give a matrix"),
        (np.zeros((2, 2, 2)), r"updates of shape \[2, 2, 2\]"),
        (np.zeros((7, 0)), r"updates of shape \[7, 0\]"),
        (np.zeros((0, D)), "K = 0|but there are 0"),
        (np.zeros((7, D), dtype=np.int64), "dtype int64; give float16"),
        (torch.zeros(7, D, dtype=torch.int32), "dtype torch.int32; give float16"),
        (torch.zeros(7, D, dtype=torch.complex64), "dtype torch.complex64"),
        ([[0.0] * D] * 7, "got a list; give a torch tensor"),
        ([], "empty list of updates: K = 0"),
        ([np.zeros(D), np.zeros(D + 1)], r"list of torch.float64 \[16\], torch.float64 \[17\]; give vectors"),
        ([np.zeros((1, D))] * 7, r"list of torch.float64 \[1, 16\]; give vectors"),
        ([np.zeros(D), torch.zeros(D, dtype=torch.float64)], "give vectors"),
        (np.full((7, D), 1e200), r"values up to 1e\+200 in row 0"),
    ],
)
def test_what_is_no_matrix_of_updates_is_refused(name: str, wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply(name, wrong, layout=None)


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(name: str, value: float) -> None:
    u = updates(7)
    u[1, 3] = u[4, D - 1] = value
    for matrix in (u, u.astype(np.float16), torch.from_numpy(u).bfloat16()):
        with pytest.raises(UserError, match=r"NaN or infinity in the rows 1, 4; leave these clients out"):
            apply(name, matrix)


@every
def test_what_a_rule_remembers_is_saved_and_restored_to_the_same_bits(name: str) -> None:
    def play(rule: Any, rounds: range) -> Any:
        given = {"layout": CASES[name].layout, "adapter": ADAPTER, "trusted": TRUSTED}
        return [rule(updates(7, seed=t).astype(np.float32), round=t, **given) for t in rounds][-1]

    def part(rule: Any) -> Any:
        return rule.chain() if isinstance(rule, PreAggregator) else rule

    whole, killed, resumed = (CASES[name].make() for _ in range(3))
    delta, report = play(whole, range(1, 5))
    play(killed, range(1, 3))
    state = composition.save_states([("rule", part(killed))])
    assert bool(state) == (name in STATEFUL)
    composition.restore_states([("rule", part(resumed))], load(save(state)) if state else {})
    found, same = play(resumed, range(3, 5))
    assert np.array_equal(found, delta)
    assert report == same
    if state:
        assert not np.array_equal(play(CASES[name].make(), range(3, 5))[0], delta) or "epsilon" in report
        composition.restore_states([("rule", part(resumed))], {})
        assert composition.save_states([("rule", part(resumed))]) == {}, "an empty state is a new beginning"
    with pytest.raises(UserError, match="delete the run directory and run again"):
        composition.restore_states([("rule", part(resumed))], {"0/rule/junk": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("krum", {"f": -1}),
        ("krum", {"f": 1.0}),
        ("krum", {"f": True}),
        ("krum", {"ties": "coin"}),
        ("krum", {"space": "weights"}),
        ("multi-krum", {"m": 0}),
        ("bulyan", {"f": -1}),
        ("trimmed-mean", {"b": -1}),
        ("trimmed-mean", {"share": 0.5}),
        ("trimmed-mean", {"share": float("nan")}),
        ("trimmed-mean", {"b": 1, "share": 0.1}),
        ("trimmed-mean", {"space": "delta_w"}),
        ("median", {"f": 1}),
        ("median", {"space": "adapter"}),
        ("geometric-median", {"iterations": 0}),
        ("geometric-median", {"nu": 0}),
        ("geometric-median", {"start": "median"}),
        ("weak-dp", {"bound": 0}),
        ("weak-dp", {"sigma": -0.1}),
        ("weak-dp", {"sigma": float("inf")}),
        ("weak-dp", {"delta": 1.0}),
        ("weak-dp", {"bound": True}),
        ("centered-clipping", {"tau": 0}),
        ("centered-clipping", {"iterations": 0}),
        ("fltrust", {"client": -1}),
        ("flame", {"noise": -1}),
        ("foolsgold", {"kappa": 0}),
        ("foolsgold", {"divide": "all"}),
        ("alignins", {"sparsity": 0}),
        ("alignins", {"sparsity": 1.5}),
        ("alignins", {"limit_t": "1"}),
        ("robust-lr", {"theta": -1}),
        ("dnc", {"f": -1}),
        ("dnc", {"fraction": 2}),
        ("dnc", {"iterations": 0}),
        ("dnc", {"c": 0}),
        ("signguard", {"lower": 1.1}),
        ("signguard", {"upper": 0.5}),
        ("signguard", {"fraction": 0}),
        ("deepsight", {"tau": 0}),
        ("deepsight", {"min_samples": 0}),
        ("deepsight", {"seeds": 0}),
        ("deepsight", {"outputs": "model"}),
        ("freqfed", {"min_cluster_size": 1}),
        ("freqfed", {"min_samples": 0}),
        ("freqfed", {"of": "gradient"}),
        ("freqfed", {"mask": "circle"}),
        ("foundationfl", {"base": "mean"}),
        ("foundationfl", {"m": -1}),
        ("foundationfl", {"b": 1}),
        ("anomaly", {"score": "cosine"}),
        ("anomaly", {"c": -1}),
        ("bucketing", {"s": 0}),
        ("bucketing", {"then": "krum"}),
        ("nnm", {"f": -1}),
        ("nnm", {"space": "b"}),
    ],
)
def test_parameters_out_of_range_are_refused_by_the_config(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"defense '{name}' with .*see `undertow list defenses`"):
        make_defenses([Options(name=name, params=params)])
