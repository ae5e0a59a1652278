"""Flower's and ByzFL's aggregation rules beside ours, on the same matrix; used by ``conformity.py`` and ``defenses.py``.

    pip install --no-deps -r benchmarks/oracles.txt

Flower has two implementations of each of its rules: the strategies of its message API, and the functions below its older
strategies. ByzFL computes numpy arrays in their own type and torch tensors in float32.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from undertow.core.layout import Layout
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.contexts import ServerContext
from undertow.defenses.registry import DEFENSES

FLOWER, LEGACY = "Flower", "Flower, older API"
NUMPY, TORCH = "ByzFL, numpy", "ByzFL, torch"
LIBRARIES = (FLOWER, LEGACY, NUMPY, TORCH)


@dataclass(frozen=True)
class Setting:
    """What a rule is told beside the updates.

    Attributes:
        f: clients that may be bad.
        counts: samples of each client.
        radius: to clip to.
        seed: of a random order.
    """

    f: int
    counts: list[int]
    radius: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """One of our rules and the same rule of a library.

    Attributes:
        rule: our registered name.
        library: one of ``LIBRARIES``.
        name: theirs as it is called, and what ours is given to be set alike.
        params: ours, for a setting and K.
        hand_over: makes what theirs takes of ``U [K, D]``; not part of what is timed.
        call: theirs, on what was handed over.
        most: the largest f that both are defined for, given K.
        least: the smallest K for an f.
        rounds: calls of one object, with the same updates; more than one where it remembers.
        writes: whether theirs changes what it gets.
    """

    rule: str
    library: str
    name: str
    params: Callable[[Setting, int], dict[str, Any]]
    hand_over: Callable[[NDArray[Any], Setting], Any]
    call: Callable[[Any, Any, Setting], Any]
    build: Callable[[Setting, int], Any]
    most: Callable[[int], int]
    least: Callable[[int], int]
    rounds: int = 1
    writes: bool = False

    def ours(self, updates: NDArray[Any], setting: Setting) -> NDArray[Any]:
        """Return our answer ``[D]``, or rows ``[K', D]`` of what only prepares."""
        made = DEFENSES.get(self.rule)(**self.params(setting, len(updates)))
        if isinstance(made, Aggregator):
            found = [made(updates, counts=setting.counts)[0] for _ in range(self.rounds)]
            return found[-1]
        assert isinstance(made, PreAggregator)
        d = updates.shape[1]
        order = SimpleNamespace(permutation=lambda n: _order(self.library, n, setting.seed))
        context = ServerContext(Layout.of({"x": (d,)}), setting.counts, 1, torch.zeros(1).expand(d), order)  # type: ignore[arg-type]
        return made.prepare(torch.from_numpy(updates), context)[0].numpy()

    def theirs(self, updates: NDArray[Any], setting: Setting) -> NDArray[Any]:
        """Return their answer, of the shape of ours."""
        made = self.build(setting, len(updates))
        for _ in range(self.rounds):
            # Some of them write into what they get.
            found = self.call(made, self.hand_over(updates.copy(), setting), setting)
        return np.asarray(found)


def _order(library: str, k: int, seed: int) -> NDArray[np.intp]:
    """Return the order in which the library shuffles ``k`` rows after :func:`_seed`."""
    _seed(seed)
    found: NDArray[np.intp] = torch.randperm(k).numpy() if library == TORCH else np.random.permutation(k)
    return found


def _seed(seed: int) -> None:
    # ByzFL draws from the global generators.
    np.random.seed(seed)
    torch.manual_seed(seed)


@cache
def byzfl() -> ModuleType:
    """Return ByzFL's aggregators. The package itself would load its training framework, and with it torchvision.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("byzfl is not installed; pip install --no-deps -r benchmarks/oracles.txt")
    if "byzfl" not in sys.modules:
        bare = ModuleType("byzfl")
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules["byzfl"] = bare
    return importlib.import_module("byzfl.aggregators")


@cache
def flower() -> tuple[Any, Any]:
    """Return Flower's strategies and its older aggregation functions.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    if importlib.util.find_spec("flwr") is None:
        raise ModuleNotFoundError("flwr is not installed; pip install --no-deps -r benchmarks/oracles.txt")
    import flwr.server.strategy.aggregate as older
    import flwr.serverapp.strategy as strategies

    logging.getLogger("flwr").setLevel(logging.ERROR)
    return strategies, older


@cache
def _held() -> Any:
    from flwr.app import Array

    class Held(Array):
        """An array in Flower's records without its serialised copy, which a real round has besides."""

        def __init__(self, row: NDArray[Any]) -> None:
            self.__dict__.update(row=row, dtype=str(row.dtype), shape=row.shape, stype="numpy.ndarray", data=b"")

        def numpy(self) -> NDArray[Any]:
            return self.__dict__["row"]  # type: ignore[no-any-return]

    return Held


def _record(row: NDArray[Any]) -> Any:
    from flwr.app import ArrayRecord

    record = ArrayRecord()
    record["update"] = _held()(row)  # the constructor would make an ordinary array of it
    return record


def _replies(updates: NDArray[Any], setting: Setting) -> list[Any]:
    from flwr.app import MetricRecord, RecordDict

    def content(row: NDArray[Any], count: int) -> Any:
        return RecordDict({"arrays": _record(row), "metrics": MetricRecord({"num-examples": count})})

    return [
        SimpleNamespace(content=content(row, n), has_error=lambda: False) for row, n in zip(updates, setting.counts, strict=True)
    ]


def _results(updates: NDArray[Any], setting: Setting) -> list[tuple[list[NDArray[Any]], int]]:
    return [([row], n) for row, n in zip(updates, setting.counts, strict=True)]


def _half(k: int) -> int:
    return (k - 3) // 2


def _quarter(k: int) -> int:
    return (k - 3) // 4


def _strategy(
    rule: str,
    kind: str,
    name: str,
    params: Callable[[Setting, int], dict[str, Any]],
    given: Callable[[Setting, int], dict[str, Any]],
    most: Callable[[int], int] = _half,
    least: Callable[[int], int] = lambda f: 2 * f + 3,
) -> Pair:
    def call(strategy: Any, replies: list[Any], setting: Setting) -> NDArray[Any]:
        arrays, _ = strategy.aggregate_train(1, replies)
        found: NDArray[Any] = arrays.to_numpy_ndarrays()[0]
        return found

    def build(setting: Setting, k: int) -> Any:
        return getattr(flower()[0], kind)(**given(setting, k))

    return Pair(rule, FLOWER, name, params, _replies, call, build, most, least)


def _function(
    rule: str,
    function: str,
    name: str,
    params: Callable[[Setting, int], dict[str, Any]],
    given: Callable[[Setting, int], dict[str, Any]],
    most: Callable[[int], int] = _half,
    least: Callable[[int], int] = lambda f: 2 * f + 3,
) -> Pair:
    def call(built: Any, results: Any, setting: Setting) -> NDArray[Any]:
        found: NDArray[Any] = getattr(flower()[1], function)(results, **built)[0]
        return found

    return Pair(rule, LEGACY, name, params, _results, call, given, most, least)


def _byzfl(
    rule: str,
    name: str,
    params: Callable[[Setting, int], dict[str, Any]],
    build: Callable[[Any, Setting], Any],
    rounds: int = 1,
    writes: bool = False,
) -> list[Pair]:
    def call(made: Any, updates: Any, setting: Setting) -> Any:
        _seed(setting.seed)
        return made(updates)

    def to_numpy(updates: NDArray[Any], setting: Setting) -> Any:
        return updates

    def to_torch(updates: NDArray[Any], setting: Setting) -> Any:
        return torch.from_numpy(updates)

    def made(setting: Setting, k: int) -> Any:
        return build(byzfl(), setting)

    return [
        Pair(rule, library, name, params, hand, call, made, _half, lambda f: 2 * f + 3, rounds, writes)
        for library, hand in ((NUMPY, to_numpy), (TORCH, to_torch))
    ]


def _clipped_average(package: Any, setting: Setting) -> Any:
    clip, average = package.Clipping(setting.radius), package.Average()
    return lambda updates: average(clip(updates))


def _fixed_clipping(strategy: Any, setting: Setting) -> Any:
    """Flower's wrapper clips around the global model, which is zero here."""

    class Started:
        """The wrapper with its model as long as the updates that come."""

        def aggregate_train(self, round: int, replies: list[Any]) -> Any:
            first = replies[0].content["arrays"]["update"].numpy()
            made = strategy.DifferentialPrivacyServerSideFixedClipping(strategy.FedAvg(), 0.0, setting.radius, len(replies))
            made.current_arrays = _record(np.zeros_like(first))
            return made.aggregate_train(round, replies)

    return Started()


def _share(setting: Setting, k: int) -> float:
    """Return a share that drops f at each end, far from where rounding would decide."""
    return (setting.f + 0.5) / k


def _weighted(setting: Setting, k: int) -> dict[str, Any]:
    return {"f": setting.f, "m": k - setting.f, "weighted": True}


PAIRS: list[Pair] = [
    _strategy("mean", "FedAvg", "FedAvg", lambda s, k: {}, lambda s, k: {}),
    _function("mean", "aggregate", "aggregate", lambda s, k: {}, lambda s, k: {}),
    *_byzfl("mean", "Average, weighted = false", lambda s, k: {"weighted": False}, lambda b, s: b.Average()),
    _strategy("median", "FedMedian", "FedMedian", lambda s, k: {}, lambda s, k: {}),
    _function("median", "aggregate_median", "aggregate_median", lambda s, k: {}, lambda s, k: {}),
    *_byzfl("median", "Median", lambda s, k: {}, lambda b, s: b.Median()),
    _strategy(
        "trimmed-mean",
        "FedTrimmedAvg",
        "FedTrimmedAvg, share = beta",
        lambda s, k: {"share": _share(s, k)},
        lambda s, k: {"beta": _share(s, k)},
    ),
    _function(
        "trimmed-mean",
        "aggregate_trimmed_avg",
        "aggregate_trimmed_avg, share = proportiontocut",
        lambda s, k: {"share": _share(s, k)},
        lambda s, k: {"proportiontocut": _share(s, k)},
    ),
    *_byzfl("trimmed-mean", "TrMean, b = f", lambda s, k: {"b": s.f}, lambda b, s: b.TrMean(s.f)),
    _strategy(
        "krum",
        "MultiKrum",
        "MultiKrum, num_nodes_to_select = 1",
        lambda s, k: {"f": s.f},
        lambda s, k: {"num_malicious_nodes": s.f, "num_nodes_to_select": 1},
    ),
    _function(
        "krum", "aggregate_krum", "aggregate_krum", lambda s, k: {"f": s.f}, lambda s, k: {"num_malicious": s.f, "to_keep": 0}
    ),
    *_byzfl("krum", "Krum", lambda s, k: {"f": s.f}, lambda b, s: b.Krum(s.f)),
    _strategy(
        "multi-krum",
        "MultiKrum",
        "MultiKrum, weighted = true, m = num_nodes_to_select",
        _weighted,
        lambda s, k: {"num_malicious_nodes": s.f, "num_nodes_to_select": k - s.f},
    ),
    _function(
        "multi-krum",
        "aggregate_krum",
        "aggregate_krum, weighted = true, m = to_keep",
        _weighted,
        lambda s, k: {"num_malicious": s.f, "to_keep": k - s.f},
    ),
    *_byzfl("multi-krum", "MultiKrum", lambda s, k: {"f": s.f}, lambda b, s: b.MultiKrum(s.f)),
    _strategy(
        "bulyan",
        "Bulyan",
        "Bulyan",
        lambda s, k: {"f": s.f},
        lambda s, k: {"num_malicious_nodes": s.f},
        _quarter,
        lambda f: 4 * f + 3,
    ),
    _function(
        "bulyan",
        "aggregate_bulyan",
        "aggregate_bulyan with aggregate_krum",
        lambda s, k: {"f": s.f},
        lambda s, k: {"num_malicious": s.f, "aggregation_rule": flower()[1].aggregate_krum, "to_keep": 0},
        _quarter,
        lambda f: 4 * f + 3,
    ),
    *_byzfl(
        "geometric-median",
        "GeometricMedian, weighted = false, nu = 0.1",
        lambda s, k: {"weighted": False, "nu": 0.1},
        lambda b, s: b.GeometricMedian(),
    ),
    *_byzfl(
        "centered-clipping",
        "CenteredClipping, two steps, second round",
        lambda s, k: {"tau": s.radius, "iterations": 2},
        lambda b, s: b.CenteredClipping(L=2, tau=s.radius),
        rounds=2,
    ),
    Pair(
        "weak-dp",
        FLOWER,
        "DifferentialPrivacyServerSideFixedClipping around FedAvg, sigma = 0",
        lambda s, k: {"bound": s.radius},
        _replies,
        lambda made, replies, s: made.aggregate_train(1, replies)[0].to_numpy_ndarrays()[0],
        lambda s, k: _fixed_clipping(flower()[0], s),
        _half,
        lambda f: 2 * f + 3,
    ),
    *_byzfl(
        "weak-dp",
        "Clipping, then Average, sigma = 0, weighted = false",
        lambda s, k: {"bound": s.radius, "weighted": False},
        _clipped_average,
        writes=True,
    ),
    *_byzfl("nnm", "NNM", lambda s, k: {"f": s.f}, lambda b, s: b.NNM(s.f)),
    *_byzfl("bucketing", "Bucketing, the same random order", lambda s, k: {"s": s.f + 1}, lambda b, s: b.Bucketing(s.f + 1)),
]
