"""Results that no run made, with known shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from undertow.metrics.intervals import Rate
from undertow_reproductions.results import Results, Run, Signal

RHOS = tuple(round(i / 10, 1) for i in range(1, 10))


def rate(value: float, n: int = 400) -> Rate:
    return Rate(round(value * n), n)


def run(
    axes: dict[str, Any], *, asr: float = 0.0, ma: float = 0.9, ftr: float = 0.0, curve: Iterable[float] = (), p: float = 0.01
) -> Run:
    signals = tuple(Signal(t, value, 0.001, 0.01, 0.03, p, 200) for t, value in enumerate(curve, 1))
    return Run(axes, rate(ma), rate(asr), rate(ftr), signals, 1.0)


def spread(seed: int) -> float:
    """Seeds differ a little, deterministically."""
    return (-0.01, 0.0, 0.01)[seed % 3]


def grid(axis: str, places: Iterable[float], asr: Callable[[float], float], **axes: Any) -> list[Run]:
    """Three seeds of a curve of ASR."""
    return [
        run({**axes, axis: x, "seed": seed}, asr=min(1.0, max(0.0, asr(x) + spread(seed)))) for x in places for seed in range(3)
    ]


def hump(height: float, peak: int, rounds: int = 20) -> list[float]:
    """A BSNR curve that rises to ``height`` in round ``peak`` and decays."""
    return [height * math.exp(-(((t - peak) / 4) ** 2)) for t in range(1, rounds + 1)]


def signals(height: Callable[[float], float], peak: Callable[[float], int], kind: str = "poison", p: float = 0.01) -> list[Run]:
    """Three seeds of BSNR curves at every rho with both groups."""
    return [
        run({"kind": kind, "rho": rho, "seed": seed}, curve=hump(height(rho) * (1 + 5 * spread(seed)), peak(rho)), p=p)
        for rho in RHOS
        for seed in range(3)
    ]


def as_in_the_paper() -> Results:
    """BSNR as the paper has it: largest at 0.5, linear on both sides, sooner with rho."""
    poisoned = signals(lambda rho: min(rho, 1 - rho), lambda rho: round(15 - 12 * rho))
    return Results([*poisoned, *signals(lambda rho: 0.001, lambda rho: 5, kind="no poison", p=0.5)])
