"""The search for activation bounds: objectives of Wang et al., Adam on the bounds alone, and the rule that moves c.

A model is looked at from outside here, as logits at some places of labelled data, so that image networks, text networks and
language models are bounded by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from undertow.defenses.server.bound_options import SearchOptions
from undertow.defenses.server.margins import Probes
from undertow.models.bounds import Bounds, bounded, maxima


@dataclass(frozen=True)
class Subject:
    """A fixed model on labelled data.

    Attributes:
        module: whose activations are bounded.
        logits: of some rows of the data, ``[m, C]``: those of the first row's places, then those of the second's, and so on.
        labels: of each row's places, int64 ``[m_i]``, m_i >= 1.
        probes: inputs whose margins are the penalty; None where it is the length of the bounds.
        rows: of a pass over all data.
    """

    module: nn.Module
    logits: Callable[[Sequence[int]], Tensor]
    labels: Sequence[Tensor]
    probes: Probes | None = None
    rows: int = 256


@dataclass(frozen=True)
class Search:
    """How to look for bounds; see :class:`undertow.defenses.server.activation_bounds.ActivationBounds`.

    Attributes:
        c: the weight of the penalty at the start.
        rate: pi.
        sides: upper or both.
        tight: weight of the bounds' length beside the margins.
        renew: steps after which probes are made again.
        adam: all else.
    """

    c: float
    rate: float
    sides: str
    tight: float
    renew: int
    adam: SearchOptions


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        bounds: the smallest whose rate was at least pi, float32 on the CPU; of those under it the one of the highest rate where
            none was.
        c: the last weight of the penalty.
        report: counts for the record, JSON-serialisable.
    """

    bounds: Bounds
    c: float
    report: dict[str, Any] = field(default_factory=dict)


def lengths(bounds: Bounds) -> Tensor:
    """Return the Euclidean length of each bound, places and sides in order; their sum is MM-BM's penalty."""
    return torch.stack([torch.linalg.vector_norm(z) for z in (*bounds.upper.values(), *bounds.lower.values())])


def fidelity(clipped: Tensor, unclipped: Tensor) -> Tensor:
    """Return the mean over outputs and classes of (f(x; Z) - f(x))^2."""
    return (clipped - unclipped).square().mean()


def search(
    subject: Subject, places: Sequence[str], options: Search, warm: tuple[Bounds, float] | None, draw: np.random.Generator
) -> Found:
    """Minimise fidelity + c * penalty over the bounds by Adam, with c pushed towards the largest that keeps the rate at pi.

    The penalty is the sum of the bounds' lengths; where the subject has probes, the sum of their margins; with ``tight`` above 0
    the mean of their margins + tight * the mean over places and sides of a bound's length in units of that of the largest
    activations.

    Args:
        subject: the model and the data.
        places: names of the modules to bound.
        options: of the search.
        warm: bounds of the same places and c to begin with; None begins at the largest activations.
        draw: the order of the batches, and the probes.
    """
    data = Answers(subject, places, options.adam.judge)
    high, low = data.extremes
    low = low if options.sides == "both" else {}
    fresh = Bounds(*({name: options.adam.start * z for name, z in side.items()} for side in (high, low)))
    begin, c = (fresh, options.c) if warm is None else warm
    tensors = {key: z.to(data.unclipped.device, torch.float32).clone().requires_grad_() for key, z in begin.named().items()}
    live, optimizer = Bounds.of(tensors), _adam(tensors, Bounds(high, low), options.adam.lr)
    probes = subject.probes
    renewed = [] if probes is None else [{"step": 0, **probes.renew(Bounds({}), draw)}]
    penalty = Penalty(subject, options.tight, lengths(Bounds(high, low)).clamp(min=1e-12))
    # The largest activations on the data change no logit on them, so that the rate is there where it is agreement with the model.
    best = Best(options.rate)
    for bounds in [fresh] if warm is None else [fresh, begin]:
        best.offer(bounds, float(penalty(bounds).detach()), *data.look(bounds), 0)
    told: list[dict[str, float]] = []
    path = [c]
    order = _batches(len(data.whole), options.adam.batch_size, draw)
    for step in range(1, options.adam.steps + 1):
        away, held = data.fidelity(next(order), live), penalty(live)
        told.append({"fidelity": away.item(), "penalty": held.item()})
        gradients = torch.autograd.grad(away + c * held, list(tensors.values()), allow_unused=True)
        for z, gradient in zip(tensors.values(), gradients, strict=True):
            z.grad = gradient
        optimizer.step()
        _beyond_zero(live)
        if step % options.adam.every == 0 or step == options.adam.steps:
            rate, accuracy = data.look(live)
            best.offer(live, float(penalty(live).detach()), rate, accuracy, step)
            if step > options.adam.warmup:
                c = c * options.adam.factor if rate >= options.rate else c / options.adam.factor
                path.append(c)
        if probes is not None and step % options.renew == 0 and step < options.adam.steps:
            renewed.append({"step": step, **probes.renew(Bounds.of({key: z.detach() for key, z in tensors.items()}), draw)})
            best.penalty = float(penalty(best.bounds).detach())
    return Found(best.bounds, c, _report(data, best, path, renewed, told))


class Answers:
    """What a model says on the data without bounds, and how well it says the same under some.

    Attributes:
        whole: all rows.
        unclipped: the logits without bounds, ``[M, C]``.
        extremes: each place's maxima and minima over the data.
    """

    def __init__(self, subject: Subject, places: Sequence[str], judge: str) -> None:
        self.subject, self.whole = subject, list(range(len(subject.labels)))
        self.ends = np.cumsum([len(own) for own in subject.labels])
        self.unclipped, self.extremes = _as_it_is(subject, places, self.whole)
        self.truth = torch.cat(list(subject.labels)).to(self.unclipped.device)
        self.answer = self.unclipped.argmax(1)
        judged = torch.ones_like(self.answer, dtype=torch.bool) if judge == "model" else self.answer == self.truth
        self.judged = judged if bool(judged.any()) else torch.ones_like(judged)

    def look(self, bounds: Bounds) -> tuple[float, float]:
        """Return the rate and the accuracy under some bounds."""
        subject, whole = self.subject, self.whole
        with torch.no_grad(), bounded(subject.module, bounds):
            said = torch.cat([subject.logits(whole[i : i + subject.rows]).argmax(1) for i in range(0, len(whole), subject.rows)])
        return float((said == self.answer)[self.judged].float().mean()), float((said == self.truth).float().mean())

    def fidelity(self, rows: Sequence[int], bounds: Bounds) -> Tensor:
        """Return the fidelity of some rows under some bounds."""
        places = torch.cat([torch.arange(int(self.ends[r]) - len(self.subject.labels[r]), int(self.ends[r])) for r in rows])
        with bounded(self.subject.module, bounds):
            return fidelity(self.subject.logits(rows), self.unclipped[places])


@dataclass(frozen=True)
class Penalty:
    """The penalty of some bounds; see :func:`search`.

    Attributes:
        subject: the model, with its probes.
        tight: weight of the bounds' length beside the margins.
        unit: the lengths of the largest activations.
    """

    subject: Subject
    tight: float
    unit: Tensor

    def __call__(self, bounds: Bounds) -> Tensor:
        """Return it."""
        probes = self.subject.probes
        if probes is None:
            return lengths(bounds).sum()
        with bounded(self.subject.module, bounds):
            margins = probes.margins()
        if not self.tight:
            return margins.sum()
        return margins.mean() + self.tight * (lengths(bounds) / self.unit).mean()


class Best:
    """Of the bounds offered, those of the smallest penalty whose rate is at least pi; until there are any, those of the highest
    rate.

    Attributes:
        bounds, penalty, rate, accuracy, step: of the best so far.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        self.bounds, self.rate, self.accuracy, self.step = Bounds({}), -1.0, 0.0, 0
        self.penalty = 0.0

    def offer(self, bounds: Bounds, penalty: float, rate: float, accuracy: float, step: int) -> None:
        """Take the bounds if they are better."""
        if self.rate >= self.least:
            better = rate >= self.least and (penalty, -rate) < (self.penalty, -self.rate)
        else:
            better = rate > self.rate
        if better:
            plain = {key: z.detach().to("cpu", torch.float32).clone() for key, z in bounds.named().items()}
            self.bounds, self.rate, self.accuracy, self.step, self.penalty = Bounds.of(plain), rate, accuracy, step, penalty


def _as_it_is(
    subject: Subject, places: Sequence[str], whole: list[int]
) -> tuple[Tensor, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
    """Return the model's own logits ``[M, C]``, and each place's maxima and minima over the data."""
    found: list[Tensor] = []
    extremes = maxima(
        lambda: found.extend(subject.logits(whole[i : i + subject.rows]) for i in range(0, len(whole), subject.rows)),
        subject.module,
        places,
    )
    return torch.cat(found), extremes


def _adam(tensors: Mapping[str, Tensor], largest: Bounds, lr: float) -> torch.optim.Adam:
    """Return Adam on bounds, at a rate in units of each place's mean largest activation."""
    sizes = {key: float(z.abs().mean()) for key, z in largest.named().items()}
    return torch.optim.Adam([{"params": [z], "lr": lr * (sizes[key] or 1.0)} for key, z in tensors.items()])


def _report(
    data: Answers, best: Best, path: list[float], renewed: list[dict[str, Any]], told: list[dict[str, float]]
) -> dict[str, Any]:
    return {
        "samples": len(data.whole),
        "steps": len(told),
        "kept_step": best.step,
        "rate": best.rate,
        "accuracy": best.accuracy,
        "unclipped_accuracy": float((data.answer == data.truth).float().mean()),
        "c": path,
        **({"probes": renewed} if renewed else {}),
        **({"first": told[0], "last": told[-1]} if told else {}),
    }


@torch.no_grad()
def _beyond_zero(bounds: Bounds) -> None:
    """Keep upper bounds from falling below 0 and lower ones from rising above it, where their length would grow again."""
    for z in bounds.upper.values():
        z.clamp_(min=0)
    for z in bounds.lower.values():
        z.clamp_(max=0)


def _batches(count: int, size: int, draw: np.random.Generator) -> Any:
    while True:
        order = draw.permutation(count).tolist()
        yield from (order[start : start + size] for start in range(0, count, size))
